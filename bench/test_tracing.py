"""Tracing of torchvision models (the slowest two among them), without and with the proving run, and of YOLO models with
position-sensitive attention, against one forward pass; of a decoder of 70 billion parameters on the meta device,
against half of its layers; and what trace and proof add to a decoder's weights, by a sibling and on the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fairkern as fk
from bench._compare import Comparison, Timing, bound, compare
from bench.provenance import ROOT

torchvision = pytest.importorskip("torchvision")
MOST_S = {
    ("resnet50", 224, False): 1.0,
    ("densenet121", 224, False): 3.0,
    ("efficientnet_v2_l", 96, False): 2.0,
    ("regnet_y_128gf", 64, False): 2.0,
    ("resnet50", 224, True): 0.35,
    ("densenet121", 224, True): 0.6,
    ("efficientnet_v2_l", 96, True): 2.5,
}
YOLO_MOST_S = {"yolo11n": 6.0, "yolo26n-seg": 15.0}
LLAMA_MOST_S, LLAMA_MOST_BYTES = 5.0, 1.2e9


def seconds(found: float, most: float) -> dict[str, Any]:
    """A row's bound in seconds, and whether it holds."""
    return {"bounded": "seconds", "seconds": found, **bound(found, most, at_least=False)}


@pytest.mark.parametrize(("name", "size", "verify"), MOST_S)
def test_tracing(name: str, size: int, verify: bool, benchmark: Any, record: Callable[..., None]) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))

    def ours() -> fk.UnitMap:
        return fk.trace(model, x, verify=verify)

    def forward() -> None:
        with torch.inference_mode():
            model(x)

    timed = compare(ours, forward, rounds=3 if verify else 7, warmup=1)
    benchmark.pedantic(ours, rounds=1)
    within = seconds(timed.ours.p50, MOST_S[name, size, verify])
    shape = f"{name}, 1 x 3 x {size} x {size}"
    record(benchmark, timed, op="trace", shape=shape, rival="one forward pass", verify=verify, **within)
    assert within["met"]


@pytest.mark.parametrize("name", YOLO_MOST_S)
def test_yolo(name: str, benchmark: Any, record: Callable[..., None]) -> None:
    model = pytest.importorskip("ultralytics").YOLO(f"{name}.yaml").model.eval()
    x = torch.rand(1, 3, 640, 640, generator=torch.Generator().manual_seed(0))

    def ours() -> fk.UnitMap:
        return fk.trace(model, x)

    def forward() -> None:
        with torch.inference_mode():
            model(x)

    units = ours()
    timed = compare(ours, forward, rounds=3, warmup=0)
    benchmark.pedantic(ours, rounds=1)
    within = seconds(timed.ours.p50, YOLO_MOST_S[name])
    record(
        benchmark,
        timed,
        op="trace",
        shape=f"{name}, 1 x 3 x 640 x 640",
        rival="one forward pass",
        verify=True,
        prunable=len(units.prunable),
        groups=len(units.groups),
        **within,
    )
    assert units.proven
    assert len(units.prunable) == len(units.groups)
    assert within["met"]


def test_llama_70b_without_values(benchmark: Any, record: Callable[..., None]) -> None:
    pytest.importorskip("transformers")

    def trace(layers: int) -> dict[str, Any]:
        command = [sys.executable, "-m", "bench._large", str(layers)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]

    half = trace(40)
    whole = benchmark.pedantic(trace, (80,), rounds=1)
    timed = Comparison(Timing.of([whole["seconds"]]), Timing.of([half["seconds"]]))
    within = seconds(whole["seconds"], LLAMA_MOST_S)
    record(
        benchmark,
        timed,
        op="trace",
        shape="Llama 3 70B on meta, 1 x 16",
        rival="its first 40 of 80 layers",
        verify=False,
        **{k: v for k, v in whole.items() if k != "seconds"},
        **within,
    )
    assert whole["params"] > 70e9
    assert whole["params_at_half"] <= 0.5 * whole["params"]
    assert within["met"]
    assert whole["peak_bytes"] <= LLAMA_MOST_BYTES
    assert timed.relative_cost < 2.6, "more than linear in the operators"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_of_a_proof(dtype: str, benchmark: Any, record: Callable[..., None]) -> None:
    """On a Llama of 139M parameters. Seconds are of one trace each, in a process of its own."""
    pytest.importorskip("transformers")

    def trace(how: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "bench._proof", "139M", dtype, how]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]

    whole = trace("whole")
    ours = benchmark.pedantic(trace, ("auto",), rounds=1)
    record(
        benchmark,
        Comparison(Timing.of([ours["seconds"]]), Timing.of([whole["seconds"]])),
        op="trace + proof, added over weights",
        shape=f"Llama 139M, {dtype}, 1 x 256",
        rival="proof on the whole model",
        verify=True,
        added_over_weights=ours["added_bytes"] / ours["weights_bytes"],
        added_over_weights_whole=whole["added_bytes"] / whole["weights_bytes"],
        sibling=ours["sibling"],
    )
    assert ours["sibling"]
    assert ours["prunable"] == whole["prunable"] == ours["groups"]
    assert ours["added_bytes"] <= ours["weights_bytes"]
