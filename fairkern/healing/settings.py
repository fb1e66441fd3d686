"""What healing is asked to do, checked; and the learning rate of every step."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fairkern import options
from fairkern.errors import InputError

TaskLoss = Callable[[Any, Any], Tensor]


class Divergence(enum.Enum):
    """How answers are compared: by their distributions, in either direction, or as values."""

    AUTO = "auto"
    FORWARD = "forward_kl"
    REVERSE = "reverse_kl"
    MSE = "mse"


@dataclass(frozen=True)
class Settings:
    """Options of `heal`."""

    steps: int
    lr: float
    warmup: int | None
    weight_decay: float
    clip: float | None
    accumulate: int
    temperature: float
    divergence: Divergence
    hidden: float | None
    hidden_at: tuple[str, ...] | None
    loss_fn: TaskLoss | None
    loss_weight: float
    gradient_checkpointing: bool
    every: int | None
    seed: int

    def __post_init__(self) -> None:
        set_to: dict[str, Any] = {
            "steps": options.whole("steps", self.steps, 1),
            "lr": _positive("lr", self.lr),
            "weight_decay": _weight("weight_decay", self.weight_decay),
            "clip": None if self.clip is None else _positive("clip", self.clip),
            "accumulate": options.whole("accumulate", self.accumulate, 1),
            "temperature": _positive("temperature", self.temperature),
            "divergence": options.choose(Divergence, "divergence", self.divergence),
            "hidden": None if self.hidden is None else _weight("hidden", self.hidden),
            "loss_weight": _weight("loss_weight", self.loss_weight),
            "gradient_checkpointing": options.flag("gradient_checkpointing", self.gradient_checkpointing),
            "seed": options.seed(self.seed),
        }
        if self.hidden_at is not None:
            set_to["hidden_at"] = options.names("hidden_at", self.hidden_at, "['model.layers.*']")
            set_to["hidden"] = 1.0 if self.hidden is None else set_to["hidden"]
        if self.warmup is None:
            set_to["warmup"] = set_to["steps"] // 20
        else:
            set_to["warmup"] = options.whole("warmup", self.warmup, 0, set_to["steps"] - 1)
        if self.every is None:
            set_to["every"] = max(set_to["steps"] // 10, 1)
        else:
            set_to["every"] = options.whole("every", self.every, 1)
        for name, value in set_to.items():
            object.__setattr__(self, name, value)
        if self.hidden_at is not None and self.hidden == 0:
            raise InputError("hidden_at names modules to compare, and hidden=0 leaves them out: leave out one of them")

    def rate(self, step: int) -> float:
        """Of a step, from 1 on: it rises in a line over `warmup` steps, then falls along a cosine towards zero."""
        assert self.warmup is not None
        if step <= self.warmup:
            return self.lr * step / self.warmup
        done = (step - self.warmup - 1) / (self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))

    def said(self) -> dict[str, Any]:
        """All that decides what comes out, as JSON: what a run that goes on must have in common with the one before."""
        return {
            "steps": self.steps,
            "lr": self.lr,
            "warmup": self.warmup,
            "weight_decay": self.weight_decay,
            "clip": self.clip,
            "accumulate": self.accumulate,
            "temperature": self.temperature,
            "divergence": self.divergence.value,
            "hidden": self.hidden,
            "hidden_at": None if self.hidden_at is None else list(self.hidden_at),
            "loss_fn": self.loss_fn is not None,
            "loss_weight": self.loss_weight,
            "seed": self.seed,
        }


def _positive(name: str, value: Any) -> float:
    number = options.real(name, value, "a number above 0")
    if number <= 0:
        raise InputError(f"{name}={options.short(value)} is not positive; expected a number above 0")
    return number


def _weight(name: str, value: Any) -> float:
    number = options.real(name, value, "a number, 0 or more")
    if number < 0:
        raise InputError(f"{name}={options.short(value)} is negative; expected a number, 0 or more")
    return number
