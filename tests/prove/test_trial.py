from __future__ import annotations

import itertools
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.errors import InputError, PlanMismatchError
from fairkern.plans.build import build
from fairkern.plans.removals import about_half
from fairkern.prove import difference, not_finite, prove, vary
from fairkern.prove.inputs import distance
from fairkern.prove.prepared import prepare
from fairkern.prove.search import Failed, search
from fairkern.prove.stir import calibrate, stir
from fairkern.prove.trial import failing
from fairkern.types import UnitMap
from tests.compact.handmade import units_of
from tests.compact.untouched import assert_untouched, snapshot


def chain(units: int, layers: int, kind: type[nn.Module]) -> tuple[nn.Module, UnitMap]:
    """`layers` hidden linear layers of `units` neurons each, a group each."""
    torch.manual_seed(0)
    model = kind(units, layers)
    groups = {
        f"hidden{i}": (units, f"layers.{i}.weight:0 layers.{i}.bias:0 layers.{i + 1}.weight:1>") for i in range(layers)
    }
    attributes = {f"layers.{i}.out_features": f"hidden{i}" for i in range(layers)}
    attributes |= {f"layers.{i + 1}.in_features": f"hidden{i}" for i in range(layers)}
    return model, units_of(model, groups, attributes)


class Honest(nn.Module):
    def __init__(self, units: int, layers: int) -> None:
        super().__init__()
        widths = [6, *[units] * layers, 3]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def between(self, i: int, x: Tensor) -> Tensor:
        return torch.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers[:-1]):
            x = self.between(i, layer(x))
        return self.layers[-1](x)


class ScaledBySize(Honest):
    """Reads a size when it runs; the trace takes it for a constant."""

    def between(self, i: int, x: Tensor) -> Tensor:
        return torch.relu(x * x.shape[-1] ** -0.5) if i == 2 else torch.relu(x)


class Averaged(Honest):
    """A mean over the units: zeroing a unit is not removing it."""

    def between(self, i: int, x: Tensor) -> Tensor:
        return torch.relu(x - x.mean(-1, keepdim=True)) if i in (1, 4) else torch.relu(x)


class Reshaped(Honest):
    """A size written into the code."""

    def between(self, i: int, x: Tensor) -> Tensor:
        return torch.relu(x.reshape(-1, 4, 4).transpose(1, 2).reshape(-1, 16) if i == 3 else x)


class Jointly(Honest):
    """Layers 1 and 3 hold alone, and fail when both are cut."""

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.layers[1].out_features < 16 and self.layers[3].out_features < 16
        return super().forward(x) + float(narrow)


def test_an_honest_model_passes_untouched():
    model, units = chain(16, 6, Honest)
    model.train()
    model(torch.randn(4, 6)).sum().backward()
    before, state = snapshot(model), torch.get_rng_state()
    assert prove(model, units, torch.randn(4, 6), seed=0) == {}
    torch.set_rng_state(state)
    assert_untouched(model, before)
    assert model.training


@pytest.mark.parametrize(
    ("kind", "guilty", "reason"),
    [
        (ScaledBySize, {2}, "pruned differs from masked by"),
        (Averaged, {1, 4}, "pruned differs from masked by"),
        (Reshaped, {3}, "pruned model fails: RuntimeError: shape"),
    ],
)
def test_only_the_guilty_groups_fail(kind, guilty, reason):
    model, units = chain(16, 6, kind)
    failed = prove(model, units, torch.randn(4, 6), seed=0)
    assert failed.keys() == guilty
    assert all(said.startswith(reason) for said in failed.values()), failed
    assert prove(model, units.freeze(failed), torch.randn(4, 6), seed=1) == {}


def test_a_captured_constant():
    """`x * C ** -0.5` with C taken when the model was built is right for pruned and masked alike."""

    class Captured(Honest):
        def __init__(self, units: int, layers: int) -> None:
            super().__init__(units, layers)
            self.scale = units**-0.5

        def between(self, i: int, x: Tensor) -> Tensor:
            return torch.relu(x * self.scale)

    class Followed(Captured):
        """The same constant taken from an attribute that pruning changes."""

        def between(self, i: int, x: Tensor) -> Tensor:
            return torch.relu(x * self.layers[3].in_features ** -0.5)

    model, units = chain(16, 4, Captured)
    assert prove(model, units, torch.randn(4, 6), seed=0) == {}
    model, units = chain(16, 4, Followed)
    assert prove(model, units, torch.randn(4, 6), seed=0).keys() == {2}


def test_a_joint_failure_loses_one_member():
    model, units = chain(16, 6, Jointly)
    failed = prove(model, units, torch.randn(4, 6), seed=0)
    assert failed.keys() == {3}


def test_a_wrong_map_is_caught():
    """Biases cut at other positions than their rows: with the zero biases of a fresh model nothing would show."""
    model, units = chain(16, 4, Honest)
    for layer in model.layers:
        nn.init.zeros_(layer.bias)
    group = units.groups[1]
    axes = tuple(
        replace(axis, positions=axis.positions[::-1].copy()) if axis.axis.tensor.endswith("bias") else axis
        for axis in group.axes
    )
    wrong = replace(units, groups=(units.groups[0], replace(group, axes=axes), *units.groups[2:]))
    failed = prove(model, wrong, torch.randn(4, 6), seed=0)
    assert failed.keys() == {1}


@pytest.mark.parametrize("vector", ["weight", "bias", "running_mean", "running_var"])
def test_a_wrong_cut_of_fresh_normalisation_is_caught(plain_case, vector):
    bn = plain_case.model.bn
    bn.reset_parameters()
    units = plain_case.units
    axes = tuple(
        replace(axis, positions=axis.positions[::-1].copy()) if axis.axis.tensor == f"bn.{vector}" else axis
        for axis in units.groups[0].axes
    )
    wrong = replace(units, groups=(replace(units.groups[0], axes=axes), units.groups[1]))
    assert prove(plain_case.model, units, plain_case.inputs) == {}
    assert prove(plain_case.model, wrong, plain_case.inputs).keys() == {0}


def test_every_handmade_case_is_proven(case):
    model = case.model.float()
    inputs = case.inputs.float() if case.inputs.is_floating_point() else case.inputs
    before = snapshot(model)
    assert prove(model, case.units, inputs, seed=3) == {}
    assert_untouched(model, before)


def test_own_dtype_where_float64_does_not_run():
    class Single(Honest):
        def between(self, i: int, x: Tensor) -> Tensor:
            return torch.relu(x @ torch.eye(x.shape[-1]))

    class Scaled(Single):
        def between(self, i: int, x: Tensor) -> Tensor:
            return super().between(i, x * x.shape[-1] ** -0.5 if i == 1 else x)

    for kind, guilty in ((Single, set()), (Scaled, {1})):
        model, units = chain(16, 4, kind)
        assert prove(model, units, torch.randn(4, 6)).keys() == guilty


def test_inputs_that_cannot_be_varied():
    class Picky(Honest):
        def forward(self, x: Tensor) -> Tensor:
            if (x < 0).any():
                raise ValueError("expected images")
            return super().forward(x)

    class Logarithmic(Honest):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.log())

    for kind in (Picky, Logarithmic):
        model, units = chain(16, 4, kind)
        assert prove(model, units, torch.rand(4, 6) + 0.5) == {}
        model, units = chain(16, 4, kind)
    with pytest.raises(ValueError, match="expected images"):
        prove(chain(16, 4, Picky)[0], units, -torch.ones(4, 6))


def test_a_model_that_is_not_deterministic_fails_as_a_whole():
    class Counting(Honest):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.calls += 1
            return super().forward(x) + Counting.calls

    class Noisy(Honest):  # the same noise on both sides: the generator is set before each run
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.randn(3)

    model, units = chain(16, 4, Counting)
    failed = prove(model, units, torch.randn(4, 6))
    assert failed.keys() == {0, 1, 2, 3}
    assert failed[0].startswith("with nothing removed: pruned differs")
    model, units = chain(16, 4, Noisy)
    state = torch.get_rng_state()
    assert prove(model, units, torch.ones(4, 6)) == {}
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_proven(plain_case, tied_case):
    with pytest.raises(InputError, match="meta"):
        prove(plain_case.model.to("meta"), plain_case.units, plain_case.inputs)
    with pytest.raises(PlanMismatchError):
        prove(tied_case.model, plain_case.units, plain_case.inputs)
    frozen = tied_case.units.freeze({0: "asked"})
    assert prove(tied_case.model, frozen, None) == {}


@pytest.mark.parametrize("bad", [set(), {0}, {30}, {63}, {3, 4, 5}, set(range(64)), {1, 17, 33, 50}])
def test_search_finds_exactly_the_bad_ones_in_few_runs(bad):
    runs = []

    def failure(groups):
        runs.append(groups)
        return Failed("bad") if bad & set(groups) else None

    assert search(range(64), failure) == dict.fromkeys(sorted(bad), Failed("bad"))
    assert len(runs) <= (1 if not bad else 2 + (len(bad) + 1) * 9)


def test_search_ends_for_any_answer():
    rng = np.random.default_rng(0)
    for _ in range(50):
        runs = []

        def failure(groups, runs=runs):
            runs.append(groups)
            return Failed("bad") if len(groups) and rng.random() < 0.5 else None

        search(range(20), failure)
        assert len(runs) < 200


def test_distance_of_nested_outputs():
    Pair = namedtuple("Pair", ["logits", "aux"])

    @dataclass
    class Output:
        logits: Tensor
        aux: Tensor | None

    x, y = torch.tensor([1.0, -4.0]), torch.tensor([1.0, -3.0])
    for wrap in (
        lambda t: t,
        lambda t: (t, None),
        lambda t: [x, {"a": (t, 3)}],
        lambda t: Pair(t, x),
        lambda t: OrderedDict(a=t),
        lambda t: Output(t, None),
    ):
        assert distance(wrap(x), wrap(y)) == 0.25
        assert distance(wrap(x), wrap(x)) == 0
    inf, nan = float("inf"), float("nan")
    assert distance(torch.tensor([inf, -inf, 1.0]), torch.tensor([inf, -inf, 1.5])) == 0.5
    assert distance(torch.tensor([inf, 1.0]), torch.tensor([-inf, 1.0])) == inf
    assert distance(torch.tensor([inf, 1.0]), torch.tensor([2.0, 1.0])) == inf
    assert distance(x, torch.tensor([1.0, nan])) == inf
    assert distance(torch.tensor([nan]), torch.tensor([nan])) == inf
    assert distance(x, x[:1]) == inf
    assert distance((x, x), (x,)) == inf
    assert distance(torch.zeros(2), torch.zeros(2)) == 0
    assert distance((x, torch.tensor([1e-30])), (x, torch.tensor([2e-30]))) < 1e-20
    assert distance(torch.tensor([1, 2]), torch.tensor([1, 4])) == 1
    assert distance(torch.tensor([3j]), torch.tensor([3j + 1])) == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="without any tensor"):
        distance(None, None)
    assert difference(nn.Identity(), nn.ReLU(), (x,)) == 1


def test_vary():
    inputs = {"image": torch.rand(2, 3, 8, 8) + 5, "rest": (torch.arange(10).view(2, 5), [torch.ones(3) > 0], "name")}
    state = torch.get_rng_state()
    one, two, other = vary(inputs, 0), vary(inputs, 0), vary(inputs, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one["image"], two["image"])
    assert not torch.equal(one["image"], other["image"])
    assert not torch.equal(one["image"], inputs["image"])
    assert abs(one["image"].mean() - 5.5) < 0.1
    assert abs(one["image"].std() - inputs["image"].std()) < 0.05
    ids, flags, name = one["rest"]
    assert ids.dtype == torch.int64
    assert sorted(ids.flatten().tolist()) == list(range(10))
    assert flags[0].dtype == torch.bool
    assert name == "name"
    assert vary(torch.zeros(100, dtype=torch.float16), 0).dtype == torch.float16
    assert vary(torch.zeros(100), 0).std() > 0.5
    assert vary(torch.zeros(0), 0).shape == (0,)


def test_stir_leaves_no_constant_parameter():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.PReLU(), nn.Embedding(5, 2)
    )
    nn.init.zeros_(model[1].weight)
    nn.init.constant_(model[3].weight, 1e-6)
    nn.init.zeros_(model[5].weight)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    given = before["0.weight"]
    stirred = stir(model, 0)
    changed = [p for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert [id(t) for t in stirred] == [id(p) for p in changed], "all that it wrote to, and nothing else"
    for name, parameter in model.named_parameters():
        assert parameter.numel() == 1 or parameter.std() > 1e-3, name
    assert model[1].weight.abs().min() > 0.1
    assert torch.equal(model[0].weight, given)


@pytest.mark.parametrize("kind", [Honest, ScaledBySize])
def test_a_copy_is_after_a_trial_what_it_was(kind):
    """Also what is not constant in the model, and comes back from there."""
    model, units = chain(8, 3, kind)
    nn.init.ones_(model.layers[1].weight)
    prepared = prepare(model, units, torch.randn(4, 6), 0)
    held = {id(parameter): name for name, parameter in prepared.copy.named_parameters()}
    found = {held[tensor] for tensor in prepared.origins}
    assert found == {name for name, _ in model.named_parameters()} - {"layers.1.weight"}
    before = snapshot(prepared.copy)
    assert bool(failing(model, units, torch.randn(4, 6), seed=0, prepared=prepared)) is (kind is ScaledBySize)
    assert_untouched(prepared.copy, before)


def test_calibrate_keeps_the_signal_alive():
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(8):
        layers += [nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for layer in model[::3]:
            layer.weight.mul_(0.1)
        x = torch.randn(2, 4, 6, 6)
        assert model(x).abs().max() < 1e-6
        with calibrate(model, 0):
            model(x)
        assert 0.1 < model(x).std() < 10
    assert not model[1]._forward_pre_hooks


def test_a_trace_with_its_proof_leaves_the_random_state() -> None:
    model, state = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)), torch.get_rng_state()
    assert fk.trace(model, torch.ones(2, 4)).proven
    assert torch.equal(torch.get_rng_state(), state)


class FirstCall(nn.Module):
    """Its first call says how many heads it has, as a module that is replaced there does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n, self.called = nn.Linear(5, 24), nn.Linear(24, 3), 4, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.called:
            self.n, self.called = 4, True
        made = self.a(x).view(-1, self.n, 6)
        return self.b((made * made.square().sum(-1, keepdim=True)).flatten(1))


def test_what_is_cut_in_a_proof_has_not_run() -> None:
    torch.manual_seed(0)
    model, x = FirstCall().double(), torch.randn(3, 5).double()
    units = fk.trace(model, x)
    plan = fk.Plan(**vars(build(units, about_half(units, 1))))
    small = fk.apply(model, plan)
    with plan.masked(model):
        assert difference(model, small, x) < 1e-9


def test_a_weight_that_is_not_finite_is_named() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    net[0].weight.data[3, 1] = torch.nan
    with pytest.raises(fk.NonFiniteError, match=r"^0\.weight holds NaN or Inf"):
        fk.trace(net, torch.randn(2, 4))
    net[2].bias.data[0] = torch.nan
    with pytest.raises(fk.NonFiniteError, match=r"^0\.weight and 1 more hold NaN or Inf"):
        fk.prune(net, [(torch.randn(8, 4), torch.arange(8) % 2)], nn.CrossEntropyLoss(), keep_params=0.5)


def test_weights_of_any_type_are_asked() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).to(torch.float8_e4m3fn)
    net[1].weight.data.fill_(torch.nan)
    assert not_finite(net) == ["1.weight"]


def test_a_weight_that_spoils_nothing_is_noted() -> None:
    class Mask(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            self.mask = nn.Parameter(torch.tensor([0.0, -torch.inf]), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (super().forward(x) + self.mask).softmax(1)

    units = fk.trace(Mask(), torch.randn(2, 4))
    assert units.prunable
    assert units.notes[0] == "mask holds NaN or Inf"
