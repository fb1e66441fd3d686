"""Random small networks: whatever a trace allows to cut is cut exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairkern.plans.removals import random_removal
from tests.axes.harness import assert_exact, randomised, unit_map


@dataclass(frozen=True)
class Step:
    """One operation on earlier results: `kind`, which results it reads (counted from the last), and numbers."""

    kind: str
    reads: tuple[int, int]
    numbers: tuple[int, int]


KINDS = (
    *(
        "conv",
        "conv",
        "conv",
        "add",
        "add",
        "cat",
        "again",
        "chunk",
        "shuffle",
        "halves",
        "slice",
        "grouped",
        "depthwise",
    ),
    *("bn", "relu", "multiply", "gate", "pool", "pad", "roll", "norm", "permute", "repeat", "stack", "transposed"),
    *("upsample", "softmax"),
)
STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(KINDS),
        st.tuples(st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.integers(1, 4), st.integers(1, 4)),
    ),
    min_size=3,
    max_size=12,
)


@dataclass
class Built:
    """Channels of every result so far and the modules that they need; a step that does not fit is left out."""

    layers: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    channels: list[int] = field(default_factory=lambda: [3])
    steps: list[tuple[str, int, int, Any]] = field(default_factory=list)

    def add(self, step: Step) -> None:
        i, j = (max(0, len(self.channels) - 1 - r) for r in step.reads)
        c, d = self.channels[i], self.channels[j]
        a, b = step.numbers
        name, layer, out = f"l{len(self.steps)}", None, c
        extra: Any = (a, b)
        if step.kind == "conv":
            out = 2 * a + b
            layer = nn.Conv2d(c, out, 1 + 2 * (b % 2), padding=b % 2, bias=a > 2)
        elif step.kind == "transposed":
            out = 2 * a
            layer = nn.ConvTranspose2d(c, out, 3, padding=1)
        elif step.kind == "grouped":
            g = next((g for g in (a + 1, 2, 3) if c % g == 0), 0)
            if not g:
                return
            out = g * b
            layer = nn.Conv2d(c, out, 1, groups=g)
        elif step.kind == "depthwise":
            out = c * (1 + a // 4)
            layer = nn.Conv2d(c, out, 3, padding=1, groups=c)
        elif step.kind == "bn":
            layer = nn.BatchNorm2d(c)
        elif step.kind == "norm":
            layer = nn.InstanceNorm2d(c, affine=True) if a > 2 else nn.GroupNorm(1, c)
        elif step.kind == "gate":
            layer = nn.Sequential(nn.Conv2d(c, a + 1, 1), nn.ReLU(), nn.Conv2d(a + 1, c, 1))
        elif step.kind == "again":
            if not len(self.layers):
                return
            name = list(self.layers)[a % len(self.layers)]
            layer = self.layers[name]
            if not isinstance(layer, nn.Conv2d) or layer.in_channels != c:
                return
            out = layer.out_channels
        elif step.kind in ("add", "multiply", "stack") and c != d:
            return
        elif step.kind == "cat":
            out = c + d
        elif step.kind == "repeat":
            out = 2 * c
        elif step.kind in ("chunk", "halves", "shuffle"):
            if c % 2 or (step.kind == "shuffle" and c <= 4):  # as many groups as channels: the code's fixed 2 is cut
                return
            out = c if step.kind == "shuffle" else c // 2
        elif step.kind == "pad":
            out = c + a
        elif step.kind == "slice":
            if c <= a:
                return
            out = c - a
        if out > 48:
            return
        if layer is not None:
            self.layers[name] = layer
        self.steps.append((step.kind, i, j, (name, extra)))
        self.channels.append(out)


class Random(nn.Module):
    def __init__(self, steps: list[Step], flatten: bool) -> None:
        super().__init__()
        built = Built()
        for step in steps:
            built.add(step)
        self.layers, self.steps, self.flatten = built.layers, built.steps, flatten
        self.head = nn.Linear(built.channels[-1] * (16 if flatten else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for kind, i, j, (name, numbers) in self.steps:
            values.append(self._step(kind, values[i], values[j], name, numbers))
        last = values[-1]
        return self.head(last.flatten(1) if self.flatten else last.mean((2, 3)))

    def _step(self, kind: str, x: Tensor, y: Tensor, name: str, numbers: tuple[int, int]) -> Tensor:
        b, _, h, w = x.shape
        if kind == "gate":
            return x * torch.sigmoid(self.layers[name](F.adaptive_avg_pool2d(x, 1)))
        if name in self.layers:
            return self.layers[name](x)
        return {
            "relu": lambda: F.relu(x) if numbers[0] > 2 else F.relu(x.clone(), inplace=True),
            "add": lambda: x + y,
            "multiply": lambda: x * y,
            "stack": lambda: torch.stack([x, y], numbers[0] % 3).amax(numbers[0] % 3),
            "cat": lambda: torch.cat([x, y], 1),
            "chunk": lambda: x.chunk(2, 1)[numbers[0] % 2],
            "halves": lambda: torch.maximum(*x.chunk(2, 1)),
            "shuffle": lambda: x.view(b, 2, -1, h, w).transpose(1, 2).reshape(b, -1, h, w),
            "pool": lambda: F.max_pool2d(x, 3, 1, 1),
            "pad": lambda: F.pad(x, (0, 0, 0, 0, numbers[0], 0)),
            "roll": lambda: x.roll(numbers[0], 2),
            "slice": lambda: x[:, numbers[0] :],
            "permute": lambda: x.permute(0, 2, 3, 1).tanh().movedim(3, 1),
            "repeat": lambda: x.repeat(1, 2, 1, 1),
            "upsample": lambda: F.avg_pool2d(F.interpolate(x, scale_factor=2), 2),
            "softmax": lambda: x.flatten(2).softmax(2).view_as(x) * 16,
        }[kind]()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(STEPS, st.booleans(), st.integers(0, 5))
def test_whatever_may_be_cut_is_cut_exactly(steps: list[Step], flatten: bool, seed: int) -> None:
    torch.manual_seed(seed)
    model = randomised(Random(steps, flatten).double().eval())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    units = unit_map(model, [x])
    assert not any("operators without a rule" in note for note in units.notes)
    for fraction in (0.3, 0.7):
        assert_exact(model, units, random_removal(units, fraction, seed), [x], tells=False)
