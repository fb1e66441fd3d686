"""What every task offers to training, scoring and judging."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = tuple[Any, Any]
LARGER_IS_BETTER = {"accuracy": True, "perplexity": False, "cosine": True}


@dataclass(frozen=True)
class Task:
    """Data and measure.

    `epoch(generator)` yields training batches; `calibration` is what methods may look at, training data only;
    `measure(model)` reads test data only. `class_of(batch)` as for `fairkern.score`.
    """

    name: str
    metric: str
    calibration: Sequence[Batch]
    loss: Callable[[Any, Any], Tensor]
    measure: Callable[[nn.Module], float]
    epoch: Callable[[torch.Generator], Iterator[Batch]] | None = None
    class_of: Callable[[Batch], Tensor] | None = None

    @property
    def example(self) -> Any:
        """Inputs of two samples, to trace with."""
        inputs = self.calibration[0][0]
        if isinstance(inputs, dict):
            return {name: value[:2] for name, value in inputs.items()}
        return inputs[:2]


def retained(metric: str, before: float, after: float) -> float:
    """Quality that is left, 1 before the cut: the ratio of accuracies or cosines, the inverse ratio of perplexities."""
    if LARGER_IS_BETTER[metric]:
        return max(after, 0.0) / before
    return before / after


def accuracy(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Share of samples whose largest logit is the label's; the model in eval mode."""
    model.eval()
    right = total = 0
    with torch.inference_mode():
        for inputs, labels in batches:
            right += int((model(inputs).argmax(1) == labels).sum())
            total += len(labels)
    return right / total
