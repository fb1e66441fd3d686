"""One-pass scoring of ResNet-50 against an ordinary forward + backward, and the memory that it adds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import fairkern as fk
from bench._training import forward_backward
from bench.gpu.cases import Bench, Case, Measured, against
from bench.gpu.workloads import Scale, batches_of
from bench.models import images

Batches = list[tuple[Tensor, Tensor]]


@dataclass
class Setting:
    """The model twice (scoring leaves its own as it was, training does not), its units, and the data on the device."""

    model: nn.Module
    twin: nn.Module
    units: fk.UnitMap
    batches: Batches
    loss_fn: nn.Module
    scale: Scale

    @classmethod
    def of(cls, bench: Bench) -> Setting:
        scale, device = bench.scale, bench.machine.device
        model, twin = (scale.resnet() for _ in range(2))
        units = fk.trace(model, torch.zeros(1, 3, scale.image, scale.image), verify=False)
        x, y = images(scale.classes * scale.per_class, scale.classes, 3, scale.image, device)
        return cls(
            model.to(device), twin.to(device), units, batches_of(x, y, scale.batch), nn.CrossEntropyLoss(), scale
        )

    def score(self) -> fk.Scores:
        return fk.score(
            self.model,
            self.batches,
            self.loss_fn,
            units=self.units,
            samples_per_class=self.scale.per_class,
            projections=self.scale.projections,
            progress=False,
        )

    def train(self) -> None:
        forward_backward(self.twin, self.batches, self.loss_fn)

    def backward_to_activations(self) -> None:
        """What holds a batch's activations as a scoring pass does, and nothing else: no samples, no sums."""
        self.model.eval().requires_grad_(False)
        try:
            for x, y in self.batches:
                x = x.detach().requires_grad_()
                torch.autograd.grad(self.loss_fn(self.model(x), y), x)
        finally:
            self.model.requires_grad_(True)


def _autocast(bench: Bench, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(bench.machine.device.type, dtype)


def time(dtype: torch.dtype | None, bench: Bench) -> Measured:
    setting = Setting.of(bench)
    with _autocast(bench, dtype):
        scores = setting.score()
        expected = {str(k): setting.scale.per_class for k in range(setting.scale.classes)}
        assert scores.provenance["classes"] == expected
        mine, theirs = bench.machine.times(setting.score, setting.train, rounds=setting.scale.slow_rounds, warmup=1)
    more = against(
        mine,
        theirs,
        rival="forward + backward, weight gradients included",
        batches=len(setting.batches),
        seconds_of_scoring=scores.provenance["seconds"],
        tf32={"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32},
    )
    return Measured(mine.p50 / theirs.p50, more)


def memory(bench: Bench) -> Measured:
    """Peak of a scoring pass less the peak of a pass that only holds activations, over what scoring predicts."""
    setting = Setting.of(bench)
    kept: list[fk.Scores] = []
    plain = bench.machine.peak_bytes(setting.backward_to_activations)
    scoring = bench.machine.peak_bytes(lambda: kept.append(setting.score()))
    found = kept[0].provenance
    predicted = sum(found["predicted_bytes"].values())
    more = {
        "predicted_bytes": dict(found["predicted_bytes"]),
        "sample_bytes": found["sample_bytes"],
        "peak_bytes": scoring,
        "peak_bytes_without_scoring": plain,
        "added_bytes": scoring - plain,
    }
    return Measured((scoring - plain) / predicted, more)


TIME = "share of the time of an ordinary forward + backward"
WHAT = "scoring, ResNet-50, batch 64, 100 classes × 32, "

CASES: Sequence[Case] = (
    Case("scoring-fp32", WHAT + "float32", TIME, 0.85, False, partial(time, None)),
    Case("scoring-bf16", WHAT + "bfloat16 autocast", TIME, 0.85, False, partial(time, torch.bfloat16)),
    Case("memory", "memory that scoring adds, ResNet-50, float32", "share of what it predicts", 1.1, False, memory),
)
