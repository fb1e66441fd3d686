"""The public pipeline, as a user calls it: from a model and a loader to a smaller model and back from disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from tests.capture.networks import Branches, Plain, build, loader, loss, samples

X, Y = samples(36, torch.float32)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build(Plain, torch.float32).eval()


@pytest.fixture(scope="module")
def scores(model: nn.Module) -> fk.Scores:
    return fk.score(model, loader(X, Y, 12), loss, projections=8, progress=False)


def test_everything_public_is_exported_and_documented() -> None:
    for name in fk.__all__:
        member = getattr(fk, name)
        assert getattr(member, "__doc__", None), name


def test_prune_from_start_to_end(model: nn.Module) -> None:
    small, report = fk.prune(model, loader(X, Y, 12), loss, keep_params=0.5, projections=8, progress=False)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert after <= 0.5 * before
    assert (report.before["params"], report.after["params"]) == (before, after)
    assert report.after["flops"] < report.before["flops"]
    assert report.before["latency_ms"] > 0
    assert small(X).shape == (36, 3)
    table = report.table()
    assert "conv1" in table
    assert f"{after:,}" in table


def test_prune_puts_back_the_random_state_that_a_shuffling_loader_draws_from(model: nn.Module) -> None:
    data = torch.utils.data.TensorDataset(X, Y)
    shuffled = torch.utils.data.DataLoader(data, batch_size=12, shuffle=True)
    before = torch.get_rng_state()
    fk.prune(model, shuffled, loss, keep_params=0.7, projections=4, progress=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_prune_in_place_returns_the_model_itself() -> None:
    own = build(Branches, torch.float32).eval()
    small, _ = fk.prune(own, loader(X, Y, 12), loss, keep_params=0.7, projections=4, progress=False, inplace=True)
    assert small is own


def test_prune_takes_a_loader_that_runs_out(model: nn.Module) -> None:
    small, _ = fk.prune(model, iter(loader(X, Y, 12)), loss, keep_params=0.8, projections=4, progress=False)
    assert small is not model


def test_scores_and_plans_survive_their_files(model: nn.Module, scores: fk.Scores, tmp_path: Path) -> None:
    scores.save(tmp_path / "scores.safetensors")
    again = fk.Scores.load(tmp_path / "scores.safetensors")
    for name in ("wasserstein", "taylor"):
        for a, b in zip(scores.signals[name], again.signals[name], strict=True):
            assert np.array_equal(a, b)
    plan, same = scores.plan(keep_params=0.5), again.plan(keep_params=0.5)
    plan.save(tmp_path / "plan.json")
    loaded = fk.Plan.load(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["format"] == "fairkern.plan"
    for other in (same, loaded):
        small = fk.apply(model, other)
        assert torch.equal(small(X), fk.apply(model, plan)(X))
    assert again.units.explain() == scores.units.explain()


def test_masked_equals_cut_equals_reloaded(model: nn.Module, scores: fk.Scores, tmp_path: Path) -> None:
    plan = scores.plan(keep_flops=0.5, ignore=["fc1"])
    small = fk.apply(model, plan)
    with plan.masked(model), torch.no_grad():
        masked = model(X)
    with torch.no_grad():
        torch.testing.assert_close(small(X), masked)
    fk.save_pruned(small, plan, tmp_path / "pruned")
    modes = {(tmp_path / "pruned" / name).stat().st_mode for name in ("model.safetensors", "plan.json")}
    assert len(modes) == 1, "readable by the same people"
    reloaded = fk.load_pruned(build(Plain, torch.float32, seed=9).eval(), tmp_path / "pruned")
    with torch.no_grad():
        assert torch.equal(reloaded(X), small(X))
    assert [g.rate for g in plan.groups if g.name == "fc1"] == [0.0]


def test_explain_names_groups_consumers_and_reasons(model: nn.Module) -> None:
    text = fk.trace(model, X[:2]).explain()
    for part in ("conv1", "channel", "conv2", "fc1", "neuron", "output", "proven"):
        assert part in text, part


def test_trace_refuses_what_it_cannot_use(model: nn.Module) -> None:
    with pytest.raises(fk.InputError, match=r"expected a torch\.nn\.Module"):
        fk.trace("resnet18", X)  # type: ignore[arg-type]
    with pytest.raises(fk.InputError, match="no tensor"):
        fk.trace(model, "x")
    with pytest.raises(fk.InputError, match="meta"):
        fk.trace(model, X.to("meta"))
    with pytest.raises(RuntimeError, match="expected input"):  # the model's own error
        fk.trace(model, X[:, :1])


def test_a_model_without_anything_to_cut() -> None:
    with pytest.raises(fk.InputError, match=r"no axis of this Linear can be cut.*output"):
        fk.trace(nn.Linear(4, 2), torch.randn(3, 4))


def test_a_group_that_fails_its_proof_is_frozen_with_the_reason() -> None:
    class Lies(nn.Module):
        """Scales by a width that was read when the model was built."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(x))
            x = x / x.shape[1]  # the trace sees a constant
            return self.c(torch.relu(self.b(x)))

    units = fk.trace(Lies(), torch.randn(3, 4))
    by_name = {g.name: g for g in units.groups}
    assert by_name["a"].frozen is not None
    assert "differs from masked" in by_name["a"].frozen
    assert by_name["b"].frozen is None
    assert "differs from masked" in units.explain()
    assert not fk.trace(Lies(), torch.randn(3, 4), verify=False).proven


def test_a_plan_for_another_model_is_refused_by_name(scores: fk.Scores) -> None:
    plan = scores.plan(keep_params=0.5)
    other = build(Branches, torch.float32)
    with pytest.raises(fk.PlanMismatchError, match=r"conv1\.weight|stem\.weight"):
        fk.apply(other, plan)
    with pytest.raises(fk.PlanMismatchError), plan.masked(other):
        pass
    small = fk.apply(build(Plain, torch.float32), plan)
    with pytest.raises(fk.PlanMismatchError, match="already"):
        fk.apply(small, plan)


def test_unreachable_budget_gives_the_range(scores: fk.Scores) -> None:
    with pytest.raises(fk.BudgetError, match=r"0\.\d+"):
        scores.plan(keep_params=0.001)


def test_a_failed_save_leaves_nothing(scores: fk.Scores, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        scores.save(tmp_path / "file" / "scores.safetensors")
    (tmp_path / "scores.safetensors").write_bytes(b"not ours")
    with pytest.raises(fk.ArtefactError):
        fk.Scores.load(tmp_path / "scores.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "scores.safetensors"]


def test_info_names_every_operator() -> None:
    found = fk.info()
    assert set(found["operators"]) >= {"class_wasserstein", "taylor", "gather", "project", "tod_curve"}
    assert found["versions"]["torch"] == str(torch.__version__)


def two_convolutions() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 20, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 10)).eval()


def test_frozen_parameters_are_cut_like_others_and_stay_frozen() -> None:
    x, y = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    cut = []
    for frozen in (False, True):
        model = two_convolutions().requires_grad_(not frozen)
        options = {"keep_params": 0.5, "allocation": "uniform", "progress": False}
        small, report = fk.prune(model, [(x, y)], nn.CrossEntropyLoss(), **options)
        assert report.plan is not None
        cut.append([group.removed.tolist() for group in report.plan.groups])
        assert all(p.requires_grad is not frozen for p in small.parameters())
        assert all(p.requires_grad is not frozen for p in model.parameters())
    assert cut[0] == cut[1]
    assert all(cut[0])


def test_of_less_budget_no_more_is_left_whatever_the_rounding() -> None:
    x, y = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    scores = fk.score(two_convolutions(), [(x, y)], nn.CrossEntropyLoss(), gram=True, progress=False)
    kept = []
    for keep in (0.9, 0.7, 0.5, 0.4):
        plan = scores.plan(keep_params=keep, round_to=8)
        left = [group.units - len(group.removed) for group in plan.groups]
        assert all(n % 8 == 0 or n == group.units for n, group in zip(left, plan.groups, strict=True))
        kept.append(plan.result["params_after"])
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < kept[0]
