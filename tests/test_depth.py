"""Depth beside width: one threshold for branches and what is in them, in one step or several, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fairkern as fk
from fairkern import cli
from tests.branching import Language, PreNorm, Residual, images, tokens

DATA = [(tokens(4, seed=k), tokens(4, seed=k + 9)) for k in range(3)]


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def idle(model: Language) -> Language:
    """An attention, an MLP and a whole block hardly add anything."""
    with torch.no_grad():
        for block in (1, 4):
            model.blocks[block].attention.o.weight *= 1e-4
            model.blocks[block].attention.o.bias *= 1e-4
        for block in (2, 4):
            model.blocks[block].mlp.down.weight *= 1e-4
            model.blocks[block].mlp.down.bias *= 1e-4
    return model.eval()


def branches(plan: fk.Plan) -> dict[str, list[int]]:
    return {group.name: group.removed.tolist() for group in plan.groups if group.kind == "branch"}


def test_branches_that_add_nothing_go_first_and_units_are_priced() -> None:
    torch.manual_seed(0)
    model = idle(Language(PreNorm, 6))
    small, report = fk.prune(model, DATA, loss, keep_params=0.69, depth=True, class_of=False, progress=False)
    plan = report.plan
    assert plan is not None
    assert branches(plan) == {"blocks.*.attention": [1, 4], "blocks.*.mlp": [2, 4]}
    assert len(small.blocks) == 5
    assert sum(p.numel() for p in fk.apply(model, plan).parameters()) == plan.result["params_after"]


def test_several_steps_are_one_plan(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = idle(Language(PreNorm, 6)), DATA[0][0]
    small, report = fk.prune(
        model, DATA, loss, keep_params=0.5, depth=True, class_of=False, progress=False, iterations=2, compensate="none"
    )
    plan = report.plan
    assert plan is not None
    assert any(branches(plan).values())
    assert torch.equal(fk.apply(model, plan)(x), small(x))
    with plan.masked(model):
        assert float((model(x) - small(x)).detach().abs().max()) < 1e-5
    fk.save_pruned(small, plan, tmp_path / "small")
    assert torch.equal(fk.load_pruned(Language(PreNorm, 6).eval(), tmp_path / "small")(x), small(x))


def test_compensation_refits_what_stays() -> None:
    torch.manual_seed(0)
    model, x = Language(PreNorm, 4).eval(), DATA[0][0]
    errors = {}
    for method in ("none", "sequential"):
        small, _ = fk.prune(
            model, DATA, loss, keep_params=0.6, depth=True, compensate=method, class_of=False, progress=False
        )
        errors[method] = float((small(x) - model(x)).detach().square().mean())
    assert errors["sequential"] < errors["none"]


def test_latency_sees_what_a_branch_costs() -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), images(1)
    units = fk.trace(model, x, depth=True)
    table = fk.latency_table(model, units, x, shares=(0.5,))
    assert any(name.startswith("branch ") for name in table.rest) or table.rest
    scores = fk.score(model, [(images(4), torch.tensor([0, 1, 0, 1]))] * 2, F.cross_entropy, units=units, gram=True)
    plan = scores.plan(keep_latency=0.9, latency=table)
    left = plan.result["latency_after_ms"] / plan.result["latency_before_ms"]
    assert left <= 0.9


def test_units_without_depth_are_refused_for_it() -> None:
    units = fk.trace(Language(), tokens())
    with pytest.raises(fk.InputError, match="depth=True"):
        fk.prune(Language(), DATA, loss, keep_params=0.5, depth=True, units=units)


def test_an_extent_of_one_branch_is_priced_by_what_goes_with_it() -> None:
    from fairkern.allocate.prices import costs, priced

    units = fk.trace(Residual(), images(), depth=True)
    ones = {g: np.ones(units.groups[g].units) for g in units.prunable}
    found = priced(units, ones, units.params, costs(units, units.params))
    model = Residual()
    for g in units.branched:
        for unit, branch in enumerate(units.branches[units.groups[g].name]):
            inside = sum(p.numel() for part in branch.parts for p in model.get_submodule(part.module).parameters())
            assert 1 / found[g][unit] == inside


def test_the_command_line_hands_it_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["trace", "tests.branching:Language", "tests.branching:tokens", "--depth"]) == 0
    assert "blocks.*.mlp" in capsys.readouterr().out
    out = tmp_path / "out"
    given = ["tests.branching:Language", "tests.test_depth:data", "tests.test_depth:given_loss"]
    assert cli.main(["prune", *given, "--depth", "--keep-params", "0.7", "--out", str(out)]) == 0
    assert {group["kind"] for group in json.loads((out / "plan.json").read_text())["groups"]} >= {"branch"}


def data() -> list[tuple[Tensor, Tensor]]:
    return DATA


def given_loss() -> object:
    return loss
