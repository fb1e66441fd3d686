"""Tracing of torchvision models at 224 × 224, without and with the proving run, against one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fairkern as fk
from bench._compare import compare

torchvision = pytest.importorskip("torchvision")
MOST_S = {
    ("resnet50", False): 1.0,
    ("densenet121", False): 3.0,
    ("resnet50", True): 10.0,
    ("densenet121", True): 30.0,
}


@pytest.mark.parametrize(("name", "verify"), MOST_S, ids=lambda v: v if isinstance(v, str) else ("", "proof")[v])
def test_tracing(name: str, verify: bool, benchmark: Any, record: Callable[..., None]) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def ours() -> fk.UnitMap:
        return fk.trace(model, x, verify=verify)

    def forward() -> None:
        with torch.inference_mode():
            model(x)

    timed = compare(ours, forward, rounds=3 if verify else 7, warmup=1)
    benchmark.pedantic(ours, rounds=1)
    record(benchmark, timed, op="trace", shape=f"{name}, 1 x 3 x 224 x 224", rival="one forward pass", verify=verify)
    assert timed.ours.p50 < MOST_S[name, verify]
