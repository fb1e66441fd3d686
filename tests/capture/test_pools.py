"""Max pooling inside the pass: the same values and gradients, torch's own for what else is asked, nothing left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fairkern.capture import pools
from fairkern.capture.pools import quick_maxima

SETTINGS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 3), "padding": (1, 0)},
    {"kernel_size": (1, 5), "stride": (2, 1), "padding": (0, 2)},
    {"kernel_size": 2, "stride": 5, "padding": 1},
    {"kernel_size": 4, "stride": 3, "padding": 2},
    {"kernel_size": 1},
]


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("how", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (3, 7, 5), (1, 2, 4, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_are_those_of_the_layer(how: dict, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = drawn(*shape, dtype=dtype)
    x.view(-1)[::7] = torch.nan
    x.view(-1)[1::5] = -torch.inf
    x.view(-1)[2::11] = torch.inf
    model, before = nn.Sequential(nn.MaxPool2d(**how)), x.clone()
    expected = model(x)
    with quick_maxima(model):
        found = model(x)
    assert torch.equal(found.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    assert found.is_contiguous()
    found.zero_()  # as an activation in place may
    assert torch.equal(x.nan_to_num(nan=7.0), before.nan_to_num(nan=7.0))


@pytest.mark.parametrize(
    "x",
    [
        drawn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        drawn(2, 3, 4, 4).bfloat16(),
        drawn(2, 3, 4, 4).mul(9).to(torch.int32),
        drawn(0, 3, 4, 4),
    ],
    ids=["channels last", "bfloat16", "integers", "empty"],
)
def test_torchs_own_is_used_for_the_rest(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_along", lambda *_: pytest.fail("maxima by dimensions"))
    model = nn.Sequential(nn.MaxPool2d(2))
    expected = model(x)
    with quick_maxima(model):
        assert torch.equal(model(x), expected)


def test_without_gradients_one_that_asks_for_them_is_read_all_the_same() -> None:
    model, x = nn.Sequential(nn.MaxPool2d(2)), drawn(2, 3, 4, 4).requires_grad_()
    with quick_maxima(model), torch.no_grad():
        assert torch.equal(model(x), nn.functional.max_pool2d(x, 2))


@pytest.mark.parametrize("how", [{"kernel_size": 5}, {"kernel_size": 2, "padding": 2}], ids=str)
def test_errors_are_those_of_the_layer(how: dict) -> None:
    model = nn.Sequential(nn.MaxPool2d(**how))
    with pytest.raises(RuntimeError) as expected:
        model(drawn(1, 2, 4, 4))
    with quick_maxima(model), pytest.raises(RuntimeError) as found:
        model(drawn(1, 2, 4, 4))
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("size", [np.int64(2), torch.tensor(2), (np.int64(2), 2), [2, 2], torch.Size((2, 2))], ids=repr)
def test_sizes_are_whatever_torch_takes(size: object) -> None:
    """Or refuses, as older versions do a tensor."""
    model = nn.Sequential(nn.MaxPool2d(size))  # type: ignore[arg-type]

    def given() -> list[Tensor] | str:
        try:
            return through(model, drawn(2, 3, 4, 6))
        except RuntimeError as refused:
            return str(refused)

    expected = given()
    with quick_maxima(model):
        found = given()
    if isinstance(expected, str):
        assert found == expected
    else:
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("how", SETTINGS, ids=str)
def test_transforms_of_functions_go_through(how: dict) -> None:
    model, x = nn.Sequential(nn.MaxPool2d(**how)), drawn(2, 3, 8, 8)

    def transformed() -> list[Tensor]:
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, x + 1))).tangent
        return [
            torch.func.vmap(model)(x),
            torch.func.grad(lambda image: model(image).square().sum())(x),
            torch.func.jvp(model, (x,), (x + 1,))[1],
            tangent,
        ]

    expected = transformed()
    with quick_maxima(model):
        assert all(map(torch.equal, transformed(), expected))


class Own(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_other_layers_are_left_alone_and_all_are_themselves_afterwards() -> None:
    patched = nn.MaxPool2d(2)
    patched.forward = torch.relu
    others = nn.ModuleList(
        [Own(2), nn.MaxPool2d(2, return_indices=True), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, dilation=2)]
    ).append(patched)
    model, before = nn.ModuleList([nn.MaxPool2d(2), *others]), [dict(vars(layer)) for layer in others]

    def fails() -> None:
        with quick_maxima(model):
            assert "forward" in vars(model[0])
            assert [dict(vars(layer)) for layer in others] == before
            raise ValueError("of mine")

    with pytest.raises(ValueError, match="of mine"):
        fails()
    assert "forward" not in vars(model[0])
    assert patched.forward is torch.relu


def through(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of a fixed combination of it."""
    x = x.detach().requires_grad_()
    y = model(x)
    return y.detach(), torch.autograd.grad(y, x, drawn(*y.shape, dtype=y.dtype))[0]


@pytest.mark.parametrize("how", [*SETTINGS, {"kernel_size": (3, 2)}, {"kernel_size": (2, 4)}], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (3, 7, 5), (5, 2, 4, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_go_where_those_of_the_layer_go(how: dict, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Identity(), nn.MaxPool2d(**how), nn.ReLU(inplace=True))  # which writes to the maxima
    ties = drawn(*shape).round().to(dtype)
    for x in (drawn(*shape, dtype=dtype), ties, ties.relu(), -ties.relu()):
        expected = through(model, x)
        with quick_maxima(model):
            found = through(model, x)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_gradients_of_gradients_are_those_of_the_layer() -> None:
    model, x = nn.Sequential(nn.MaxPool2d(2)), drawn(2, 3, 4, 6, dtype=torch.float64).requires_grad_()

    def twice() -> Tensor:
        first = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.pow(3).sum(), x)[0]

    expected = twice()
    with quick_maxima(model):
        assert torch.equal(twice(), expected)


def test_overlapping_windows_with_gradients_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_maxima", lambda *_: pytest.fail("windows side by side"))
    model = nn.Sequential(nn.MaxPool2d(3, 2, 1))
    with quick_maxima(model):
        assert model(drawn(1, 2, 6, 6).requires_grad_()).grad_fn.name().startswith("MaxPool2D")
