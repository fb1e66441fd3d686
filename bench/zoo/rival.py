"""Torch-Pruning beside a row: is there a group that it cuts exactly, by the zoo's rule, and that fairkern holds back?

Its dependency graph says what goes with half of a layer's outputs. Exact is the rule of the zoo: the cut model gives
what the model gives in which the weights that read those outputs are zero there. Of a model that picks among what it
finds that is what it picks from: the same boxes may be left of other ones.
"""

from __future__ import annotations

import contextlib
import copy
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import fairkern as fk
from fairkern.model.nested import tensors_in
from fairkern.prove.inputs import distance

LIMIT = 1e-9
TELLS = 1e-6  # of the masked model's outputs to the whole one's: less, and a wrong cut could hide
SECONDS = 5.0
MOST = 16  # layers that are tried, evenly over those that are held back

Results = Callable[[nn.Module, Any], Any]  # what is compared of a call


def cut_by_rival_alone(model: nn.Module, units: fk.UnitMap, inputs: Any, results: Results) -> tuple[str, ...] | None:
    """Layers that fairkern leaves alone and it cuts exactly, by name. None where it is not installed, or cannot build
    its graph of the model. `model` in float64, in eval mode."""
    try:
        with _limited():
            _graph(copy.deepcopy(model), inputs)
    except Exception:  # whatever it raises on a model that it does not know
        return None
    cut = {(a.axis.tensor, a.axis.dim) for g in units.prunable for a in units.groups[g].axes}
    held = [name for name, transposed in _layers(model) if (f"{name}.weight", int(transposed)) not in cut]
    return tuple(name for name in held[:: max(1, len(held) // MOST)] if _exact(model, name, inputs, results))


def _layers(model: nn.Module) -> Iterator[tuple[str, bool]]:
    """Layers that make channels or neurons, and whether they do so along dimension 1 of their weight."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and type(module).__module__.startswith("torch.nn"):
            yield name, bool(getattr(module, "transposed", False))


def _exact(model: nn.Module, name: str, inputs: Any, results: Results) -> bool:
    """Whether it cuts half of this layer's outputs, and what is left gives what the masked model gives."""
    import torch_pruning as tp

    small, masked = copy.deepcopy(model), copy.deepcopy(model)
    names = {id(module): path for path, module in small.named_modules()}
    layer = small.get_submodule(name)
    made = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if made < 2:
        return False
    try:
        with _limited():
            graph = _graph(small, inputs)
        prune = tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
        with _limited():
            group = graph.get_pruning_group(layer, prune, idxs=list(range(0, made, 2)))
        if not graph.check_pruning_group(group):
            return False
        readers = [
            (names[id(dep.target.module)], list(idxs))
            for dep, idxs in group
            if dep.handler.__name__ == "prune_in_channels" and id(dep.target.module) in names
        ]
        if not readers:
            return False
        group.prune()
        with torch.no_grad():
            for path, places in readers:
                reader = masked.get_submodule(path)
                dim = 0 if getattr(reader, "transposed", False) else 1
                reader.weight.index_fill_(dim, torch.tensor(places), 0.0)
            whole, expected, found = (results(net, inputs) for net in (model, masked, small))
    except Exception:  # it cannot cut this layer, or what is left does not run
        return False
    return distance(whole, expected) >= TELLS and distance(expected, found) <= LIMIT


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """TimeoutError after `SECONDS` of a processor: on some models its search for what goes together does not end."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _graph(model: nn.Module, inputs: Any) -> Any:
    """Its graph of what depends on what, of all tensors that the model returns."""
    import torch_pruning as tp

    return tp.DependencyGraph().build_dependency(
        model, inputs, output_transform=lambda output: [t for t in tensors_in(output) if t.grad_fn is not None]
    )
