"""Scores, plans and what is left of a model are those of one process, whoever has heard which batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from bench.zoo.mixtures import MIXTURES
from tests.ranks import cases
from tests.ranks.processes import Failed, Processes

ONE, TWO = (0,), (0, 1)
UNEVEN, FEW = (8, 8, 8, 8, 3), (9, 8)  # batches; of the second there are fewer than three processes
GRAM = {"gram": True}


def run(processes: Processes, group: tuple[int, ...] | None, function: Any, *args: Any) -> list[Any]:
    found = processes.run(function, *args, ranks=group)
    for each in found:
        assert not isinstance(each, Failed), each.where
    return found


def assert_same(a: Any, b: Any, tolerance: float) -> None:
    """Equal but for what adding up in another order can do."""
    if isinstance(a, Mapping):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key], tolerance)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other, tolerance)
    elif isinstance(a, np.ndarray) and a.dtype.kind == "f":
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0.0) <= tolerance * np.abs(a).max(initial=0.0)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=max(tolerance, 1e-12), nan_ok=True)
    else:
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


@pytest.mark.parametrize("group", [TWO, None], ids=["two", "three"])
@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        (UNEVEN, GRAM),
        (FEW, GRAM),
        (UNEVEN, {"reduction": "signed", "samples_per_class": 4}),
        (FEW, {"reduction": "per_class", "recipe": "paper"}),
        (UNEVEN, {"class_of": False, "gram": True}),
    ],
    ids=["moments", "fewer batches", "signed", "by class", "no classes"],
)
def test_scores_are_those_of_one_process(
    processes: Processes, group: tuple[int, ...] | None, sizes: tuple[int, ...], options: dict[str, Any]
) -> None:
    ((whole, removed),) = run(processes, ONE, cases.scored, sizes, options)
    for scores, theirs in run(processes, group, cases.scored, sizes, options):
        assert_same(whole, scores, 1e-12)
        assert_same(whole["signals"].get("wasserstein"), scores["signals"].get("wasserstein"), 0.0)
        assert_same(removed, theirs, 0.0)  # of units that are twice there the same one


def test_what_a_budget_drops_on_one_waits_on_all(processes: Processes) -> None:
    (whole,) = run(processes, ONE, cases.scored_in_passes, 1_500)
    assert whole["passes"] == 5
    for scores in run(processes, TWO, cases.scored_in_passes, 1_500):
        assert 1 < scores["passes"] < 5  # each holds the samples of its batches
        assert_same(whole["signals"], scores["signals"], 1e-12)


@pytest.mark.parametrize("kind", ["detector", "recurrent", "fused experts", *MIXTURES])
def test_what_shows_when_a_model_runs(processes: Processes, kind: str) -> None:
    ((whole, removed),) = run(processes, ONE, cases.scored_unusually, kind)
    for scores, theirs in run(processes, None, cases.scored_unusually, kind):
        assert_same(whole, scores, 1e-10)
        assert_same(removed, theirs, 0.0)


@pytest.mark.parametrize("kind", ["recurrent", "fused experts", next(iter(MIXTURES))])
def test_what_shows_when_it_is_refitted(processes: Processes, kind: str) -> None:
    (whole,) = run(processes, ONE, cases.pruned_unusually, kind)
    for weights in run(processes, None, cases.pruned_unusually, kind):
        assert_same(whole, weights, 1e-4)


@pytest.mark.parametrize("count", [2, 5])
def test_places_of_coarser_grids_are_counted_over_all_batches(processes: Processes, count: int) -> None:
    (whole,) = run(processes, ONE, cases.scored_by_place, count)
    for scores in run(processes, None, cases.scored_by_place, count):
        assert_same(whole, scores, 1e-12)


@pytest.mark.parametrize("count", [2, 4])
def test_what_a_model_keeps_is_seen_whoever_has_its_second_batch(processes: Processes, count: int) -> None:
    (whole,) = run(processes, ONE, cases.kept, count)
    assert whole
    assert all(found == whole for found in run(processes, None, cases.kept, count))


@pytest.mark.parametrize("group", [TWO, None], ids=["two", "three"])
@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        (UNEVEN, {"keep_params": 0.5}),
        (FEW, {"keep_params": 0.5, "iterations": 2}),
        (UNEVEN, {"tod": 0.6, "compensate": "least_squares", "inplace": True}),
        (FEW, {"keep_params": 0.5, "compensate": "joint"}),
    ],
    ids=["sequential", "steps", "in place", "joint"],
)
def test_what_is_left_is_that_of_one_process(
    processes: Processes, group: tuple[int, ...] | None, sizes: tuple[int, ...], options: dict[str, Any]
) -> None:
    ((whole, removed, _),) = run(processes, ONE, cases.pruned, sizes, options)
    found = run(processes, group, cases.pruned, sizes, options)
    for weights, theirs, said in found:
        assert_same(removed, theirs, 0.0)
        assert_same(whole, weights, 1e-4 if options.get("compensate") == "joint" else 1e-8)  # it descends step by step
        assert_same(found[0][0], weights, 0.0)
        assert said == found[0][2]  # reports, what a clock said among it


@pytest.mark.parametrize("sizes", [UNEVEN, FEW], ids=["uneven", "fewer batches"])
def test_running_statistics_are_those_of_all_batches(processes: Processes, sizes: tuple[int, ...]) -> None:
    (whole,) = run(processes, ONE, cases.recalibrated, sizes)
    for found in run(processes, None, cases.recalibrated, sizes):
        assert_same(whole, found, 1e-12)


def test_a_sweep_is_that_of_one_process_and_the_first_evaluates(processes: Processes) -> None:
    ((rows, curve, calls),) = run(processes, ONE, cases.swept)
    found = run(processes, TWO, cases.swept)
    assert [evaluated for _, _, evaluated in found] == [calls, 0]
    for mine, tried, _ in found:
        assert_same(rows, mine, 1e-5)  # of float32, through a fit
        assert_same(curve, tried, 1e-5)
