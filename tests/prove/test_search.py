"""What an error tells of where it was raised shortens a search, and never changes what holds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from fairkern.prove import prove
from fairkern.prove.search import Failed, search
from fairkern.prove.trial import _Trial
from tests.compact.handmade import units_of


@pytest.mark.parametrize("suspects", [{20}, {19, 20, 21}, {3, 4}, set(range(64)), set()])
def test_suspects(suspects: set[int]) -> None:
    """Right ones leave little to do; wrong ones cost a run."""
    runs: list[Sequence[int]] = []

    def fails(groups: Sequence[int]) -> Failed | None:
        runs.append(groups)
        return Failed("bad", True, frozenset(suspects)) if 20 in groups else None

    assert search(range(64), fails).keys() == {20}
    assert len(runs) <= (5 if 20 in suspects and len(suspects) < 4 else 12)
    assert len({frozenset(run) for run in runs}) == len(runs)


def test_suspects_named_one_after_the_other() -> None:
    def fails(groups: Sequence[int]) -> Failed | None:
        bad = sorted({7, 30, 50} & set(groups))
        return Failed(f"{bad[0]}", True, frozenset({bad[0]})) if bad else None

    assert {g: why.reason for g, why in search(range(64), fails).items()} == {7: "7", 30: "30", 50: "50"}


def test_as_many_as_are_too_many() -> None:
    runs: list[Sequence[int]] = []

    def fails(groups: Sequence[int]) -> Failed | None:
        runs.append(groups)
        return Failed("bad") if set(groups) & {1, 2, 3} else None

    found = search([1, 2, 3], fails, passing=range(10, 20), said=Failed("bad"), most=1)
    assert found.keys() == {1}
    assert all(set(range(10, 20)) <= set(run) for run in runs)


class Stages(nn.Module):
    """Many stages of which one has its size in its code."""

    class Stage(nn.Module):
        def __init__(self, fixed: bool) -> None:
            super().__init__()
            self.up, self.down, self.fixed = nn.Linear(6, 16), nn.Linear(16, 6), fixed

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.up(x))
            return x + self.down(hidden.reshape(-1, 4, 4).flatten(1) if self.fixed else hidden)

    def __init__(self, stages: int, fixed: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(self.Stage(i == fixed) for i in range(stages))

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


def test_the_groups_of_the_module_that_failed_are_tried_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Stages(32, 21)
    units = units_of(
        model,
        {f"s{i}": (16, f"stages.{i}.up.weight:0 stages.{i}.up.bias:0 stages.{i}.down.weight:1>") for i in range(32)},
        {f"stages.{i}.{name}": f"s{i}" for i in range(32) for name in ("up.out_features", "down.in_features")},
    )
    runs = []
    failure = _Trial.failure
    monkeypatch.setattr(_Trial, "failure", lambda self, groups: runs.append(groups) or failure(self, groups))
    failed = prove(model, units, torch.randn(4, 6))
    assert failed.keys() == {21}
    assert failed[21].startswith("pruned model fails: RuntimeError: ")
    assert len(runs) <= 3
