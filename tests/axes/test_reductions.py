"""Sums, means, softmax, sorting, pooling and resampling: what they run over stays, everything else goes along."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.axes.harness import Case, Net, check_exact, check_groups

FREE = {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"}


def free(function: Any, dims: int = 2, size: int = 8) -> Case:
    """A function that runs over space between two convolutions, applied per channel."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return Case(
        lambda: Net(lambda m, x: m.b(function(m.a(x))), a=kind(3, 8, 1), b=kind(8, 4, 1)),
        FREE,
        shape=(2, 3, *[size] * dims),
    )


def head(function: Any) -> Case:
    """A function that leaves one value per channel, before a linear layer."""
    return Case(lambda: Net(lambda m, x: m.b(function(m.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 4)), FREE)


def frozen(reason: str, function: Any) -> Case:
    """A function that runs over the channels: they stay."""
    return Case(
        lambda: Net(lambda m, x: m.b(function(m.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.LazyConv2d(4, 1)),
        {},
        {"a.weight:0": reason},
    )


CASES = {
    "mean over space": head(lambda x: x.mean((2, 3))),
    "mean, dimensions kept": free(lambda x: x - x.mean((2, 3), keepdim=True)),
    "sum over space": head(lambda x: x.sum((-1, -2))),
    "variance over space": head(lambda x: x.var((2, 3))),
    "standard deviation and mean": head(lambda x: torch.add(*torch.std_mean(x, (2, 3)))),
    "maximum over space": head(lambda x: x.amax((2, 3)) - x.flatten(2).min(2).values),
    "norm over space": head(lambda x: torch.linalg.vector_norm(x, dim=(2, 3))),
    "normalised over space": free(lambda x: F.normalize(x, dim=2)),
    "logsumexp over space": head(lambda x: x.flatten(2).logsumexp(-1)),
    "median over space": head(lambda x: x.flatten(2).sort(-1).values[..., 32]),
    "largest over space": head(lambda x: x.flatten(2).topk(3, -1).values.sum(-1)),
    "softmax over space": free(lambda x: x.flatten(2).softmax(-1).view_as(x)),
    "cumulative sum over space": free(lambda x: x.cumsum(2)),
    "max pool 1d": free(lambda x: F.max_pool1d(x, 2), 1),
    "max pool 2d": free(lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "max pool 3d": free(lambda x: F.max_pool3d(x, 2), 3, 4),
    "average pool 1d": free(lambda x: F.avg_pool1d(x, 2), 1),
    "average pool 2d": free(lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
    "average pool 3d": free(lambda x: F.avg_pool3d(x, 2), 3, 4),
    "adaptive average pool 1d": free(lambda x: F.adaptive_avg_pool1d(x, 3), 1),
    "adaptive average pool 2d": free(lambda x: F.adaptive_avg_pool2d(x, (3, 2))),
    "adaptive average pool 2d to one": free(lambda x: F.adaptive_avg_pool2d(x, 1)),
    "adaptive average pool 3d": free(lambda x: F.adaptive_avg_pool3d(x, 2), 3, 4),
    "adaptive max pool 1d": free(lambda x: F.adaptive_max_pool1d(x, 3), 1),
    "adaptive max pool 2d": free(lambda x: F.adaptive_max_pool2d(x, 3)),
    "lp pool": free(lambda x: F.lp_pool2d(x.abs(), 2, 2)),
    "nearest": free(lambda x: F.interpolate(x, scale_factor=2)),
    "nearest, exact": free(lambda x: F.interpolate(x, size=(5, 9), mode="nearest-exact")),
    "nearest 1d": free(lambda x: F.interpolate(x, scale_factor=2), 1),
    "nearest 3d": free(lambda x: F.interpolate(x, size=3), 3, 4),
    "linear": free(lambda x: F.interpolate(x, scale_factor=2, mode="linear"), 1),
    "bilinear": free(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)),
    "bilinear, antialiased": free(lambda x: F.interpolate(x, size=5, mode="bilinear", antialias=True)),
    "bicubic": free(lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic")),
    "trilinear": free(lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), 3, 4),
    "area": free(lambda x: F.interpolate(x, size=4, mode="area")),
    "mean over channels": frozen("mean runs over it", lambda x: x.mean(1, keepdim=True)),
    "mean over everything": frozen("mean runs over it", lambda x: x - x.mean()),
    "sum over channels": frozen("sum runs over it", lambda x: x * x.sum(1, keepdim=True)),
    "maximum over channels": frozen("amax runs over it", lambda x: x.amax(1, keepdim=True)),
    "values and indices": frozen("max runs over it", lambda x: x.max(1, keepdim=True)[0]),
    "argmax over channels": frozen("argmax runs over it", lambda x: x * x.argmax(1, keepdim=True)),
    "norm over channels": frozen("linalg_vector_norm runs over it", lambda x: F.normalize(x, dim=1)),
    "softmax over channels": frozen("_softmax runs over it", lambda x: x.softmax(1)),
    "log softmax over channels": frozen("_log_softmax runs over it", lambda x: x.log_softmax(1)),
    "sorted channels": frozen("sort runs over it", lambda x: x.sort(1).values),
    "cumulative sum over channels": frozen("cumsum runs over it", lambda x: x.cumsum(1)),
    "pooled over channels": frozen(
        "is slid over by", lambda x: F.max_pool1d(x.permute(0, 2, 3, 1).flatten(1, 2), 2).reshape(2, 4, 8, 8)
    ),
    "interpolated over channels": frozen(
        "is slid over by", lambda x: F.interpolate(x.transpose(1, 2), size=(4, 8)).transpose(1, 2)
    ),
    "median over channels": frozen("median runs over it", lambda x: x.median(1, keepdim=True).values),
    "fft over channels": frozen("is transformed by _fft_r2c", lambda x: torch.fft.rfft(x, dim=1).abs()),
    "compared": frozen("is read or written whole by equal", lambda x: x if torch.equal(x, x) else -x),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    check_groups(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str) -> None:
    check_exact(CASES[name])
