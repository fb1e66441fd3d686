"""Where weights are given a bias, what a fit through zero is, and that what is added comes back however it is saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern import compact, compensate
from fairkern.compensate import Compensation
from fairkern.compensate.intercepts import Biases, Places, flags_of
from fairkern.compensate.refit import refit
from fairkern.plans.build import build
from tests.axes.harness import Net
from tests.compensate.test_corrections import double, scored


class Config:
    """What fairkern asks of a configuration: fields as attributes, and `to_dict`."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


class Gated(nn.Module):
    """`down(relu(gate(x)) · up(x))`, with biases where the configuration says so."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        n, bias = config.intermediate_size, getattr(config, "mlp_bias", False)
        self.gate, self.up = (nn.Linear(6, n, bias=bias) for _ in range(2))
        self.down = nn.Linear(n, 6, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gate(x).relu() * (1 + self.up(x)))


class Model(nn.Module):
    """Two gated MLPs and a head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Gated(config) for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


class Whole(nn.Module):
    """A model with a configuration within its own."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.text = Model(config.text_config)

    def forward(self, x: Tensor) -> Tensor:
        return self.text(x)


def with_flag() -> nn.Module:
    return double(Model(Config(intermediate_size=12, mlp_bias=False, tie_bias=True)))


def without_field() -> nn.Module:
    return double(Model(Config(intermediate_size=12)))


def within() -> nn.Module:
    return double(Whole(Config(text_config=Config(intermediate_size=12, mlp_bias=False))))


X = torch.randn(48, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
DATA = [(X[i : i + 12], torch.arange(12) % 3) for i in range(0, 48, 12)]


def pruned(model: nn.Module, **options: Any) -> tuple[nn.Module, fk.Report]:
    return fk.prune(model, DATA, F.cross_entropy, **{"keep_params": 0.7, "progress": False, **options})


def biases(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters() if name.endswith("bias") and "head" not in name]


GONE = [0, 4, 7]


def chain() -> tuple[nn.Module, fk.Scores]:
    """Activations far from zero, read by layers without biases."""
    layers = {"a": nn.Linear(6, 9), "b": nn.Linear(9, 8, bias=False), "c": nn.Linear(8, 3, bias=False)}
    model = double(Net(lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x) + 2.0)) + 1.0)), **layers))
    return model, scored(model, X)


def gone(scores: fk.Scores, *groups: str) -> list[np.ndarray]:
    return [np.array(GONE if g.name in groups else [], dtype=np.int64) for g in scores.units.groups]


def test_through_zero_it_is_the_best_fit_and_not_the_other_one_without_its_bias() -> None:
    model, scores = chain()
    plan = build(scores.units, gone(scores, "a"))
    places = Places(model, plan, scores.units, Biases.NONE)
    (found,) = compensate.corrections(model, plan, scores, Compensation.LEAST_SQUARES, 1e-13, places)
    small = compact.apply(model, plan)
    compensate.fold(small, plan, [found])
    assert small.b.bias is None
    assert "biases=False" in found.note
    with torch.no_grad():
        act = torch.relu(model.a(X) + 2.0).numpy()
        kept, out = np.delete(act, GONE, 1), act @ model.b.weight.numpy().T
    fit = np.linalg.lstsq(kept, out, rcond=None)[0]
    np.testing.assert_allclose(small.b.weight.detach().numpy(), fit.T, rtol=1e-6, atol=1e-8)
    design = np.hstack([kept, np.ones((48, 1))])
    assert np.abs(np.linalg.lstsq(design, out, rcond=None)[0][:-1] - fit).max() > 1e-3
    power = np.square(act[:, GONE]).sum()
    for columns, share in ((kept, found.unexplained), (design, found.with_intercept)):
        left = act[:, GONE] - columns @ np.linalg.lstsq(columns, act[:, GONE], rcond=None)[0]
        assert share == pytest.approx(np.square(left).sum() / power, rel=1e-5)
    assert found.with_intercept < found.unexplained


@pytest.mark.parametrize("ridge", [1e-4, 1e-2])
def test_what_an_intercept_would_leave_is_that_of_the_same_ridge(ridge: float) -> None:
    """Against the fit with rows added for the ridge, which an intercept does not pay."""
    model, scores = chain()
    plan = build(scores.units, gone(scores, "a"))
    places = Places(model, plan, scores.units, Biases.NONE)
    (found,) = compensate.corrections(model, plan, scores, Compensation.LEAST_SQUARES, ridge, places)
    with torch.no_grad():
        act = torch.relu(model.a(X) + 2.0).numpy()
    kept = np.delete(act, GONE, 1)
    paid = np.sqrt(ridge * np.square(kept).sum(0).mean())
    rows = np.vstack([np.hstack([kept, np.ones((48, 1))]), np.hstack([paid * np.eye(6), np.zeros((6, 1))])])
    fit = np.linalg.lstsq(rows, np.vstack([act[:, GONE], np.zeros((6, 3))]), rcond=None)[0]
    left = act[:, GONE] - rows[:48] @ fit
    assert found.with_intercept == pytest.approx(np.square(left).sum() / np.square(act[:, GONE]).sum(), rel=1e-8)


def test_layer_after_layer_it_is_the_best_fit_to_what_arrives() -> None:
    model, scores = chain()
    plan = build(scores.units, gone(scores, "a", "b"))
    places = Places(model, plan, scores.units, Biases.NONE)
    found = compensate.corrections(model, plan, scores, Compensation.LEAST_SQUARES, 1e-13, places)
    small = compact.apply(model, plan)
    compensate.fold(small, plan, refit(model, plan, scores, found, [(X, None)], 1e-13))
    assert small.c.bias is None
    with torch.no_grad():
        now = torch.relu(small.b(torch.relu(small.a(X) + 2.0)) + 1.0).numpy()
        fit = np.linalg.lstsq(now, model(X).numpy(), rcond=None)[0]
    np.testing.assert_allclose(small.c.weight.detach().numpy(), fit.T, rtol=1e-5, atol=1e-7)


HOW: dict[str, dict[str, Any]] = {
    "sequential": {},
    "least squares": {"compensate": "least_squares"},
    "mean": {"compensate": "mean"},
    "two steps": {"iterations": 2},
    "layers alike": {"allocation": "uniform"},
    "in place": {"inplace": True},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("make", [with_flag, within])
def test_a_field_of_the_configuration_is_set_and_brings_zeros(
    make: Callable[[], nn.Module], how: str, tmp_path: Path
) -> None:
    model = make()
    small, report = pruned(copy.deepcopy(model), **HOW[how])
    prefix, field = ("", "mlp_bias") if make is with_flag else ("text.", "text_config.mlp_bias")
    inner = small.config if make is with_flag else small.config.text_config
    assert inner.mlp_bias is True
    assert report.choices["config"][field] == [False, True]
    assert report.choices["through_zero"] == {}
    names = [f"{prefix}layers.{i}.{layer}.bias" for i in (0, 1) for layer in ("gate", "up", "down")]
    assert biases(small) == names
    own = dict(small.named_parameters())
    added = {n for n in names if torch.count_nonzero(own[n])}
    assert added <= {f"{prefix}layers.{i}.down.bias" for i in (0, 1)} or how == "two steps"
    assert added
    assert report.choices["added_biases"] == sum(own[n].numel() for n in names)
    fk.save_pruned(small, report.plan, tmp_path / "small")
    again = fk.load_pruned(make(), tmp_path / "small")
    assert (again.config if make is with_flag else again.config.text_config).mlp_bias is True
    assert biases(again) == names
    with torch.no_grad():
        assert torch.equal(again(X), small(X))
    if len({layer.down.in_features for layer in (small if make is with_flag else small.text).layers}) == 1:
        rebuilt = type(small)(small.config).double()
        rebuilt.load_state_dict(small.state_dict(), strict=True)
        with torch.no_grad():
            assert torch.equal(rebuilt(X), small(X))
    else:
        assert how != "layers alike"


def test_a_plan_and_scores_from_files_do_the_same(tmp_path: Path) -> None:
    model = with_flag()
    scores = scored(model, X)
    plan = scores.plan(keep_params=0.7)
    small = fk.apply(model, plan, compensate="least_squares", scores=scores)
    assert model.config.mlp_bias is False
    assert biases(model) == []
    plan.save(tmp_path / "plan.json")
    scores.save(tmp_path / "scores")
    read = {"scores": fk.Scores.load(tmp_path / "scores"), "compensate": "least_squares"}
    again = fk.apply(model, fk.Plan.load(tmp_path / "plan.json"), **read)
    assert again.config.mlp_bias is True
    for (name, a), (other, b) in zip(small.named_parameters(), again.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    bare = fk.apply(model, plan)
    assert bare.config.mlp_bias is False
    assert biases(bare) == []


def test_where_there_is_no_field_the_fit_goes_through_zero_and_says_what_it_costs(tmp_path: Path) -> None:
    small, report = pruned(without_field())
    assert biases(small) == []
    assert report.choices["biases"] == "where the configuration has a field for them"
    assert "added_biases" not in report.choices
    lost = report.choices["through_zero"]
    assert list(lost) == ["layers.0.down.weight", "layers.1.down.weight"]
    assert all(0 <= entry["with_intercept"] < entry["unexplained"] <= 1 for entry in lost.values())
    (line,) = [line for line in report.table().splitlines() if "fitted without a bias" in line]
    assert line.startswith("2 weights fitted without a bias: ")
    report.save(tmp_path / "report.json")
    assert fk.Report.load(tmp_path / "report.json").choices["through_zero"] == lost
    rebuilt = type(small)(Config(intermediate_size=12)).double()
    assert rebuilt.state_dict().keys() == small.state_dict().keys()


def test_anywhere_if_asked_for_and_nowhere_if_asked_for() -> None:
    anywhere, report = pruned(without_field(), biases=True, allocation="uniform")
    assert biases(anywhere) == ["layers.0.down.bias", "layers.1.down.bias"]
    assert report.choices["biases"] == "anywhere"
    assert report.plan.result["serves"]["hf"] == "yes"
    assert report.choices["serves"]["hf"].startswith("the configuration has no field for layers.0.down.bias and 1 more")
    nowhere, report = pruned(with_flag(), biases=False)
    assert biases(nowhere) == []
    assert nowhere.config.mlp_bias is False
    assert report.choices["biases"] == "none is added"
    assert len(report.choices["through_zero"]) == 2
    with_field, report = pruned(with_flag(), biases=True, allocation="uniform")
    assert with_field.config.mlp_bias is True
    assert report.choices["serves"]["hf"] == "yes"


def test_a_model_without_a_configuration_takes_them_anywhere() -> None:
    model = without_field()
    del model.config
    small, report = pruned(model)
    assert biases(small) == ["layers.0.down.bias", "layers.1.down.bias"]
    assert report.choices["biases"] == "anywhere: the model has no configuration"


def test_where_no_weight_is_without_one_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    model = double(Model(Config(intermediate_size=12, mlp_bias=True)))
    monkeypatch.setattr("fairkern.compensate.intercepts.built_with", pytest.fail)
    small, report = pruned(model)
    assert small.config.mlp_bias is True
    assert report.choices["biases"] == "none to add"
    assert "mlp_bias" not in report.choices["config"]


def built_otherwise() -> nn.Module:
    class Other(Model):
        def __init__(self, width: int) -> None:
            super().__init__(Config(intermediate_size=width, mlp_bias=False))

    return double(Other(12))


def changed_since() -> nn.Module:
    model = with_flag()
    model.register_parameter("extra", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    return model


@pytest.mark.parametrize(
    ("make", "said"), [(built_otherwise, "no model can be built"), (changed_since, "has no extra")]
)
def test_a_configuration_that_does_not_describe_the_model_is_none(make: Callable[[], nn.Module], said: str) -> None:
    found = flags_of(make())
    assert isinstance(found, str)
    assert said in found


class Does(nn.Module):
    """`use_bias` gives the layer a bias and does `more` besides."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, on = config, config.use_bias
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3, bias=on)
        if config.more == "a norm's":
            self.norm = nn.LayerNorm(3, bias=on)
        if config.more == "a shape" and on:
            self.a = nn.Linear(6, 9)
        if config.more == "a tensor" and on:
            self.register_buffer("table", torch.zeros(3))
        if config.more == "a number":
            self.scale = 2.0 if on else 1.0
        if config.more == "a refusal" and on:
            raise ValueError("use_bias needs something else")


@pytest.mark.parametrize("more", ["a norm's", "a shape", "a tensor", "a number", "a refusal", ""])
def test_a_field_that_does_more_than_give_a_bias_is_left_alone(more: str) -> None:
    found = flags_of(Does(Config(use_bias=False, more=more)))
    assert [flag.biases for flag in found] == ([] if more else [("b.bias",)])


def test_a_field_that_says_no_is_turned_round() -> None:
    class Free(nn.Module):
        def __init__(self, config: Config) -> None:
            super().__init__()
            self.config = config
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3, bias=not config.no_bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    small, report = pruned(double(Free(Config(no_bias=True))))
    assert (small.config.no_bias, small.b.bias is None) == (False, False)
    assert report.choices["config"]["no_bias"] == [True, False]


def test_of_fields_that_give_the_same_bias_the_one_that_brings_fewest() -> None:
    class Two(Model):
        def __init__(self, config: Config) -> None:
            super().__init__(config)
            for layer in self.layers:
                layer.down = nn.Linear(config.intermediate_size, 6, bias=config.mlp_bias or config.down_bias)

    small, _ = pruned(double(Two(Config(intermediate_size=12, mlp_bias=False, down_bias=False))))
    assert (small.config.mlp_bias, small.config.down_bias) == (False, True)
    assert biases(small) == ["layers.0.down.bias", "layers.1.down.bias"]


class Served(nn.Module):
    """Heads, an MLP, and a convolution before them; no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.a, self.b = nn.Conv1d(6, 8, 1, bias=False), nn.Conv1d(8, 8, 1, bias=False)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(8, 12, bias=False), nn.Linear(12, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x[..., None]).relu()).mT
        y = torch.cat([y, y.cumsum(-1)], 1)
        q, k, v = (part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = y + self.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return (y + self.down(self.up(y).relu())).mean(1)


@pytest.mark.parametrize(
    ("serve", "given"),
    [
        ("deci", ["o.bias", "down.bias"]),
        ("gguf:q8_0", ["o.bias", "down.bias"]),
        (None, ["b.bias", "o.bias", "down.bias"]),
    ],
)
def test_what_is_served_by_llama_cpp_gets_them_at_output_and_down_projections(
    serve: str | None, given: Sequence[str]
) -> None:
    model = double(Served())
    scores = scored(model, X)
    assert {"channel", "head", "neuron"} <= {scores.units.groups[g].kind for g in scores.units.prunable}
    plan = scores.plan(keep_params=0.7, allocation="uniform")
    plan = replace(plan, request={**plan.request, "serve": serve})
    small = fk.apply(model, plan, compensate="least_squares", scores=scores)
    assert sorted(biases(small)) == sorted(given)


class Normed(nn.Module):
    """A layer of a list with as many norms."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Module()])
        layer = self.layers[0]
        layer.gate, layer.up, layer.down = (nn.Linear(a, b, bias=False) for a, b in ((6, 12), (6, 12), (12, 6)))
        layer.norms = nn.ModuleList(nn.RMSNorm(6) for _ in range(norms))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layers[0]
        for norm in layer.norms:
            x = norm(x)
        return self.head(x + layer.down(layer.gate(x).relu() * layer.up(x)))


@pytest.mark.parametrize(("norms", "given"), [(2, ["layers.0.down.bias"]), (3, [])])
def test_what_deci_cannot_hold_gets_none_for_llama_cpp(norms: int, given: Sequence[str]) -> None:
    model = double(Normed(norms))
    scores = scored(model, X)
    plan = scores.plan(keep_params=0.7)
    plan = replace(plan, request={**plan.request, "serve": "gguf"})
    assert biases(fk.apply(model, plan, compensate="least_squares", scores=scores)) == given


def test_means_that_have_nowhere_to_go_are_refused() -> None:
    with pytest.raises(fk.InputError, match=r"has no field that gives it one.*least_squares', or biases=True"):
        pruned(without_field(), compensate="mean")
    with pytest.raises(fk.InputError, match=r"biases=False.*use compensate='least_squares'"):
        pruned(with_flag(), compensate="mean", biases=False)
    model = double(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)))
    small, report = pruned(model, compensate="mean", biases=False, allocation="uniform")
    assert small[2].bias is None
    assert report.choices["not_compensated"] == {"2.weight:1": "it has no bias and is given none: biases=False"}
    assert report.choices["compensated"] == 1


@pytest.mark.parametrize("given", ["yes", 1, None, 0.0, [True]])
def test_what_is_neither_auto_nor_a_truth_value_is_refused(given: Any) -> None:
    with pytest.raises(fk.InputError, match=r"biases.*expected.*'auto'"):
        Biases.given(given)
    assert Biases.given(np.bool_(False)) is Biases.NONE
