"""What a proof removes: about half of every group, and of groups of one size as different counts as there are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.plans.removals import about_half


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
