"""Proofs of branches: after those of what lies in them, with whole blocks gone and one branch beside another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from tests.branching import WIDTH, Language, Mlp, PreNorm, tokens


def frozen(units: fk.UnitMap) -> dict[str, str | None]:
    return {units.groups[g].name: units.groups[g].frozen for g in units.branched}


class Counting(nn.Module):
    """Blocks of which the number in the list decides what is done: none of them can go whole."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PreNorm() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for k, block in enumerate(self.blocks):
            x = block(x) * (1 + k)
        return x


def test_blocks_that_cannot_go_whole_lose_their_branches() -> None:
    units = fk.trace(Counting(), torch.randn(2, 5, WIDTH), depth=True)
    assert frozen(units) == {"blocks.*.attention": None, "blocks.*.mlp": None}
    assert not any(units.blocks["blocks"].branches)


class Penultimate(nn.Module):
    """What is read is the state before the last block, counted from the end; the other list is read as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PreNorm() for _ in range(4))
        self.others = nn.ModuleList(PreNorm() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1]))
        x = states[-2]
        for block in self.others:
            x = block(x)
        return x


def test_a_last_block_that_nobody_reads_stays_in_its_place() -> None:
    model, x = Penultimate().double().eval(), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    units = fk.trace(model, x, depth=True)
    assert set(frozen(units).values()) == {None}
    assert not any(units.blocks["blocks"].branches)
    assert all(units.blocks["others"].branches), "the other list loses whole blocks"
    last = {g for g in units.branched if units.groups[g].name.startswith("blocks.")}
    removed = [np.array([3] if g in last else [], dtype=np.int64) for g in range(len(units.groups))]
    plan = fk.Plan.of(build(units, removed))
    with torch.no_grad(), plan.masked(model):
        expected = model(x)
    with torch.no_grad():
        torch.testing.assert_close(fk.apply(model, plan)(x), expected, rtol=1e-12, atol=1e-12)


class Asking(nn.Module):
    """Looks at a parameter of an MLP beside calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(Mlp() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for mlp in self.mlps:
            if mlp.down.weight.shape[0] != x.shape[-1]:
                raise ValueError("does not fit")
            x = x + mlp(x)
        return x


def test_what_code_asks_of_a_branch_keeps_it() -> None:
    with pytest.raises(AttributeError):
        fk.model.nothing.Nothing.of(Mlp(), fk.types.BranchPart("")).down.weight  # noqa: B018
    units = fk.trace(Asking(), torch.randn(2, WIDTH), depth=True)
    (reason,) = frozen(units).values()
    assert reason is not None
    assert "pruned model fails" in reason
    assert all(units.groups[g].frozen is None for g in range(len(units.groups)) if g not in units.branched)


def test_what_lies_in_a_branch_is_proven_as_without_depth() -> None:
    """Half of the branches are gone in a proof of branches: that says nothing of what is in them."""
    torch.manual_seed(0)
    model, x = Language(PreNorm, 2), tokens()
    plain, deep = fk.trace(model, x), fk.trace(model, x, depth=True)
    inner = [g for g in range(len(deep.groups)) if g not in deep.branched]
    assert [deep.groups[g].name for g in inner] == [group.name for group in plain.groups]
    assert [(a.module, a.attribute) for a in deep.attributes] == [(a.module, a.attribute) for a in plain.attributes]
    assert [s.number for s in deep.sites] == [s.number for s in plain.sites]


class Both(nn.Module):
    """Divides by what the MLP adds where the attention adds nothing: neither may go alone, together they may."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.one, self.norm2, self.two = nn.LayerNorm(WIDTH), Mlp(), nn.LayerNorm(WIDTH), Mlp(16)

    def forward(self, x: Tensor) -> Tensor:
        read = x
        x = x + self.one(self.norm1(x))
        if type(self.one).__name__ == "Nothing" and type(self.two).__name__ != "Nothing":
            x = x + 1
        del read
        return x + self.two(self.norm2(x))


def test_a_branch_that_may_not_go_without_the_other_is_found() -> None:
    model = nn.Sequential(*(Both() for _ in range(4)))
    units = fk.trace(model, torch.randn(2, WIDTH), depth=True)
    reasons = frozen(units)
    assert any(reason is not None and "differs from masked" in reason for reason in reasons.values()), reasons
