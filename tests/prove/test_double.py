"""A copy in float64 computes in float64 throughout, whatever its code asks for."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.prove import double, prove
from fairkern.prove.depthwise import depthwise
from fairkern.prove.double import Double
from tests.compact.handmade import units_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecated, and in use

    @torch.jit.script
    def scripted(x: Tensor) -> Tensor:
        return torch.sqrt(torch.tensor(x.size(-1), dtype=torch.float) * 3)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.float() / 3,
        lambda x: x.to(torch.bfloat16) / 3,
        lambda x: x.softmax(-1, dtype=torch.float32),
        lambda x: torch.softmax(x.float(), -1).to(x.dtype),
        lambda x: x / torch.full((4,), 3.0),
        lambda x: x.type_as(torch.zeros(1)) / 3,
        scripted,
    ],
)
def test_nothing_is_rounded(compute) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(2, 4, dtype=torch.float64)
    with Double() as mode:
        found = compute(x)
    assert found.dtype == torch.float64
    assert mode.needed
    assert float((found - compute(x).double()).abs().max()) < 1e-2
    with Double():
        assert torch.equal(found, compute(x))


def test_what_needs_nothing_is_seen_as_such() -> None:
    with Double() as mode:
        nn.Linear(4, 3, dtype=torch.float64)(torch.randn(2, 4, dtype=torch.float64)).relu().sum()
    assert not mode.needed


class Casting(nn.Module):
    """Computes its middle in float32; `error` by every unit that there is makes a cut wrong."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.first, self.second, self.error = nn.Linear(6, 16), nn.Linear(16, 3), error

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x).float())
        return self.second((hidden * (1 + self.error * hidden.shape[-1])).to(x.dtype))


@pytest.mark.parametrize("error", [0.0, 1e-8])
def test_a_small_error_is_an_error_in_a_model_that_casts(error: float) -> None:
    """Rounding to float32 leaves 1e-8 and more: the proof does without it, and lets nothing of that size through."""
    torch.manual_seed(0)
    model = Casting(error)
    units = units_of(
        model,
        {"hidden": (16, "first.weight:0 first.bias:0 second.weight:1>")},
        {"first.out_features": "hidden", "second.in_features": "hidden"},
    )
    failed = prove(model, units, torch.randn(4, 6))
    assert failed.keys() == (set() if error == 0 else {0})


class Positions(nn.Module):
    """Heads beside a number that is as large as something that is cut: a batch of two times four heads."""

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.norm, self.proj, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.num_heads, self.buckets = 4, buckets
        self.table = nn.Embedding(2 * buckets, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.proj(self.norm(x)).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = heads.reshape(3, batch * self.num_heads, length, -1)
        distance = torch.arange(length)[:, None] - torch.arange(length)
        place = distance.clamp(-self.buckets, self.buckets - 1) + self.buckets
        scores = q @ k.transpose(1, 2) / 8**0.5 + 1e-5 * (q[:, :, None] * self.table(place)[None]).sum(-1)
        mixed = (scores.softmax(-1) @ v).view(-1, self.num_heads, length, 8).transpose(1, 2).flatten(2)
        return x + self.out(mixed)


def test_one_attribute_is_left_out_that_is_as_large_as_another_by_chance() -> None:
    torch.manual_seed(0)
    model, x = Positions(8), torch.randn(2, 10, 32)
    units = fk.trace(model, x)
    assert [(g.kind, g.units, g.frozen) for g in units.groups] == [("head", 4, None)]
    assert {a.attribute for a in units.attributes if a.observed} == {"num_heads"}


@pytest.mark.parametrize(
    ("size", "window", "options"),
    [
        ((9,), (3,), {}),
        ((9,), (4,), {"stride": 2, "padding": 1, "bias": False}),
        ((8, 7), (3, 3), {"padding": 1}),
        ((8, 7), (5, 2), {"stride": (2, 3), "padding": (2, 0), "dilation": (1, 2)}),
        ((8, 7), (3, 3), {"padding": "same", "bias": False}),
        ((2, 2), (3, 3), {"padding": 1, "stride": 2}),
        ((5, 4, 6), (2, 3, 3), {"padding": (0, 1, 1), "stride": (1, 2, 1)}),
    ],
)
def test_depthwise_convolutions_are_what_torch_computes(
    size: tuple[int, ...], window: tuple[int, ...], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1]
    layer = kind(6, 6, window, groups=6, **options).double()  # type: ignore[arg-type]
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    expected = layer(x)
    made: list[Tensor | None] = []
    monkeypatch.setattr(double, "depthwise", lambda *args: made.append(depthwise(*args)) or made[-1])
    with Double() as mode:
        found = layer(x)
    assert made[0] is not None
    assert mode.needed
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    assert found.stride() == expected.stride()
    (found.sum() + x.sum()).backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 12, 3, groups=6),  # two filters a channel
        nn.Conv2d(6, 6, 3, groups=3),
        nn.Conv2d(6, 6, 3),
        nn.ConvTranspose2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 6, 9, padding=4, groups=6),  # of more places than are worth it
    ],
)
def test_other_convolutions_are_torchs_own(layer: nn.Module) -> None:
    layer = layer.double()
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    expected = layer(x)
    with Double() as mode:
        found = layer(x)
    assert not mode.needed
    assert torch.equal(found, expected)


def test_what_no_convolution_can_take_is_torchs_error() -> None:
    layer = nn.Conv2d(6, 6, 3, groups=6).double()
    with Double(), pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        layer(torch.randn(2, 6, 2, 2, dtype=torch.float64))
