"""Branches that go: what is left computes what the masked model does, and knows its own numbers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.model.nothing import Nothing
from fairkern.plans.build import build
from fairkern.plans.removals import NONE
from fairkern.types import UnitMap
from tests.branching import Inline, Language, Parallel, PostNorm, PreNorm, Residual, images, tokens

MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "pre-norm": (lambda: Language(PreNorm), tokens),
    "norms behind": (lambda: Language(PreNorm, after=True), tokens),
    "post-norm": (lambda: Language(PostNorm), tokens),
    "parallel": (lambda: Language(Parallel), tokens),
    "inline": (lambda: Language(Inline), tokens),
    "basic": (Residual, images),
    "bottleneck": (lambda: Residual(narrow=True), images),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    kind, inputs = MODELS[name]
    model, x = kind().double().eval(), inputs()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # a shift that has to go as well
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    return model, x.double() if x.is_floating_point() else x


def without(units: UnitMap, gone: Sequence[Sequence[int]], inside: float = 0.0, seed: int = 0) -> fk.Plan:
    """Without these branches of each group, and a share of what is inside."""
    generator = np.random.default_rng(seed)
    removed, branches = [], iter(gone)
    for g, group in enumerate(units.groups):
        if g in units.branched:
            removed.append(np.array(next(branches), dtype=np.int64))
        elif group.frozen is None and inside:
            removed.append(np.sort(generator.permutation(group.units)[: int(inside * group.units)]))
        else:
            removed.append(NONE)
    return fk.Plan.of(build(units, removed))


def apart(model: nn.Module, small: nn.Module, plan: fk.Plan, x: Tensor) -> float:
    with torch.no_grad():
        with plan.masked(model):
            expected = model(x)
        return float((small(x) - expected).abs().max())


@pytest.mark.parametrize("inside", [0.0, 0.5])
@pytest.mark.parametrize("name", MODELS)
def test_cut_is_masked(name: str, inside: float) -> None:
    model, x = made(name)
    units = fk.trace(model, x, depth=True)
    assert all(units.groups[g].frozen is None for g in units.branched), units.explain()
    for gone in ([[0], [1]], [[0, 2], [0]], [[], [1]], [[1, 2], []]):
        plan = without(units, gone, inside)
        small = fk.apply(model, plan)
        assert apart(model, small, plan, x) < 1e-12
        assert sum(p.numel() for p in small.parameters()) == plan.result["params_after"]


def test_masked_is_as_if_the_branch_added_zero_and_is_put_back() -> None:
    model, x = made("pre-norm")
    plan = without(fk.trace(model, x, depth=True), [[1], [2]])
    before = model(x)

    def zero(_: nn.Module, args: object, output: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        return (output[0] * 0, output[1]) if isinstance(output, tuple) else output * 0

    handles = [m.register_forward_hook(zero) for m in (model.blocks[1].attention, model.blocks[2].mlp)]
    expected = model(x)
    for handle in handles:
        handle.remove()
    with plan.masked(model):
        assert torch.equal(model(x), expected)
    assert torch.equal(model(x), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_block_without_branches_goes_and_the_others_move_up() -> None:
    model, x = made("pre-norm")
    plan = without(fk.trace(model, x, depth=True), [[0, 2], [0, 3]])
    small = fk.apply(model, plan)
    assert len(small.blocks) == 3
    assert plan.lists == {"blocks": ("0", "1", "2", "3")}
    assert [block.attention.layer_idx for block in (small.blocks[0], small.blocks[2])] == [0, 1]
    assert isinstance(small.blocks[1].attention, Nothing)
    assert isinstance(small.blocks[2].mlp, Nothing)
    gone = ("blocks.3", "blocks.1.attention", "blocks.1.norm1", "blocks.2.mlp", "blocks.2.norm2")
    assert set(small.state_dict()) == {name for name in model.state_dict() if not name.startswith(gone)}


def test_units_inside_a_branch_that_goes_are_none_that_go() -> None:
    model, x = made("pre-norm")
    units = fk.trace(model, x, depth=True)
    plan, alone = without(units, [[], [1]], 0.5), without(units, [[], []], 0.5)
    removed = {group.name: len(group.removed) for group in plan.groups}
    assert removed["blocks.1.mlp.up"] == 0
    assert removed["blocks.0.mlp.up"] == 6
    assert not any(a.axis.tensor.startswith("blocks.1.mlp") for a in plan.axes)
    inside = sum(p.numel() for n, p in model.named_parameters() if n.startswith(("blocks.1.mlp", "blocks.1.norm2")))
    left = sum(p.numel() for p in fk.apply(model, alone).blocks[1].mlp.parameters()) + 2 * 8
    assert alone.result["params_after"] - plan.result["params_after"] == left < inside


def test_a_configuration_counts_the_blocks_that_are_left() -> None:
    model = Language(PreNorm, 4).double().eval()
    model.config = Config()
    x = tokens()
    units = fk.trace(model, x, depth=True)
    plan = without(units, [[0], [0, 1], [1]])  # near, MLPs, far: block 0, and one branch of blocks 1 and 3
    small = fk.apply(model, plan)
    assert (small.config.num_hidden_layers, small.config.layer_types) == (3, ["far", "near", "far"])
    assert (model.config.num_hidden_layers, model.config.layer_types) == (4, ["near", "far"] * 2)
    assert apart(model, small, plan, x) < 1e-12
    numbers = {k: block.attention.layer_idx for k, block in enumerate(small.blocks)}
    assert numbers[0] == 0  # the first that is far
    assert numbers[1] == 1
    model.config.layer_types = ["near"]
    with pytest.raises(fk.PlanMismatchError, match=r"layer_types is .* expects 4 entries"):
        fk.apply(model, plan)


class Config:
    def __init__(self) -> None:
        self.num_hidden_layers, self.layer_types = 4, ["near", "far"] * 2


@pytest.mark.parametrize("name", ["pre-norm", "bottleneck"])
def test_a_cut_model_is_copied_pickled_saved_exported_and_cut_in_place(name: str, tmp_path: Path) -> None:
    model, x = made(name)
    plan = without(fk.trace(model, x, depth=True), [[0, 2], [1]], 0.5)
    small = fk.apply(model, plan)
    expected = small(x)
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(other(x), expected)
    assert torch.equal(torch.export.export(small, (x,)).module()(x), expected)
    assert torch.equal(torch.compile(small, backend="eager", fullgraph=True)(x), expected)
    assert torch.equal(torch.fx.symbolic_trace(small)(x), expected)
    fk.save_pruned(small, plan, tmp_path / "small")
    again = fk.load_pruned(MODELS[name][0]().double().eval(), tmp_path / "small")
    assert torch.equal(again(x), expected)
    fk.apply(model, plan, inplace=True)
    assert torch.equal(model(x), expected)


def test_plans_and_maps_with_branches_come_back(tmp_path: Path) -> None:
    model, x = made("bottleneck")
    units = fk.trace(model, x, depth=True)
    plan = without(units, [[0], [1]], 0.5)
    plan.save(tmp_path / "plan.json")
    again = fk.Plan.load(tmp_path / "plan.json")
    assert (again.branches, again.rows, again.lists) == (plan.branches, plan.rows, plan.lists)
    assert [(a.axis, a.silence) for a in again.axes] == [(a.axis, a.silence) for a in plan.axes]
    scores = fk.score(model, [(x, torch.tensor([0, 1]))] * 2, nn.functional.cross_entropy, units=units, gram=True)
    scores.save(tmp_path / "scores")
    held = fk.Scores.load(tmp_path / "scores").units
    assert (held.branches, held.blocks, held.depth) == (units.branches, units.blocks, True)
    assert [held.groups[g].axes[0].silence for g in held.branched] == [
        units.groups[g].axes[0].silence for g in units.branched
    ]


def test_a_plan_for_another_depth_is_refused() -> None:
    model, x = made("pre-norm")
    plan = without(fk.trace(model, x, depth=True), [[0], [1]])
    with pytest.raises(fk.PlanMismatchError):
        fk.apply(Language(PreNorm, 3), plan)
    small = fk.apply(model, plan)
    with pytest.raises(fk.PlanMismatchError):
        fk.apply(small, plan)


def test_torchs_own_encoder_layers_run_without_their_fused_path() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
    model = nn.Sequential(*(copy.deepcopy(layer) for _ in range(3))).double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    units = fk.trace(model, x, depth=True)
    for gone in ([[0], [1]], [[1, 2], []], [[], [0, 2]]):
        for inside in (0.0, 0.5):
            plan = without(units, gone, inside)
            assert apart(model, fk.apply(model, plan), plan, x) < 1e-12
