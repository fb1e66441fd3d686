"""Processes: sums in a fixed order, what is passed on, errors that reach all, and none that waits for a dead one."""

from __future__ import annotations

import os

import pytest
import torch

import fairkern as fk
from fairkern.ranks import ALONE, together
from tests.ranks import cases
from tests.ranks.processes import Failed, Processes

GROUPS = ((0, 1), None)  # two of them, and all three


@pytest.mark.parametrize("piece", [4, 2**20])
@pytest.mark.parametrize("group", GROUPS, ids=["two", "three"])
def test_sums_go_by_rank_wherever_a_value_lies(processes: Processes, group: tuple[int, ...] | None, piece: int) -> None:
    found = processes.run(cases.summed, piece, ranks=group)
    for place in range(5):
        expected = found[0][1][place].double()
        for _, given in found[1:]:
            expected = expected + given[place].double()
        for sums, given in found:
            assert sums[place].shape == given[place].shape
            assert torch.equal(sums[place], expected)  # to the bit, on all


def test_what_is_passed_on(processes: Processes) -> None:
    found = processes.run(cases.passed_on)
    for rank, given in enumerate(found):
        assert given["gathered"] == [0, 30_000, 60_000]
        assert given["told"] == "1" * 40_000
        assert given["spread"] == [0.0] * 4
        assert given["shared"] == [(0, 2), (1, 0), (2, 1), (3, 2), (4, 1)]  # the dearest to one, the others between two
        assert given["brought"] == ([[], [[0, 1, 2]], [[0, 1, 2], [3, 4, 5]]] if rank == 1 else [])


def test_an_error_of_one_reaches_all(processes: Processes) -> None:
    failed = processes.run(cases.raises, 1)
    assert failed[1].kind == "OSError"
    for other in (failed[0], failed[2]):
        assert other == Failed("RankError", "rank 1: stopped with OSError: the disk is gone", True, other.where)


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("model", "the model of rank 1 is not that of rank 0"),
        ("option", "samples_per_class= of rank 1 is not that of rank 0"),
        ("order", "the first batch of rank 1 is not that of rank 0"),
        ("length", "the loader's data of rank 1 is not that of rank 0"),
        ("plan", "plan= of rank 1 is not that of rank 0"),
        ("nothing", "the loader yields no batch"),
        ("blocks", "walk='blocks' is for one process"),
    ],
)
def test_what_differs_is_found_and_not_averaged(processes: Processes, what: str, names: str) -> None:
    failed = processes.run(cases.apart, what)
    assert {each.kind for each in failed} == {"InputError"}
    assert all(names in each.message for each in failed)


def test_processes_that_are_elsewhere(processes: Processes) -> None:
    failed = processes.run(cases.apart, "elsewhere")
    assert {each.kind for each in failed} == {"RankError"}
    assert any("recalibrate()" in each.message and "score()" in each.message for each in failed)


def test_nothing_ignores_a_group_that_it_was_not_told_of(processes: Processes) -> None:
    said = processes.run(cases.unsaid, ranks=[0])[0]
    assert len(said) == 8
    assert all("ranks=False" in text for text in said)


@pytest.mark.parametrize("who", [0, 2])
def test_a_process_that_dies_stops_the_others_in_time(who: int) -> None:
    patience = 2.0
    mortal = Processes(3, patience=patience)
    try:
        found = mortal.run(cases.dies, who)
    finally:
        mortal.end()
    assert found.pop(who) is None
    assert all(isinstance(seconds, float) and 0 <= seconds < patience + 10 for seconds in found), found


def test_a_single_process_needs_nothing() -> None:
    with together(None, "test()") as ranks:
        assert ranks is ALONE
    with pytest.raises(fk.InputError, match="no process group"), together(True, "test()"):
        pass
    with pytest.raises(fk.InputError, match="ranks is a str"), together("all", "test()"):
        pass


def test_processes_of_a_launcher_without_a_group_are_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "4")
    monkeypatch.setitem(os.environ, "RANK", "0")
    with pytest.raises(fk.InputError, match=r"one of 4 processes.*init_process_group"):
        fk.score(cases.net(), cases.data(), cases.CROSS_ENTROPY)
    fk.score(cases.net(), cases.data(), cases.CROSS_ENTROPY, ranks=False, progress=False)
