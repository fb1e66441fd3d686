"""Cut, rescore, cut: one plan for the whole model, exactly the model that the steps left, and budgets of the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build as build_plan
from fairkern.plans.compose import compose
from tests import experts
from tests.capture.networks import Branches, Plain, build, loader, loss, samples
from tests.prove.test_admitted import Divided
from tests.prove.test_description import Attending, Config

X, Y = samples(36)
DATA = loader(X, Y, 12)


class Attention(nn.Module):
    """A multi-head layer of torch, which is replaced when it is cut, and heads as a number in a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 4, batch_first=True)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.fc1, self.fc2, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x, x, x, need_weights=False)[0]
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return self.head((x + self.fc2(F.gelu(self.fc1(x)))).mean(1))


def attention() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    return Attention().double().eval(), [(torch.randn(24, 5, 16, dtype=torch.float64), torch.arange(24) % 3)]


def mixture() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    return experts.build(experts.Fused).eval(), [experts.samples(24)]


MODELS: dict[str, Callable[[], tuple[nn.Module, list[tuple[Tensor, Tensor]]]]] = {
    "plain": lambda: (build(Plain).eval(), DATA),
    "branches": lambda: (build(Branches).eval(), DATA),
    "attention": attention,
    "experts": mixture,
}


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def pruned(model: nn.Module, data: Any, **options: Any) -> tuple[nn.Module, fk.Report]:
    loss_fn = nn.CrossEntropyLoss()
    return fk.prune(model, data, loss_fn, progress=False, **{"keep_params": 0.5, "projections": 8, **options})


@pytest.mark.parametrize("name", MODELS)
def test_the_composed_plan_cuts_what_the_steps_cut(name: str) -> None:
    model, data = MODELS[name]()
    small, report = pruned(model, data, iterations=3, compensate="none")
    assert report.plan is not None
    once = fk.apply(model, report.plan)
    assert shapes(once) == shapes(small)
    assert all(torch.equal(tensor, once.state_dict()[key]) for key, tensor in small.state_dict().items())
    torch.testing.assert_close(once(data[0][0]), small(data[0][0]))
    removed = [step["units_removed"] for step in report.choices["steps"]]
    assert removed == sorted(removed)
    assert len(set(removed)) > 1, "more than one step has cut something"


@pytest.mark.parametrize("compensate", ["mean", "least_squares", "sequential"])
@pytest.mark.parametrize("name", ["plain", "branches", "attention"])
def test_compensated_steps_are_kept_on_disk(name: str, compensate: str, tmp_path: Path) -> None:
    model, data = MODELS[name]()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    small, report = pruned(model, data, iterations=2, compensate=compensate)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert report.plan is not None
    cut = shapes(fk.apply(model, report.plan))
    assert cut == {key: shape for key, shape in shapes(small).items() if key in cut}
    fk.save_pruned(small, report.plan, tmp_path / "small")
    again = fk.load_pruned(MODELS[name]()[0], tmp_path / "small").eval()
    assert torch.equal(again(data[0][0]), small(data[0][0]))


@pytest.mark.parametrize("budget", ["keep_params", "keep_flops"])
def test_budgets_of_the_steps_are_shares_of_the_whole(budget: str) -> None:
    model = build(Plain).eval()
    _, report = fk.prune(model, DATA, loss, iterations=3, projections=8, progress=False, **{budget: 0.3})
    assert report.plan is not None
    what = budget.removeprefix("keep_")
    shares = [step[f"{what}_after"] / report.before[what] for step in report.choices["steps"]]
    assert all(share <= 0.3 ** (k / 3) for k, share in enumerate(shares, 1))
    assert shares[-1] == report.plan.result[f"{what}_after"] / report.plan.result[f"{what}_before"]
    assert report.plan.request[budget] == 0.3
    assert report.plan.request["iterations"] == 3
    # of every group at least what one step would have had to leave
    assert all(g.units - g.removed.shape[-1] >= max(1, 0.01 * g.units) for g in report.plan.groups)


def test_one_step_is_the_plain_call() -> None:
    model = build(Plain).eval()
    scores = fk.score(model, DATA, loss, gram=True, projections=8, progress=False)
    plan = scores.plan(keep_params=0.5, max_remove=0.8)
    plain = fk.apply(model, plan, compensate="sequential", scores=scores, loader=DATA)
    small, report = fk.prune(
        model, DATA, loss, keep_params=0.5, max_remove=0.8, iterations=1, projections=8, progress=False
    )
    assert report.choices["compensation"] == "sequential"
    assert report.plan is not None
    assert report.plan.request == plan.request
    assert report.plan.result == plan.result
    assert all(torch.equal(tensor, small.state_dict()[key]) for key, tensor in plain.state_dict().items())
    assert "steps" not in report.choices


def test_rounding_and_what_is_ignored_hold_over_the_steps() -> None:
    model = build(Plain).eval()
    _, report = pruned(model, DATA, keep_params=0.75, iterations=2, round_to=2, min_keep=4, ignore=iter(["conv1"]))
    assert report.plan is not None
    for group in report.plan.groups:
        stays = group.units - group.removed.size
        assert stays >= 4
        assert stays == group.units or stays % 2 == 0
        assert group.name != "conv1" or not group.removed.size


def test_in_place_returns_the_model_itself() -> None:
    own = build(Branches).eval()
    small, report = pruned(own, DATA, iterations=2, inplace=True)
    assert small is own
    assert report.after["params"] == sum(p.numel() for p in own.parameters())


def test_the_loader_is_read_once_a_step() -> None:
    class Counted(list):  # type: ignore[type-arg]
        passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            return super().__iter__()

    data = Counted(DATA)
    units = fk.trace(build(Plain).eval(), X[:2])
    pruned(build(Plain).eval(), Counted(DATA), units=units)
    one, three = Counted(DATA), Counted(DATA)
    pruned(build(Plain).eval(), one, iterations=1, compensate="least_squares")
    pruned(build(Plain).eval(), three, iterations=3, compensate="least_squares")
    assert three.passes - one.passes <= 3  # a step each, and the look at whether it can be read again
    assert data.passes == 0


def test_compensation_is_chosen_by_what_can_be_had_and_said() -> None:
    def chosen(loader: Any, **options: Any) -> str:
        _, report = pruned(build(Plain).eval(), loader, **options)
        return report.choices["compensation"]

    assert chosen(DATA) == "sequential"
    assert chosen(iter(DATA)) == "least_squares"
    assert chosen(DATA, inplace=True) == "least_squares"
    assert chosen(DATA, compensate="mean") == "mean"
    assert chosen(DATA, gram=False) == "none"


def test_biases_that_compensation_adds_are_counted() -> None:
    model, data = MODELS["plain"]()
    model = nn.Sequential(nn.Linear(6, 12, bias=False), nn.ReLU(), nn.Linear(12, 5, bias=False)).double()
    data = [(torch.randn(30, 6, dtype=torch.float64), torch.arange(30) % 5)]
    small, report = pruned(model, data, iterations=1)
    assert report.plan is not None
    assert report.after["params"] == sum(p.numel() for p in small.parameters())
    assert report.choices["added_biases"] == 5 == report.after["params"] - report.plan.result["params_after"]
    assert "added_biases" not in pruned(model, data, compensate="none")[1].choices


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"iterations": 0}, "expected a whole number, at least 1"),
    ({"iterations": 1.5}, "expected a whole number, at least 1"),
    ({"iterations": True}, "expected a whole number, at least 1"),
    ({"iterations": 2, "keep_params": None, "tod": 0.1}, "needs a budget .* not tod"),
    ({"iterations": 2, "keep_params": None, "drop": {"neuron": 2}}, "needs a budget .* not drop"),
    ({"serve": "hf"}, "serve='hf' goes by the fields of a configuration .* none of Plain's does"),
    ({"iterations": 2, "keep_params": "half"}, "is a str; expected a number"),
    ({"iterations": 2, "keep_params": -0.5}, "is not a share"),
    ({"iterations": 2, "keep_flops": 0.5}, "give exactly one of"),
    ({"keep_params": None}, "give exactly one of"),
]


@pytest.mark.parametrize(("options", "what"), WRONG)
def test_what_cannot_be_done_is_said(options: dict[str, Any], what: str) -> None:
    with pytest.raises(fk.InputError, match=what):
        pruned(build(Plain).eval(), DATA, **options)


class Served(nn.Module):
    """Two layers of one configuration, of which the first could lose more neurons than the second."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Attending(config) for _ in range(2))
        self.head = nn.Linear(config.hidden_size, 3)
        with torch.no_grad():
            self.layers[0].up.weight[:12] *= 1e-3

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def served(kind: type[Served] = Served) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    config = Divided(hidden_size=16, num_attention_heads=8, head_dim=2, intermediate_size=32)
    return kind(config).double().eval(), [(torch.randn(24, 5, 16, dtype=torch.float64), torch.arange(24) % 3)]


@pytest.mark.parametrize("compensate", ["none", "least_squares"])
def test_layers_stay_equal_over_the_steps(compensate: str) -> None:
    """Every step keeps to what one configuration describes, and so does what they add up to."""
    model, data = served()
    small, report = pruned(model, data, iterations=3, keep_params=0.4, serve="hf", compensate=compensate)
    plan = report.plan
    assert plan is not None
    assert (plan.request["serve"], plan.request["iterations"]) == ("hf", 3)
    assert plan.result["serves"]["hf"] == report.choices["serves"]["hf"] == "yes"
    left = {(g.kind, g.units - len(g.removed)) for g in plan.groups if g.removed.size}
    assert left == {("head", small.config.num_attention_heads), ("neuron", small.config.intermediate_size)}
    assert small.config.num_attention_heads in (4, 2)
    rebuilt = Served(small.config).double()
    rebuilt.load_state_dict(small.state_dict())
    assert torch.equal(rebuilt(data[0][0]), small(data[0][0]))
    free = pruned(model, data, keep_params=0.4, compensate=compensate)[1]
    assert free.choices["serves"]["hf"] != "yes"


class Beside(Served):
    """With a part whose width no field says."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.spare, self.back = nn.Linear(config.hidden_size, 6), nn.Linear(6, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.back(self.spare(x).relu()))


def test_what_a_server_has_no_number_for_is_said_of_all_steps_together() -> None:
    model, data = served(Beside)
    report = pruned(model, data, iterations=2, keep_params=0.6, serve="hf", compensate="none")[1]
    assert report.plan is not None
    why = "neurons of spare stay: no field of the configuration counts its neurons (serve='hf')"
    assert why in report.plan.result["left_alone"]


def test_so_many_units_go_in_one_step() -> None:
    model, data = served()
    small, report = pruned(model, data, keep_params=None, drop={"head": 4}, compensate="none")
    assert report.plan is not None
    assert [len(g.removed) for g in report.plan.groups if g.kind == "head"] == [4, 4]
    assert report.plan.request["drop"] == {"head": 4}
    assert small.config.num_attention_heads == 4


def test_latency_is_kept_with_layers_equal() -> None:
    model, data = served()
    units = fk.trace(model, data[0][0][:2])
    scores = fk.score(model, data, nn.CrossEntropyLoss(), units=units, projections=8, progress=False)
    table = fk.latency_table(model, units, data[0][0][:2], shares=(1.0, 0.5))
    plan = fk.plan_latency(scores, model, data[0][0][:2], 0.9, latency=table, serve="hf", looks=2)
    assert plan.result["serves"]["hf"] == "yes"
    assert plan.request["serve"] == "hf"


def test_a_step_out_of_reach_is_named() -> None:
    with pytest.raises(fk.BudgetError, match="in step 1 of 2"):
        pruned(build(Plain).eval(), DATA, keep_params=0.02, iterations=2, max_remove=0.8)


def test_a_loader_that_runs_out_is_refused() -> None:
    with pytest.raises(fk.InputError, match="can be iterated once only"):
        pruned(build(Plain).eval(), iter(DATA), iterations=2)


def test_sets_are_composed_each_for_itself() -> None:
    model, data = mixture()
    units = fk.trace(model, data[0][0])
    group = next(g for g, found in enumerate(units.groups) if found.sets > 1)
    nothing = [np.zeros(0, dtype=np.int64)] * len(units.groups)

    def plan_of(found: fk.UnitMap, rows: list[list[int]]) -> Any:
        return build_plan(found, [np.array(rows) if g == group else none for g, none in enumerate(nothing)])

    first = plan_of(units, [[0], [1], [2], [4]])
    second = plan_of(fk.trace(fk.apply(model, first), data[0][0]), [[0], [1], [1], [3]])
    together = compose(units, [first, second])
    assert together.groups[group].removed.tolist() == [[0, 1], [1, 2], [1, 2], [3, 4]]
    with pytest.raises(fk.PlanMismatchError, match="the plans before it left 4 × 4 units"):
        compose(units, [first, first])


class Deeper(nn.Module):
    """A branch that a second argument opens, and a parameter that no input reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.mask_token = nn.Parameter(torch.randn(12, 12))

    def forward(self, x: Tensor, deep: bool = False, masked: bool = False) -> Tensor:
        x = self.a(x).relu()
        x = self.b(x).relu() if deep else x
        return self.c(x @ self.mask_token if masked else x)


def test_every_step_is_traced_with_what_the_caller_says() -> None:
    torch.manual_seed(0)
    model = Deeper().double().eval()
    x = torch.randn(24, 6).double()
    data, more, unused = [(x, torch.arange(24) % 3)], [(x[:2], True)], ["mask_token"]
    units = fk.trace(model, x[:2], unused=unused)
    assert (units.unused, units.more) == (("mask_token",), 0)
    assert [g.name for g in units.groups] == ["a"]
    options: dict[str, Any] = {"keep_params": 0.9, "iterations": 2, "compensate": "none", "progress": False}
    for given in ({"units": units}, {"unused": unused}):
        _, report = fk.prune(model, data, F.cross_entropy, **given, **options)
        steps = report.plan.result["steps"]  # type: ignore[union-attr]
        assert 0 < steps[0]["units_removed"] < steps[1]["units_removed"]
    units = fk.trace(model, x[:2], more=more, unused=unused)
    with pytest.raises(fk.InputError, match="traced with 1 further example inputs, of which 0 are given: pass those"):
        fk.prune(model, data, F.cross_entropy, units=units, **options)


def test_a_step_knows_the_other_inputs() -> None:
    """What only the other input says (the branch may be left out, so that both ends of it go together) holds later."""
    torch.manual_seed(0)
    model = Deeper().double().eval()
    x, labels = torch.randn(24, 6).double(), torch.arange(24) % 3
    data, more = [((x, True), labels)], [x[:2]]
    units = fk.trace(model, (x[:2], True), more=more, unused="mask_token")
    assert (units.more, units.unused) == (1, ("mask_token",))

    for given in ({"units": units}, {"unused": ["mask_token"]}):
        options: dict[str, Any] = {"keep_params": 0.7, "iterations": 2, "compensate": "none", "progress": False}
        small, report = fk.prune(model, data, F.cross_entropy, more=more, **given, **options)
        assert report.plan is not None
        with report.plan.masked(model):
            expected = [model(x), model(x, True)]
        for a, b in zip(expected, [small(x), small(x, True)], strict=True):
            torch.testing.assert_close(a, b)
