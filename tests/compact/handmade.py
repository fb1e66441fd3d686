"""Small models with their units written by hand, and the plan that removing some of them gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.types import (
    AttributeChange,
    Axis,
    AxisGroup,
    Extent,
    GroupAxis,
    Plan,
    PlanAxis,
    PlanGroup,
    Silence,
    SizeAttribute,
    UnitMap,
)


def plan_of(units: UnitMap, removed: Sequence[np.ndarray]) -> Plan:
    """The plan that removes these units, an array per group."""
    groups = []
    places: dict[Axis, list[np.ndarray]] = {}
    held: dict[Axis, GroupAxis] = {}
    for group, units_gone in zip(units.groups, removed, strict=True):
        gone = np.asarray(units_gone, dtype=np.int64)
        groups.append(PlanGroup(group.name, group.kind, group.units, gone))
        for item in group.axes:
            places.setdefault(item.axis, []).append(item.positions[gone].ravel())
            held[item.axis] = item
    axes = [
        PlanAxis(axis, held[axis].length, np.sort(np.concatenate(parts)), held[axis].silence)
        for axis, parts in places.items()
    ]
    changes = []
    for item in units.attributes:
        extent = units.extents[item.extent]
        after = extent.length - sum(per * len(removed[g]) for g, per in extent.parts)
        changes.append(AttributeChange(item.module, item.attribute, extent.length, after))
    return Plan(units.model, tuple(groups), tuple(axes), tuple(changes), units.shapes)


def units_of(model: nn.Module, groups: Mapping[str, tuple[int, str]], attributes: Mapping[str, str]) -> UnitMap:
    """A UnitMap from text: axes as `tensor:dim`, `*p` for p positions per unit, `+o` for an offset, `>` for a
    consumer; attributes as `module.attribute` → `group*p …`."""
    shapes = {n: tuple(t.shape) for n, t in (*model.named_parameters(), *model.named_buffers())}
    built = []
    for name, (count, text) in groups.items():
        axes = []
        for word in text.split():
            word, consumer = word.removesuffix(">"), word.endswith(">")
            word, _, offset = word.partition("+")
            word, _, per = word.partition("*")
            tensor, _, dim = word.rpartition(":")
            width = int(per or 1)
            positions = int(offset or 0) + np.arange(count * width, dtype=np.int64).reshape(count, width)
            axes.append(
                GroupAxis(
                    Axis(tensor, int(dim)),
                    shapes[tensor][int(dim)],
                    positions,
                    Silence.ZERO if consumer else Silence.NONE,
                )
            )
        built.append(AxisGroup(name, "channel", count, tuple(axes), ()))
    extents, sizes, order = [], [], list(groups)
    for path, text in attributes.items():
        module, _, attribute = path.rpartition(".")
        parts = []
        for word in text.split():
            group, _, per = word.partition("*")
            parts.append((order.index(group), int(per or 1)))
        extents.append(Extent(getattr(model.get_submodule(module), attribute), tuple(parts)))
        sizes.append(SizeAttribute(module, attribute, len(extents) - 1))
    return UnitMap(type(model).__name__, tuple(built), (), tuple(extents), (), (), tuple(sizes), shapes)


@dataclass
class Case:
    model: nn.Module
    units: UnitMap
    inputs: Tensor

    def plan(self, share: float = 0.5, seed: int = 0, only: int | None = None) -> Plan:
        rng = np.random.default_rng(seed)
        removed = []
        for i, group in enumerate(self.units.groups):
            count = max(1, min(group.units - 1, int(share * group.units))) if only in (None, i) else 0
            removed.append(np.sort(rng.permutation(group.units)[:count]))
        return plan_of(self.units, removed)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.fc = nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.bn(self.conv1(x)))))
        return self.fc(x.flatten(1))


def plain() -> Case:
    model = Plain()
    units = units_of(
        model,
        {
            "conv1": (
                8,
                "conv1.weight:0 conv1.bias:0 bn.weight:0 bn.bias:0 bn.running_mean:0 bn.running_var:0 conv2.weight:1>",
            ),
            "conv2": (6, "conv2.weight:0 fc.weight:1*16>"),
        },
        {
            "conv1.out_channels": "conv1",
            "bn.num_features": "conv1",
            "conv2.in_channels": "conv1",
            "conv2.out_channels": "conv2",
            "fc.in_features": "conv2*16",
        },
    )
    return Case(model, units, torch.randn(2, 3, 4, 4))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.a = nn.Conv2d(8, 5, 3, padding=1)
        self.b = nn.Conv2d(5, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.b(torch.relu(self.a(x)))
        return self.head(x.mean((2, 3)))


def residual() -> Case:
    model = Residual()
    units = units_of(
        model,
        {
            "stream": (8, "stem.weight:0 stem.bias:0 a.weight:1> b.weight:0 b.bias:0 head.weight:1>"),
            "inner": (5, "a.weight:0 a.bias:0 b.weight:1>"),
        },
        {
            "stem.out_channels": "stream",
            "a.in_channels": "stream",
            "a.out_channels": "inner",
            "b.in_channels": "inner",
            "b.out_channels": "stream",
            "head.in_features": "stream",
        },
    )
    return Case(model, units, torch.randn(2, 3, 4, 4))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.relu(self.depth(torch.relu(self.expand(x)))))


def depthwise() -> Case:
    model = Depthwise()
    units = units_of(
        model,
        {"expand": (8, "expand.weight:0 expand.bias:0 depth.weight:0 depth.bias:0 project.weight:1>")},
        {
            "expand.out_channels": "expand",
            "depth.in_channels": "expand",
            "depth.out_channels": "expand",
            "depth.groups": "expand",
            "project.in_channels": "expand",
        },
    )
    return Case(model, units, torch.randn(2, 3, 4, 4))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.grouped(torch.relu(self.first(x)))))


def grouped() -> Case:
    model = Grouped()
    units = units_of(
        model,
        {"first": (4, "first.weight:0*2 first.bias:0*2 grouped.weight:0*3 grouped.bias:0*3 last.weight:1*3>")},
        {
            "first.out_channels": "first*2",
            "grouped.in_channels": "first*2",
            "grouped.out_channels": "first*3",
            "grouped.groups": "first",
            "last.in_channels": "first*3",
        },
    )
    return Case(model, units, torch.randn(2, 3, 4, 4))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(x)))


def tied() -> Case:
    model = Tied()
    units = units_of(
        model,
        {"embedding": (8, "embedding.weight:1>")},
        {"embedding.embedding_dim": "embedding", "head.in_features": "embedding"},
    )
    return Case(model, units, torch.randint(0, 11, (3, 5)))


class Buffers(nn.Module):
    """Persistent and non-persistent buffers along the units, and a frozen parameter."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 8)
        self.register_buffer("scale", torch.randn(8))
        self.register_buffer("shift", torch.randn(8, 1), persistent=False)
        self.b = nn.Linear(8, 3)
        self.a.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x) * self.scale + self.shift[:, 0]))


def buffers() -> Case:
    model = Buffers()
    units = units_of(
        model,
        {"a": (8, "a.weight:0 a.bias:0 scale:0 shift:0 b.weight:1>")},
        {"a.out_features": "a", "b.in_features": "a"},
    )
    return Case(model, units, torch.randn(5, 4))


class Concat(nn.Module):
    """Two groups on one axis of one consumer, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 6, 1)
        self.up = nn.ConvTranspose2d(10, 5, 2, stride=2)
        self.last = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x), self.right(x)], 1)
        return self.last(torch.relu(self.up(torch.relu(both))))


def concat() -> Case:
    model = Concat()
    units = units_of(
        model,
        {
            "left": (4, "left.weight:0 left.bias:0 up.weight:0>"),
            "right": (6, "right.weight:0 right.bias:0 up.weight:0+4>"),
            "up": (5, "up.weight:1 up.bias:0 last.weight:1>"),
        },
        {
            "left.out_channels": "left",
            "right.out_channels": "right",
            "up.in_channels": "left right",
            "up.out_channels": "up",
            "last.in_channels": "up",
        },
    )
    return Case(model, units, torch.randn(2, 3, 4, 4))


class Bilinear(nn.Module):
    """A weight that contracts over both of its dimensions; stored transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 6)
        self.right = nn.Linear(4, 5)
        self.form = nn.Parameter(torch.randn(5, 6).t())

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,ij,bj->b", self.left(x), self.form, self.right(x))


def bilinear() -> Case:
    model = Bilinear()
    units = units_of(
        model,
        {
            "left": (6, "left.weight:0 left.bias:0 form:0>"),
            "right": (5, "right.weight:0 right.bias:0 form:1>"),
        },
        {"left.out_features": "left", "right.out_features": "right"},
    )
    return Case(model, units, torch.randn(3, 4))


def channels_last() -> Case:
    case = plain()
    case.model.to(memory_format=torch.channels_last)
    return case


CASES = [plain, residual, depthwise, grouped, tied, buffers, concat, bilinear, channels_last]


def make(build: Callable[[], Case]) -> Case:
    torch.manual_seed(0)
    case = build()
    case.model.double().eval()
    for module in case.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    if case.inputs.is_floating_point():
        case.inputs = case.inputs.double()
    return case
