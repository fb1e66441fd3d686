"""Max pooling in front of all gradients: the same values, torch's own where something else is asked, nothing left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fairkern.capture import pools
from fairkern.capture.pools import maxima_alone

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
    with maxima_alone(model):
        found = model(x)
    assert torch.equal(found.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    assert found.is_contiguous()
    found.zero_()  # as an activation in place may
    assert torch.equal(x.nan_to_num(nan=7.0), before.nan_to_num(nan=7.0))


@pytest.mark.parametrize(
    "x",
    [
        drawn(2, 3, 4, 4).requires_grad_(),
        drawn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        drawn(2, 3, 4, 4).bfloat16(),
        drawn(2, 3, 4, 4).mul(9).to(torch.int32),
        drawn(0, 3, 4, 4),
    ],
    ids=["gradient", "channels last", "bfloat16", "integers", "empty"],
)
def test_torchs_own_is_used_for_the_rest(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_along", lambda *_: pytest.fail("maxima by dimensions"))
    model = nn.Sequential(nn.MaxPool2d(2))
    expected = model(x)
    with maxima_alone(model):
        assert torch.equal(model(x), expected)
        if x.requires_grad:
            assert model(x).requires_grad


def test_without_gradients_one_that_asks_for_them_is_read_all_the_same() -> None:
    model, x = nn.Sequential(nn.MaxPool2d(2)), drawn(2, 3, 4, 4).requires_grad_()
    with maxima_alone(model), torch.no_grad():
        assert torch.equal(model(x), nn.functional.max_pool2d(x, 2))


@pytest.mark.parametrize("how", [{"kernel_size": 5}, {"kernel_size": 2, "padding": 2}], ids=str)
def test_errors_are_those_of_the_layer(how: dict) -> None:
    model = nn.Sequential(nn.MaxPool2d(**how))
    with pytest.raises(RuntimeError) as expected:
        model(drawn(1, 2, 4, 4))
    with maxima_alone(model), pytest.raises(RuntimeError) as found:
        model(drawn(1, 2, 4, 4))
    assert str(found.value) == str(expected.value)


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
        with maxima_alone(model):
            assert "forward" in vars(model[0])
            assert [dict(vars(layer)) for layer in others] == before
            raise ValueError("of mine")

    with pytest.raises(ValueError, match="of mine"):
        fails()
    assert "forward" not in vars(model[0])
    assert patched.forward is torch.relu
