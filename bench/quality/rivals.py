"""Other packages, as shipped: their importance, their allocation, no compensation."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.quality.nets.transformers import Attention
from bench.quality.tasks.task import Task

CUTS = 9  # of a search for one budget
MOST_CLASSES = 20  # for network-pruner, whose time grows with their square
CLOSE = 0.02  # below the budget, in parts of the model: near enough to stop

Cutter = Callable[[float], nn.Module]  # a strength from 0 to 1 → a cut copy


@dataclass(frozen=True)
class Rival:
    """`prepare(model, task)` gives a Cutter; ImportError where the package is absent, any error where it cannot."""

    name: str
    package: str
    prepare: Callable[[nn.Module, Task], Cutter]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Search:
    """The weakest cut that meets a budget, by bisection; cuts are remembered between budgets."""

    def __init__(self, model: nn.Module, cutter: Cutter) -> None:
        self.cutter, self.whole = cutter, parameters(model)
        self.known: dict[float, nn.Module] = {0.0: model}

    def __call__(self, budget: float) -> nn.Module | None:
        """The largest model found of at most `budget` of the parameters; None if there is none."""
        low, high = 0.0, 1.0
        for strength, model in self.known.items():
            if parameters(model) <= budget * self.whole:
                high = min(high, strength)
        low = max(s for s, m in self.known.items() if s < high)
        for _ in range(CUTS):
            fitting = self._best(budget)
            if fitting is not None and parameters(fitting) >= (budget - CLOSE * budget) * self.whole:
                break
            middle = (low + high) / 2
            model = self.known.setdefault(middle, self.cutter(middle))
            low, high = (low, middle) if parameters(model) <= budget * self.whole else (middle, high)
        return self._best(budget)

    def _best(self, budget: float) -> nn.Module | None:
        fitting = [m for m in self.known.values() if parameters(m) <= budget * self.whole]
        return max(fitting, key=parameters) if fitting else None


def torch_pruning(importance: str, model: nn.Module, task: Task) -> Cutter:
    """DepGraph with a global ranking. Heads go whole where attention is this bench's own."""
    import torch_pruning as tp

    gradients = _gradients(model, task)

    def cut(strength: float) -> nn.Module:
        small = copy.deepcopy(model)
        for name, parameter in small.named_parameters():
            parameter.requires_grad_(True)
            parameter.grad = gradients[name].clone()
        with contextlib.redirect_stdout(io.StringIO()):
            tp.pruner.BasePruner(
                small,
                task.example,
                importance=getattr(tp.importance, importance)(),
                global_pruning=True,
                pruning_ratio=strength,
                ignored_layers=[_last(small)],
                num_heads=_heads(small),
                prune_num_heads=True,
                prune_head_dims=False,
                head_pruning_ratio=strength,
            ).step()
        return small.eval()

    return cut


def network_pruner(model: nn.Module, task: Task) -> Cutter:
    """The official FAIR-Pruner package, its own tolerance searched for the budget."""
    from Network_Pruner import FAIR_Pruner

    if task.metric != "accuracy":
        raise RuntimeError("it classifies images only")
    data = torch.utils.data.TensorDataset(
        torch.cat([x for x, _ in task.calibration]), torch.cat([y for _, y in task.calibration])
    )
    classes = len(data.tensors[1].unique())
    if classes > MOST_CLASSES:
        raise RuntimeError(f"{classes} classes: its time grows with their square, it was run on {MOST_CLASSES} at most")
    loader = torch.utils.data.DataLoader(data, batch_size=64)
    folder = tempfile.TemporaryDirectory()
    cpu, example = torch.device("cpu"), task.example
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = FAIR_Pruner.get_metrics(
            copy.deepcopy(model), loader, loss_function=nn.CrossEntropyLoss(), device=cpu,
            the_samplesize_for_compute_distance=16, results_save_path=str(Path(folder.name) / "metrics"),
        )  # fmt: skip

    def cut(strength: float) -> nn.Module:
        whole = copy.deepcopy(model)
        with contextlib.redirect_stdout(io.StringIO()):
            ratios = FAIR_Pruner.get_ratios(whole, metrics, ToD_level=strength)
            skeleton = FAIR_Pruner.get_skeleton(whole, ratios, example)
            small, _ = FAIR_Pruner.prune(
                skeleton, whole, metrics, ratios, example_inputs=example, device="cpu",
                pruned_model_save_path=str(Path(folder.name) / "weights"),
            )  # fmt: skip
        return small.eval()

    return cut


def _gradients(model: nn.Module, task: Task) -> Mapping[str, torch.Tensor]:
    """Of the mean loss over the calibration data, in eval mode."""
    own = copy.deepcopy(model).eval()
    for inputs, targets in task.calibration:
        output: Any = own(**inputs) if isinstance(inputs, dict) else own(inputs)
        (task.loss(output, targets) / len(task.calibration)).backward()
    return {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in own.named_parameters()}


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """Heads of every projection: of this bench's attention, and of BERT's."""
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(module, Attention):
            heads |= {m: m.out_features // module.size for m in (module.q, module.k, module.v)}
        elif hasattr(module, "attention_head_size"):
            heads |= dict.fromkeys((module.query, module.key, module.value), module.num_attention_heads)
    return heads


def _last(model: nn.Module) -> nn.Module:
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1]


RIVALS = (
    Rival("torch-pruning, GroupTaylor", "torch-pruning", partial(torch_pruning, "GroupTaylorImportance")),
    Rival("torch-pruning, GroupMagnitude", "torch-pruning", partial(torch_pruning, "GroupMagnitudeImportance")),
    Rival("network-pruner", "network-pruner", network_pruner),
)
