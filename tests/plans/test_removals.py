"""Units that go at random: a share of every group, and what a proof removes, about half of each and seldom as many."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.plans.removals import about_half, nothing, random_removal
from tests.plans.maps import group, unit_map


@pytest.mark.parametrize(("width", "counts"), [(2, {1}), (3, {1, 2}), (4, {1, 2, 3}), (16, {6, 7, 8, 9, 10})])
def test_groups_of_one_size_lose_different_counts(width: int, counts: set[int]) -> None:
    layers = [nn.Linear(width, width) for _ in range(len(counts) + 1)]
    units = fk.trace(nn.Sequential(*layers), torch.randn(2, width), verify=False)
    for seed in range(3):
        removed = about_half(units, seed)
        assert sorted(map(len, removed)) == sorted(counts)
        assert all(r[0] == 0 and len(set(r.tolist())) == len(r) for r in removed)
    stays = replace(units, groups=tuple(replace(g, frozen="asked") for g in units.groups))
    assert not any(len(r) for r in about_half(stays, 0))


def left(units: int, fraction: float, **limits: int) -> int:
    """Units that stay of a group when a share goes at random."""
    removed = random_removal(unit_map(group("a", units, **limits)), fraction, seed=0)[0]
    assert removed.dtype == np.int64
    assert sorted(set(removed.tolist())) == removed.tolist()
    return units - len(removed)


@pytest.mark.parametrize(
    ("units", "fraction", "limits", "stays"),
    [
        (10, 0.35, {}, 7),
        (10, 0.0, {}, 9),  # at least one goes
        (10, 1.0, {}, 1),
        (10, 1.0, {"least": 4}, 4),
        (4, 0.5, {"least": 4}, 4),
        (1, 1.0, {}, 1),
        (12, 0.5, {"multiple": 4}, 8),  # seven would stay
        (12, 0.4, {"multiple": 4}, 8),
        (12, 0.7, {"multiple": 4}, 4),
        (12, 0.01, {"multiple": 4}, 8),
        (14, 0.01, {"multiple": 4}, 12),
        (14, 0.5, {"multiple": 4}, 8),
        (13, 0.5, {"multiple": 3}, 9),
        (13, 0.01, {"multiple": 5}, 10),
        (4, 0.9, {"multiple": 4}, 4),
        (12, 0.9, {"multiple": 4, "least": 5}, 8),
        (12, 0.01, {"multiple": 8, "least": 8}, 8),
        (12, 0.01, {"multiple": 8, "least": 9}, 12),
    ],
)
def test_a_share_at_random_keeps_to_what_a_group_needs(
    units: int, fraction: float, limits: dict[str, int], stays: int
) -> None:
    assert left(units, fraction, **limits) == stays


def test_every_set_loses_units_of_its_own() -> None:
    units = unit_map(group("a", 9, sets=3), group("b", 5), group("c", 5, frozen="asked"))
    inner, own, none = random_removal(units, 0.5, seed=4)
    assert inner.shape == (3, 4)
    assert (np.diff(inner) > 0).all()
    assert len({tuple(row) for row in inner.tolist()}) > 1
    assert own.shape == (2,)
    assert none.shape == (0,)
    assert [len(r) for r in nothing(units)] == [0, 0, 0]
    assert random_removal(unit_map(group("a", 1, sets=3)), 0.5, seed=0)[0].shape == (0,)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_shares_may_be_none_and_all(fraction: float) -> None:
    assert len(random_removal(unit_map(group("a", 3)), fraction, seed=0)[0]) == (1 if fraction == 0 else 2)


def counts(size: int, groups: int, least: int = 1, seed: int = 0) -> list[int]:
    """Units that go of so many equal groups, in order."""
    removed = about_half(unit_map(*(group(f"g{i}", size, least=least) for i in range(groups))), seed)
    return [len(r) for r in removed]


def test_counts_lie_about_the_half_and_just_half_comes_last() -> None:
    for size, low, high in ((16, 6, 10), (32, 12, 20), (9, 3, 5), (6, 2, 4)):
        dealt = counts(size, high - low + 1)
        assert sorted(dealt) == list(range(low, high + 1))
        assert dealt[-1] == size // 2
        again = counts(size, 2 * (high - low + 1))
        assert sorted(again) == sorted([*dealt, *dealt])
    assert counts(32, 5, seed=1) != counts(32, 5, seed=2)
    assert counts(32, 5, seed=1) == counts(32, 5, seed=1)


def test_as_many_stay_as_a_group_needs() -> None:
    assert set(counts(16, 12, least=8)) == {6, 7, 8}
    assert set(counts(16, 12, least=9)) == {6, 7}
    assert counts(16, 3, least=13) == [3, 3, 3]  # less than three eighths, but what can go
    assert counts(4, 2, least=4) == [0, 0]
    assert counts(4, 2, least=3) == [1, 1]
    assert counts(1, 2) == [0, 0]


def test_groups_of_other_sizes_are_dealt_for_themselves() -> None:
    units = unit_map(group("a", 4), group("b", 6), group("c", 4), group("d", 6), group("e", 4), group("f", 6))
    removed = [len(r) for r in about_half(units, 0)]
    assert sorted(removed[::2]) == [1, 2, 3]
    assert sorted(removed[1::2]) == [2, 3, 4]
    frozen = about_half(unit_map(group("a", 4), group("b", 4, frozen="asked"), group("c", 4, sets=2)), 0)
    assert frozen[1].shape == (0,)
    assert frozen[2].shape[0] == 2
