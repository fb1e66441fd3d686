"""The benchmark of sweeps at a small size."""

from __future__ import annotations

import pytest
from torch import nn

from bench import test_sweep as bench


def small() -> nn.Module:
    layers = (nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


@pytest.mark.parametrize("compensate", ["least_squares", "none"])
def test_both_sides_evaluate_the_same_models(compensate: str) -> None:
    compared, more = bench.against_its_parts(bench.Case("small", small, 40, 8, 20), compensate, rounds=1)
    assert compared.ours.p50 > 0
    assert compared.rival.p50 > 0
    assert more["rows"] == 18
    assert more["stages_s"].keys() == {"trace", "score", "plan", "cut", "evaluate"}
    assert more["stages_s"]["cut"] > 0


def test_the_rival_is_without_the_cuts() -> None:
    case = bench.Case("small", small, 40, 8, 20)
    work = bench.Work(bench.seeded(case.build), case.data(), "none")
    assert len(work.parts()) == 19
    assert len(work.sweeps) == 1
