"""Scores as an importance for torch-pruning's pruners, which then rank by them in place of magnitudes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairkern import options
from fairkern.allocate import Signal
from fairkern.allocate.signals import defaults, read_signal
from fairkern.checks import check_model
from fairkern.errors import InputError
from fairkern.model.linear import adds_bias, groups_of, made_dim
from fairkern.types import Axis, FloatArray, Scores

try:
    from torch_pruning.pruner.importance import Importance
except ImportError as error:
    raise ImportError(
        f"fairkern.integrations.torch_pruning needs torch-pruning, which could not be imported ({error}): "
        "pip install torch-pruning",
        name="torch_pruning",
    ) from error

__all__ = ["ScoreImportance"]


class ScoreImportance(Importance):
    """The importance of a channel is the score of the unit that it belongs to: low goes first.

    `tp.pruner.BasePruner(model, example_inputs, importance=ScoreImportance(model, scores), …)`. Which widths are left,
    and what is cut along, is torch-pruning's to say; a group of its that holds positions which fairkern would not cut,
    or which no sample scores, is left alone, and `left` says why.

    Args:
        model: the one that is given to the pruner.
        scores: of it, from `fairkern.score`.
        signal: a name in `scores.signals`, "random" or a function of a group; None takes the best that the scores have.
            Under `global_pruning=True` layers are held against each other by it: "residual" and "taylor" are in the
            currency of the loss, "wasserstein" is not.

    A unit of several positions (a head) gives each of them its score; with `num_heads=`, pass `prune_num_heads=True`
    and `prune_head_dims=False`, since heads are what was scored. Where torch-pruning puts several units of fairkern's
    together, their scores add up.

    Attributes: `left`, by the name of the root layer why a group is left alone.

    Raises InputError for scores of another model, a signal that they do not have; and, when the pruner asks, for a
    model that has been cut since: after each of several steps, score again and set `pruner.importance`.
    """

    def __init__(self, model: nn.Module, scores: Scores, signal: Signal | None = None) -> None:
        check_model(model)
        options.instance("scores", scores, Scores, options.SCORES)
        units = scores.units
        chosen = defaults(scores, "uniform", None, False)[1] if signal is None else signal
        self._values: dict[int, FloatArray] = read_signal(scores, "signal", chosen)
        self._names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
        self._names |= {id(parameter): name for name, parameter in model.named_parameters()}
        self._units = units
        self._why = {frozen.axis: frozen.reason for frozen in units.frozen}
        self._why |= {held.axis: g.frozen for g in units.groups if g.frozen is not None for held in g.axes}
        self._places: dict[Axis, dict[int, tuple[int, int]]] = {}  # on an axis: position → group and unit
        for g in units.prunable:
            for held in units.groups[g].axes:
                places = self._places.setdefault(held.axis, {})
                for unit, positions in enumerate(held.positions.tolist()):
                    places |= dict.fromkeys(positions, (g, unit))
        self.left: dict[str, str] = {}
        self._check(dict(model.named_parameters()), "these are scores of another model than the one given")

    def __call__(self, group: Any) -> Tensor | None:
        """One score for every channel of a `tp.Group`, float64; None where it is to be left alone."""
        root = group[0].dep.target.module
        name = self._names.get(id(root), type(root).__name__)
        found: dict[int, set[tuple[int, int]]] = {position: set() for position in group[0].idxs}
        for item in group:
            axis = self._axis(item.dep)
            if axis is None:
                continue
            for position, place in zip(item.idxs, item.root_idxs, strict=True):
                if place is None:  # torch-pruning has lost the way back to the root
                    continue
                unit = self._places.get(axis, {}).get(position)
                if unit is None or unit[0] not in self._values:
                    self.left[name] = f"{axis} {self._reason(axis, unit)}"
                    return None
                found[place].add(unit)
        if not all(found.values()):
            self.left[name] = "it has positions that no tensor of the unit map holds"
            return None
        flat = {g: values.reshape(-1) for g, values in self._values.items()}
        scores = [sum(float(flat[g][unit]) for g, unit in sorted(units)) for units in found.values()]
        return torch.tensor(scores, dtype=torch.float64, device=_device(root))

    def _reason(self, axis: Axis, unit: tuple[int, int] | None) -> str:
        if unit is None:
            return self._why.get(axis, "is held by no unit that can be cut")
        return f"is of {self._units.groups[unit[0]].name}, which the signal says nothing of"

    def _axis(self, dep: Any) -> Axis | None:
        """The axis that an item of a group prunes; None where it is none of a tensor, or none that the map can hold."""
        module = dep.target.module
        name = self._names.get(id(module))
        if name is None:  # a function, a concatenation
            return None
        if isinstance(module, nn.Parameter):
            axis = Axis(name, int(dep.target.pruning_dim))
            self._check({name: module}, "scores are of the model before it was cut")
            return axis
        weight = module._parameters.get("weight")
        if weight is None:
            return None
        own = f"{name}.weight" if name else "weight"
        self._check({own: weight}, "scores are of the model before it was cut")
        made = made_dim(module) if adds_bias(module) else weight.dim() - 1 if isinstance(module, nn.Embedding) else 0
        if dep.handler.__name__ == "prune_in_channels" and adds_bias(module):
            return Axis(own, 1 - made) if groups_of(module) == 1 else None
        return Axis(own, made)

    def _check(self, tensors: Mapping[str, Tensor], what: str) -> None:
        for name, shape in _differing(tensors, self._units.shapes):
            raise InputError(
                f"{what}: {name} has shape {tuple(tensors[name].shape)} here, and {shape} in their unit map; "
                "score this model, and give a new ScoreImportance"
            )


def _differing(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Any]]:
    yield from ((name, shapes.get(name)) for name, t in tensors.items() if shapes.get(name) != tuple(t.shape))


def _device(module: nn.Module | Tensor) -> torch.device:
    tensors = [module] if isinstance(module, Tensor) else list(module.parameters())
    return tensors[0].device if tensors else torch.device("cpu")
