"""Branches of residual blocks are found by what is added to what: attention, MLPs, convolutions, side by side too."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.axes import solutions
from fairkern.types import Numbers, Side, Silence, UnitMap
from tests.branching import WIDTH, Inline, Language, Mlp, Parallel, PostNorm, PreNorm, Residual, images, tokens


def traced(model: nn.Module, inputs: Tensor, depth: bool = True) -> UnitMap:
    return solutions(model, [inputs], depth=depth)[0].units


def groups(units: UnitMap) -> dict[str, int]:
    return {units.groups[g].name: units.groups[g].units for g in sorted(units.branched)}


def parts(units: UnitMap, name: str, unit: int) -> list[str]:
    return [part.module for part in units.branches[name][unit].parts]


LANGUAGE = {"blocks.*.attention": 4, "blocks.*.mlp": 4}


@pytest.mark.parametrize(
    ("model", "inputs", "expected", "whole"),
    [
        (lambda: Language(PreNorm), tokens, LANGUAGE, 2),
        (lambda: Language(PreNorm, after=True), tokens, LANGUAGE, 2),
        (lambda: Language(PostNorm), tokens, LANGUAGE, 0),
        (lambda: Language(Parallel), tokens, LANGUAGE, 2),
        (lambda: Language(Inline), tokens, {"blocks.*.o": 4, "blocks.*.down": 4}, 2),
        (Residual, images, {"stage1.*.conv2": 3, "stage2.*.conv2": 2}, None),
        (lambda: Residual(narrow=True), images, {"stage1.*.conv2": 3, "stage2.*.conv2": 2}, None),
    ],
    ids=["pre-norm", "norms behind", "post-norm", "parallel", "inline", "basic", "bottleneck"],
)
def test_branches_at_one_place_of_several_blocks_are_a_group(
    model: Callable[[], nn.Module], inputs: Callable[[], Tensor], expected: dict[str, int], whole: int | None
) -> None:
    units = traced(model(), inputs())
    assert groups(units) == expected
    for g in units.branched:
        group = units.groups[g]
        assert (group.kind, group.frozen, group.least) == ("branch", None, 1)
        assert [a.silence for a in group.axes] == [Silence.NOTHING_ADDED]
        assert [tap.side for tap in group.taps] == [Side.BRANCH]
    if whole is None:
        assert not units.blocks
    else:
        assert [len(own) for own in units.blocks["blocks"].branches] == [whole] * 4


def test_without_depth_nothing_is_looked_for() -> None:
    units = traced(Language(), tokens(), depth=False)
    assert not units.branched
    assert not units.branches
    assert not units.blocks


def test_a_branch_takes_the_norm_that_nobody_else_reads() -> None:
    units = traced(Language(PreNorm, after=True), tokens())
    assert parts(units, "blocks.*.mlp", 1) == ["blocks.1.norm2", "blocks.1.mlp", "blocks.1.after2"]
    units = traced(Language(Parallel), tokens())
    assert parts(units, "blocks.*.mlp", 1) == ["blocks.1.mlp"]


def test_the_last_part_returns_what_is_added() -> None:
    units = traced(Language(), tokens())
    last = units.branches["blocks.*.attention"][2].last
    assert (last.module, last.entries, last.place, last.source) == ("blocks.2.attention", 2, 0, 0)
    branch = traced(Residual(), images()).branches["stage2.*.conv2"][0]
    assert (branch.last.module, branch.dim, branch.width) == ("stage2.1.bn2", -3, 12)


def test_costs_of_a_branch_go_with_it() -> None:
    model = Language(PreNorm, 3)
    units = traced(model, tokens())
    mlp = next(g for g in units.branched if units.groups[g].name == "blocks.*.mlp")
    own = {k for k, e in enumerate(units.extents) if e.unit == 1 and e.parts == ((mlp, 1),)}
    lengths = [e.length for e in units.extents]
    params = sum(t.coefficient * math.prod(lengths[e] for e in t.extents) for t in units.params if own & {*t.extents})
    names = ("blocks.1.mlp.", "blocks.1.norm2.")
    assert params == sum(p.numel() for n, p in model.named_parameters() if n.startswith(names))
    flops = sum(t.coefficient * math.prod(lengths[e] for e in t.extents) for t in units.flops if own & {*t.extents})
    assert flops == 2 * 2 * tokens().numel() * WIDTH * 12


class Shared(nn.Module):
    """One MLP for all blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.norms, self.mlp = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3)), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = x + self.mlp(norm(x))
        return x


class Read(nn.Module):
    """What the branches add is returned as well."""

    def __init__(self) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(Mlp() for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        made = []
        for mlp in self.mlps:
            made.append(mlp(x))
            x = x + made[-1]
        return [x, *made]


class Scaled(nn.Module):
    """The stream is weighed in the sum: without the branch it would not be handed on as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(Mlp() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for mlp in self.mlps:
            x = torch.add(mlp(x), x, alpha=2)
        return x


class Weights(nn.Module):
    """The branches are functions of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(WIDTH, WIDTH)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = x + torch.relu(x @ weight)
        return x


@pytest.mark.parametrize("kind", [Shared, Read, Scaled, Weights])
def test_what_is_no_branch(kind: type[nn.Module]) -> None:
    units = traced(kind(), torch.randn(2, WIDTH))
    assert not units.branched


class Lonely(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.head = Mlp(), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.mlp(x))


def test_a_branch_that_has_no_other_at_its_place_stays() -> None:
    units = traced(Lonely(), torch.randn(2, WIDTH))
    (g,) = units.branched
    assert units.groups[g].frozen == "no other branch has its place in another block"


def test_what_is_added_to_a_projection_stays_and_says_so() -> None:
    kept = [(k.kind, k.module) for k in traced(Residual(), images()).kept if "projection" in k.reason]
    assert kept == [("branch", "stage2.0.bn2")]
    assert not any("projection" in k.reason for k in traced(Language(), tokens()).kept)


def test_a_layer_of_several_kinds_keeps_one_of_each_where_something_is_kept_by_number() -> None:
    model = Language(PreNorm, 4)
    model.config = type("Config", (), {})()
    vars(model.config).update(num_hidden_layers=4, layer_types=["near", "far"] * 2)
    units = traced(model, tokens())
    assert groups(units) == {"blocks.*.attention[near]": 2, "blocks.*.attention[far]": 2, "blocks.*.mlp": 4}
    held = units.blocks["blocks"]
    assert held.kinds == ("near", "far") * 2
    assert held.counts == (("", "config.num_hidden_layers"),)
    assert held.rows == (("", "config.layer_types"),)
    assert held.numbers == (Numbers("attention", "layer_idx", (0, 1, 2, 3)),)


def test_explain_shows_them() -> None:
    said = fk.trace(Language(), tokens(), depth=True).explain()
    assert "blocks.*.attention" in said
    assert "branch" in said
