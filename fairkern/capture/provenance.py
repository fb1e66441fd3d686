"""What scores say of how they came about: options, counts, bytes and seconds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

from fairkern.capture.memory import Trial
from fairkern.capture.one_pass import Pass
from fairkern.capture.settings import Settings


class Clock:
    """Seconds since it was made, and those that named parts of the work took; a part that was not done took none."""

    def __init__(self, *parts: str) -> None:
        self._started = time.perf_counter()
        self._parts = dict.fromkeys(parts, 0.0)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._parts[part] += time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """By part, and in `total`."""
        return {**self._parts, "total": time.perf_counter() - self._started}


def provenance(
    settings: Settings,
    first: Pass,
    *,
    passes: int,
    sample_bytes: int,
    device: torch.device,
    seconds: dict[str, float],
    no_classes: list[str],
    trial: Trial | None = None,
) -> dict[str, Any]:
    """`first`: the pass that gave all but the samples that did not fit; `sample_bytes`: the most that any pass kept;
    `no_classes`: groups that were heard in fewer than two classes; `trial`: where there was a budget."""
    assert first.prediction is not None
    counts = {} if settings.class_of is False else first.choice.counts
    return {
        "samples": first.seen,
        "batches": first.batches,
        "loss": first.loss_sum / first.seen,
        "classes": {str(label): count for label, count in sorted(counts.items())},
        "no_classes": no_classes,
        "singly": first.singly,
        **({"keeps": first.keeps} if first.keeps else {}),
        **({"ranks": settings.ranks.size} if settings.ranks.several else {}),
        "samples_per_class": settings.samples_per_class,
        "projections": settings.projections,
        "seed": settings.seed,
        "recipe": settings.recipe.value,
        "reduction": settings.reduction.value,
        "pairs": settings.pairs.value,
        "loss_reduction": settings.loss_reduction.value,
        **({"max_remove": settings.max_remove} if settings.gram and settings.max_remove < 1 else {}),
        "backend": settings.backend,
        "passes": passes,
        "sample_bytes": sample_bytes,
        "predicted_bytes": {
            **first.prediction.bytes_of(sum(counts.values())),
            **({} if trial is None else {"batch": trial.batch, "held": trial.held}),
        },
        "device": str(device),
        "torch": torch.__version__,
        "seconds": seconds,
    }
