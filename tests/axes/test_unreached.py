"""Code that the inputs did not reach, and numbers that no trace sees: what may be wrong stays, the rest is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.prove import difference
from tests.axes.harness import Net, randomised

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LARGE = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SCALE = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)[:, None, None]


def net(run: Callable[..., Any], **parts: Any) -> Net:
    torch.manual_seed(0)
    own = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 6, 1), "c": nn.Conv2d(6, 2, 1)}
    model = Net(run, **(own | parts))
    return randomised(model.double().eval())  # type: ignore[return-value]


def groups(units: fk.UnitMap) -> dict[str, str | None]:
    return {g.name: g.frozen for g in units.groups}


def assert_cut(model: nn.Module, units: fk.UnitMap, *inputs: Tensor, training: bool = False) -> nn.Module:
    plan = units.plan(keep_params=0.85)
    small = fk.apply(model, plan)
    for net_ in (model, small):
        net_.train(training)
    with plan.masked(model):
        for x in inputs:
            assert difference(model, small, x) < 1e-9
    model.eval()
    return small


def auxiliary(m: Net, x: Tensor) -> Any:
    h = m.a(x).relu()
    out = m.c(m.b(h).relu())
    return (out, m.aux(h)) if m.training else out


def test_an_auxiliary_head_follows_the_cut() -> None:
    model = net(auxiliary, aux=nn.Conv2d(8, 3, 1))
    units = fk.trace(model, X)
    assert groups(units) == {"a": None, "b": None}
    total = sum(p.numel() for p in model.parameters())
    assert any(n.startswith(f"27 of {total} parameters are reached in train mode only, first aux") for n in units.notes)
    assert_cut(model, units, X)
    assert_cut(model, units, X, training=True)


def hidden_from_training(m: Net, x: Tensor) -> Any:
    if m.training:
        raise RuntimeError("needs targets")
    return m.c(m.b(m.a(x).relu()).relu())


def test_a_head_that_train_mode_does_not_show_freezes_what_it_may_read() -> None:
    units = fk.trace(net(hidden_from_training, aux=nn.Conv2d(8, 3, 1)), X)
    assert groups(units) == {"b": None}
    frozen = {str(f.axis): f.reason for f in units.frozen}
    assert "may be read by aux" in frozen["a.weight:0"]
    assert "not reached" in frozen["aux.weight:0"]
    assert any("needs targets" in note for note in units.notes)


def asserts_in_training(m: Net, x: Tensor) -> Any:
    if m.training:
        raise AssertionError
    return hidden_from_training(m, x)


def test_an_error_without_a_message_is_said_with_its_place() -> None:
    units = fk.trace(net(asserts_in_training, aux=nn.Conv2d(8, 3, 1)), X)
    (note,) = [n for n in units.notes if "train mode" in n]
    assert note.startswith("not traced in train mode: AssertionError without a message, raised in the model")
    assert "raise AssertionError" in note


def scaled_by_a_captured_tensor(m: Net, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x) * SCALE).relu())


def scaled_by_a_kept_number(m: Net, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x) * m.scale).relu())


def scaled_by_the_width(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.c(m.b(x * x.shape[1] ** -0.5).relu())


def scaled_by_an_attribute(m: Net, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x) * m.a.out_channels**-0.5).relu())


def test_a_captured_tensor_freezes() -> None:
    units = fk.trace(net(scaled_by_a_captured_tensor), X)
    assert groups(units) == {"b": None}
    assert any("meets a fixed size" in f.reason for f in units.frozen if str(f.axis) == "a.weight:0")


def test_a_number_kept_since_construction_is_exact() -> None:
    model = net(scaled_by_a_kept_number, scale=8**-0.5)
    units = fk.trace(model, X)
    assert groups(units) == {"a": None, "b": None}
    assert_cut(model, units, X)


@pytest.mark.parametrize("run", [scaled_by_the_width, scaled_by_an_attribute])
def test_a_number_taken_from_the_width_freezes(run: Callable[..., Any]) -> None:
    model = net(run)
    units = fk.trace(model, X)
    assert groups(units).pop("b") is None
    assert "differs from masked" in str(groups(units)["a"])
    assert_cut(model, units, X)


def other_weights(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.c(m.d(h) if len(x) > 4 else m.b(h))


def mixed_channels(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.c(m.b(h - h.mean(1, keepdim=True) if len(x) > 4 else h).relu())


def test_a_module_that_no_input_calls_is_said_and_fails_loudly_where_others_call_it() -> None:
    model = net(other_weights, d=nn.Conv2d(8, 6, 1))
    units = fk.trace(model, X)
    assert groups(units) == {"a": None, "b": None}
    assert any(n.startswith("d, with 54 of 346 parameters, not called by the example inputs") for n in units.notes)
    small = assert_cut(model, units, X)
    assert all(torch.equal(a, b) for a, b in zip(model.d.parameters(), small.d.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="channels"):
        small(LARGE)
    units = fk.trace(model, X, more=[LARGE])
    assert groups(units) == {"a": None, "b": None}
    assert_cut(model, units, X, LARGE)


@pytest.mark.parametrize(
    "left", [nn.Linear(16, 8), nn.BatchNorm2d(8), nn.Sequential(nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1))]
)
def test_what_is_left_over_holds_nothing(left: nn.Module) -> None:
    model = net(lambda m, x: m.c(m.b(m.a(x).relu()).relu()), left=left)
    units = fk.trace(model, X)
    assert groups(units) == {"a": None, "b": None}
    assert any(n.startswith("left, with ") for n in units.notes)
    parameters = {name for name, _ in model.named_parameters() if name.startswith("left")}
    assert {f.reason for f in units.frozen if f.axis.tensor in parameters} == {"is not reached by the example inputs"}
    assert_cut(model, units, X)


class Masked(nn.Module):
    """A stem whose stream meets a vector where a mask is given."""

    def __init__(self, use: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.use, self.conv = use, nn.Conv2d(3, 8, 3)
        self.token = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.conv(x)
        return x if mask is None else self.use(mask, self.token, x)


USES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "put in": torch.where,
    "added": lambda mask, token, x: x + token * mask,
    "multiplied and summed": lambda mask, token, x: x * (x * token).sum(1, keepdim=True) * mask,
}


def masked_stem(m: Net, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return m.c(m.b(m.a(x, mask).relu()).relu())


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (8, 1, 1)])
def test_a_vector_that_fits_one_stream_goes_along(use: str, shape: tuple[int, ...]) -> None:
    model = net(masked_stem, a=Masked(USES[use], shape).double())
    units = fk.trace(model, X)
    assert groups(units) == {"a.conv": None, "b": None}
    assert any(n.startswith("a.token, not reached by the example inputs: goes along") for n in units.notes)
    small = assert_cut(model, units, X)
    assert small.a.token.numel() < 8
    plan, mask = units.plan(keep_params=0.85), torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(2)) > 0.5
    with plan.masked(model):
        assert difference(model, small, (X, mask)) < 1e-9
        assert not torch.allclose(model(X, mask), model(X), atol=1e-3)


class Branch(nn.Module):
    """Two streams of one length, and parameters that only a flag makes it read."""

    def __init__(self, shape: tuple[int, ...], hold: Callable[[nn.Parameter], Any] = lambda p: p) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.extra = hold(nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class Holder(nn.Module):
    """Holds a parameter and runs nothing."""

    def __init__(self, held: nn.Parameter) -> None:
        super().__init__()
        self.held = held


def two_branches(m: Net, x: Tensor) -> Tensor:
    return m.c(m.b(m.d(m.branch(m.a(x).relu()).relu()).relu()))


@pytest.mark.parametrize("shape", [(8,), (5, 16)])
@pytest.mark.parametrize("hold", [lambda p: p, Holder, lambda p: nn.ParameterList([p])])
def test_a_parameter_of_a_module_that_ran_holds_what_it_may_read_there(
    shape: tuple[int, ...], hold: Callable[[nn.Parameter], Any]
) -> None:
    model = net(two_branches, branch=Branch(shape, hold).double(), d=nn.Conv2d(8, 8, 1))
    name = next(n for n, _ in model.named_parameters() if "branch.extra" in n)
    units = fk.trace(model, X)
    assert groups(units) == {"d": None, "b": None}, "the stream after d is as long, and never in the branch"
    reasons = {str(f.axis): f.reason for f in units.frozen}
    assert reasons["branch.up.weight:0"] == f"may be read by {name}, which the example inputs do not reach"
    said = next(n for n in units.notes if "holds what it may read in the code of branch" in n)
    assert said.startswith("branch.extra, not reached")
    assert "unused=['branch.extra'] if none does" in said
    assert_cut(model, units, X)
    whole = {"a": None, "branch.up": None, "branch.down": None, "d": None, "b": None}
    for unused in (name, ["branch.extra"], ["*.extra*"]):
        units = fk.trace(model, X, unused=unused)
        assert groups(units) == whole
        assert not any(name in note for note in units.notes)
    assert_cut(model, units, X)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.extra = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(8, 8))

    def encode(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


def by_a_method(m: Net, x: Tensor) -> Tensor:
    return m.c(m.b(m.a.encode(x)))


def test_a_module_that_runs_by_a_method_holds_what_passes_through_the_code_that_calls_it() -> None:
    units = fk.trace(net(by_a_method, a=Encoder().double()), X)
    assert groups(units) == {"b": None}
    assert any("may be read by a.extra" in f.reason for f in units.frozen)


def test_what_is_said_to_be_unused_is_checked() -> None:
    model = net(other_weights, d=nn.Conv2d(8, 6, 1))
    for unused in (["dd"], "d.weigth"):
        with pytest.raises(fk.InputError, match=r"matches no parameter .* near names: d"):
            fk.trace(model, X, unused=unused)
    with pytest.raises(fk.InputError, match=r"takes in a\.bias, which the example inputs reach"):
        fk.trace(model, X, unused=["a"])
    with pytest.raises(fk.InputError, match="expected for example"):
        fk.trace(model, X, unused=[3])  # type: ignore[list-item]


def test_more_inputs_reach_a_branch_without_weights() -> None:
    model = net(mixed_channels)
    units = fk.trace(model, X, more=[LARGE])
    assert groups(units) == {"b": None}
    assert any("mean runs over it" in f.reason for f in units.frozen)
    assert_cut(model, units, X, LARGE)


def test_a_mask_token_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 16, "patch_size": 8}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=2)).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    units = fk.trace(model, {"pixel_values": x})
    assert [g.kind for g in units.groups if g.frozen is None] == ["head", "neuron"]
    plan, mask = units.plan(keep_params=0.7), torch.tensor([[True, False, True, False]] * 2)
    small = fk.apply(model, plan)
    with plan.masked(model):
        assert difference(model, small, {"pixel_values": x, "bool_masked_pos": mask}) < 1e-9
