"""Latency as a table predicts it against latency as it is measured, whole and cut model in turn, in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from bench._compare import bound, compare
from bench._training import threads
from bench.models import images, resnet18, seeded
from fairkern.demo.models import BUILDERS

MOST = 0.1  # relative difference between the predicted and the measured share
KEEP = (0.7, 0.5)


@dataclass(frozen=True)
class Setting:
    name: str
    build: Callable[[], nn.Module]
    channels: int
    size: int
    batch: int
    scored: int


def vit() -> nn.Module:
    """Six blocks of width 192, patches of 8 × 8."""
    torchvision = pytest.importorskip("torchvision")
    shape = {"image_size": 64, "patch_size": 8, "num_layers": 6, "num_heads": 6, "hidden_dim": 192, "mlp_dim": 768}
    return seeded(lambda: torchvision.models.VisionTransformer(num_classes=10, **shape))


CASES = {
    "vgg": Setting("demo vgg", BUILDERS["vgg"], 1, 8, 32, 160),
    "resnet18": Setting("ResNet-18", lambda: resnet18(10), 3, 128, 8, 40),
    "vit": Setting("ViT, 6 blocks", vit, 3, 64, 8, 40),
}


@pytest.fixture(scope="module", params=CASES)
def measured(request: pytest.FixtureRequest) -> tuple[Setting, nn.Module, Tensor, fk.Scores, Any]:
    """A model, what it is timed on, its scores on random images, its table."""
    setting = CASES[request.param]
    model = setting.build().eval()
    x, y = images(setting.scored, 10, setting.channels, setting.size)
    inputs = x[: setting.batch]
    units = fk.trace(model, inputs[:2])
    with threads(1):
        scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), units=units, gram=True, progress=False)
        return setting, model, inputs, scores, fk.latency_table(model, units, inputs)


@pytest.mark.parametrize("keep", KEEP)
def test_predicted_latency(
    keep: float,
    measured: tuple[Setting, nn.Module, Tensor, fk.Scores, Any],
    benchmark: Any,
    record: Callable[..., None],
) -> None:
    setting, model, inputs, scores, table = measured
    with threads(1), torch.inference_mode():
        plan = fk.plan_latency(scores, model, inputs, keep, latency=table)
        small = fk.apply(model, plan)
        timed = compare(lambda: small(inputs), lambda: model(inputs), rounds=41, warmup=3)
        benchmark.pedantic(lambda: small(inputs), rounds=1)
    predicted = plan.result["latency_after_ms"] / plan.result["latency_before_ms"]
    seen = timed.ours.p20 / timed.rival.p20  # what else runs disturbs the medians of calls this short
    difference = abs(seen / predicted - 1)
    record(
        benchmark,
        timed,
        op="keep_latency",
        shape=f"{setting.name}, {setting.batch} images of {setting.size} x {setting.size}",
        rival="the whole model",
        threads=1,
        keep=keep,
        predicted=predicted,
        measured=seen,
        difference=difference,
        predicted_ms=[plan.result["latency_before_ms"], plan.result["latency_after_ms"]],
        looks=plan.result["latency_looks"],
        fit=table.error,
        bounded="difference",
        **bound(difference, MOST, at_least=False),
    )
