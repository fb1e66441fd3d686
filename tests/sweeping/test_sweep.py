"""A sweep scores once for each seed, and its rows are what scoring, planning, cutting and evaluating give by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern import api

Made = tuple[nn.Module, list[tuple[Tensor, Tensor]]]
BUDGETS = (0.8, 0.6, 0.4)


@pytest.fixture(scope="module")
def made() -> Made:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    y = torch.arange(30) % 3
    return model, [(torch.randn(30, 6) + y[:, None], y) for _ in range(2)]


def loss_of(made: Made) -> Any:
    x, y = made[1][0]
    return lambda model: {"loss": nn.functional.cross_entropy(model(x), y), "width": model[0].out_features}


def swept(made: Made, loader: Any = None, **options: Any) -> fk.Sweep:
    given = {"budgets": BUDGETS, "methods": ["residual"], "evaluate": loss_of(made), "progress": False, **options}
    data = made[1] if loader is None else loader
    return fk.sweep(made[0], data, nn.functional.cross_entropy, **given)


def backwards(group: Any) -> np.ndarray:
    return np.arange(group.total)[::-1]


METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "default": ("default", {}),
    "tod": ("tod", {"allocation": "tod"}),
    "l1": ("l1", {"allocation": "uniform", "removal": "l1"}),
    "l2": ("l2", {"allocation": "uniform", "removal": "l2"}),
    "activation": ("activation", {"allocation": "uniform", "removal": "activation"}),
    "random": ("random", {"allocation": "uniform", "removal": "random"}),
    "taylor": ("taylor", {"allocation": "global", "removal": "taylor"}),
    "wasserstein": ("wasserstein", {"allocation": "tod", "removal": "wasserstein"}),
    "residual": ("residual", {"removal": "residual"}),
    "global-l1": ("global-l1", {"allocation": "global", "removal": "l1"}),
    "normalized-taylor": ("normalized-taylor", {"allocation": "normalized", "removal": "taylor"}),
    "backwards": (backwards, {"allocation": "uniform", "removal": backwards}),
    "mine": (
        {"name": "mine", "allocation": "global", "removal": backwards, "round_to": 2},
        {"allocation": "global", "removal": backwards, "round_to": 2},
    ),
}


def test_rows_are_what_the_stages_give(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loader = made
    passes, seen = [], []
    plain, evaluate = api.capture.capture, loss_of(made)
    monkeypatch.setattr(api.capture, "capture", lambda *given: passes.append(1) or plain(*given))

    def looking(small: nn.Module) -> Mapping[str, Any]:
        seen.append(small(loader[0][0]).detach())
        return evaluate(small)

    found = swept(made, methods=[spec for spec, _ in METHODS.values()], evaluate=looking, budgets=(0.7, 0.4))
    assert len(passes) == 1
    assert found.methods == tuple(METHODS)
    scores = scored(made)
    costs = {"params": sum(p.numel() for p in model.parameters()), "flops": scores.plan(tod=0.0).result["flops_before"]}
    assert found.before == {**costs, **fk.measured(evaluate, model)}
    rows = iter(zip(found.rows, seen[1:], strict=True))
    for name, (_, planning) in METHODS.items():
        for budget in (0.7, 0.4):
            row, outputs = next(rows)
            plan = scores.plan(keep_params=budget, **planning)
            small = fk.apply(model, plan, compensate="least_squares", scores=scores)
            assert torch.equal(small(loader[0][0]), outputs), name
            assert row == {
                "method": name,
                "seed": 0,
                "budget": budget,
                "by": "keep_params",
                "params": sum(p.numel() for p in small.parameters()),
                "flops": plan.result["flops_after"],
                **fk.measured(evaluate, small),
                "seconds": row["seconds"],
            }
            assert row["seconds"] > 0


def scored(made: Made, **options: Any) -> fk.Scores:
    return fk.score(made[0], made[1], nn.functional.cross_entropy, gram=True, progress=False, **options)


def test_a_seed_is_that_of_scoring(made: Made) -> None:
    found = swept(made, methods=["random", "tod", "l1"], seeds=(0, 1), compensate="none", budgets=(0.5,))
    assert found.seeds == (0, 1)
    for row in found.rows:
        scores = scored(made, seed=row["seed"])
        planning = METHODS[row["method"]][1]
        plan = scores.plan(keep_params=0.5, **planning)
        assert row["flops"] == plan.result["flops_after"]
        assert row["loss"] == fk.measured(loss_of(made), fk.apply(made[0], plan))["loss"]
    drawn, same = ([row["loss"] for row in found.rows if row["method"] == name] for name in ("random", "l1"))
    assert drawn[0] != drawn[1]
    assert same[0] == same[1]


def test_model_and_process_are_as_they_were(made: Made) -> None:
    model = copy.deepcopy(made[0]).train()
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    swept((model, made[1]), compensate="none", methods="l1", budgets=(0.5,))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("compensate", ["none", "mean", "least_squares", "sequential"])
def test_what_is_folded_in_is_what_apply_folds_in(made: Made, compensate: str) -> None:
    found = swept(made, budgets=(0.5,), compensate=compensate, methods="taylor")
    scores = scored(made)
    plan = scores.plan(keep_params=0.5, allocation="global", removal="taylor")
    small = fk.apply(made[0], plan, compensate=compensate, scores=scores, loader=made[1])
    assert found.compensation == compensate
    assert found.rows[0]["loss"] == fk.measured(loss_of(made), small)["loss"]


def test_budgets_of_other_kinds(made: Made) -> None:
    flops = swept(made, by="keep_flops", budgets=np.array([0.5]), methods="l1", compensate="none")
    assert flops.rows[0]["by"] == "keep_flops"
    assert flops.rows[0]["flops"] <= 0.5 * flops.before["flops"]
    tolerances = swept(made, by="tod", budgets=(0.0, 0.5), methods="tod", compensate="none")
    assert tolerances.rows[0]["params"] >= tolerances.rows[1]["params"]


def test_time_is_a_budget_too(made: Made) -> None:
    found = swept(made, by="keep_latency", budgets=(1.0,), methods="l1", compensate="none")
    assert found.rows[0]["latency_ms"] > 0
    assert found.before["latency_ms"] > 0
    assert found.measures == ("loss", "width")


def test_a_loader_that_can_be_iterated_once_will_do(made: Made) -> None:
    once, again = swept(made, iter(made[1])), swept(made)
    assert [{**row, "seconds": 0} for row in once.rows] == [{**row, "seconds": 0} for row in again.rows]


def test_methods_may_be_named_by_a_dictionary(made: Made) -> None:
    methods = {"a": "l1", "b": {"allocation": "global"}, "c": backwards}
    found = swept(made, methods=methods, budgets=(0.5,), compensate="none", round_to=2)
    assert found.methods == ("a", "b", "c")
    assert all(row["width"] % 2 == 0 for row in found.rows)  # an option of planning for all


def test_every_row_is_told_when_it_is_there(made: Made) -> None:
    told: list[Mapping[str, Any]] = []

    def evaluate(model: nn.Module) -> float:
        return model[0].out_features if len(told) < 2 else float("nan")

    at = r"\(of what is left by 'residual' at keep_params=0.4, seed 0\)"
    with pytest.raises(fk.InputError, match=rf"is not finite.*{at}"):
        swept(made, evaluate=evaluate, on_row=told.append)
    assert [row["budget"] for row in told] == [0.8, 0.6]


class Untouchable:
    def __iter__(self) -> Iterator[Any]:
        pytest.fail("the loader was read before the options were")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budgets": ()}, "budgets= is empty; expected shares"),
        ({"budgets": "0.5"}, "budgets='0.5' is a str; expected numbers above 0, at most 1"),
        ({"budgets": ["50%"]}, r"budgets\[0\]='50%' is a str"),
        ({"budgets": [0.5, 1.5]}, r"budgets\[1\]=1.5 is not a share"),
        ({"budgets": [0.0]}, "is not a share"),
        ({"budgets": None}, "budgets is None"),
        ({"methods": ()}, "methods= names none; expected names, functions"),
        ({"methods": None}, "methods=None is a NoneType"),
        ({"methods": 3}, "methods=3 is a int"),
        ({"methods": ["taylr"]}, r"methods\[0\]='taylr' is no method; .*did you mean 'taylor'"),
        ({"methods": ["unifrm-l1"]}, "did you mean 'uniform-l1'"),
        ({"methods": ["uniform-l3"]}, "did you mean 'uniform-l"),
        ({"methods": "magnitude"}, "'magnitude' is no method; expected 'default', 'tod', the signals l1, l2,"),
        ({"methods": [3]}, r"methods\[0\] is a int; expected a name, a function"),
        ({"methods": [nn.Linear]}, r"methods\[0\] is the class Linear"),
        ({"methods": [{"allocation": "global"}]}, "is a dictionary without a name"),
        ({"methods": [{"name": "a", "alocation": "global"}]}, "has 'alocation', .* did you mean 'allocation'"),
        ({"methods": [{"name": "a", "allocation": "globl"}]}, "allocation is 'globl'; .* did you mean 'global'"),
        ({"methods": ["l1", {"name": "l1"}]}, "methods= has 'l1' twice"),
        ({"evaluate": None}, "evaluate is None; expected a function of a model"),
        ({"evaluate": 0.5}, "evaluate=0.5 is a float"),
        ({"by": "keep_parms"}, "by is 'keep_parms'; .* did you mean 'keep_params'"),
        ({"by": "drop"}, "by='drop' has no shares"),
        ({"seeds": ()}, "seeds= is empty"),
        ({"seeds": 3}, "seeds=3 is a int; expected whole numbers"),
        ({"seeds": [-1]}, r"seeds\[0\]=-1 is too small"),
        ({"seed": 3}, r"pass seeds=\[…\]"),
        ({"removal": "l1"}, "removal='l1' is what methods differ in: put it into methods="),
        ({"compensate": "leastsquares"}, "did you mean 'least_squares'"),
        ({"compensate": None}, "compensate is None"),
        ({"on_row": 3}, "on_row=3 is a int; expected a function"),
        ({"gram": False}, "compensate='least_squares' solves from second moments, which gram=False leaves out"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(made: Made, options: dict[str, Any], said: str) -> None:
    with pytest.raises(fk.InputError, match=said):
        swept(made, Untouchable(), **options)


def test_loaders_that_can_be_iterated_once_are_refused_where_that_is_not_enough(made: Made) -> None:
    for options, said in (({"seeds": (0, 1)}, "2 seeds iterate"), ({"compensate": "sequential"}, "looks at the data")):
        with pytest.raises(fk.InputError, match=said):
            swept(made, iter(made[1]), **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"methods": ["l1", "tod"], "class_of": False}, "the method 'tod': .* compare.* classes"),
        ({"methods": "wasserstein", "class_of": False}, "the method 'wasserstein'"),
        ({"methods": "residual", "gram": False, "compensate": "none"}, "removal='residual' comes from second moments"),
        ({"methods": "activation", "gram": False, "compensate": "none"}, "removal='activation' comes from"),
    ],
)
def test_a_method_whose_signal_would_not_be_there_is_named(made: Made, options: dict[str, Any], said: str) -> None:
    with pytest.raises(fk.InputError, match=said):
        swept(made, evaluate=lambda model: pytest.fail("something was done"), **options)


def test_a_wrong_evaluation_and_a_budget_out_of_reach_show_before_the_first_cut(made: Made) -> None:
    calls: list[int] = []
    with pytest.raises(fk.InputError, match="what evaluate gave is None"):
        swept(made, evaluate=calls.append)
    with pytest.raises(fk.BudgetError, match=r"the method 'residual': keep_params=0\.01"):
        swept(made, evaluate=lambda model: calls.append(1) or 1.0, budgets=(0.9, 0.01), max_remove=0.5)
    assert len(calls) == 2
    with pytest.raises(fk.InputError, match=r"evaluate named \['16'\] of the whole model, and \['\d+'\] of a cut one"):
        swept(made, evaluate=lambda model: {str(model[0].out_features): 1.0}, budgets=(0.3,))


def test_unknown_keywords_are_a_type_error(made: Made) -> None:
    with pytest.raises(TypeError, match=r"sweep\(\) got an unexpected keyword argument 'budget'; did you mean budgets"):
        swept(made, budget=0.5)
