"""What a scoring pass is asked to do; strings become enums here."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fairkern import options
from fairkern.errors import InputError
from fairkern.ranks import ALONE, Ranks
from fairkern.types import Told, silent

ClassOf = Callable[[Any], Tensor]
SamplesOf = Callable[[Any], int]


class Recipe(enum.Enum):
    """`default` taps what the consumers read; `paper` what the layer itself returns, with signed sums."""

    DEFAULT = "default"
    PAPER = "paper"


class Reduction(enum.Enum):
    """R = |Σ_s t| (`signed`), Σ_s |t| (`per_sample`) or Σ_classes |Σ_{s of the class} t| (`per_class`)."""

    SIGNED = "signed"
    PER_SAMPLE = "per_sample"
    PER_CLASS = "per_class"


class Pairs(enum.Enum):
    """U over pairs of classes: the largest distance, or the mean of all."""

    MAX = "max"
    MEAN = "mean"


class LossReduction(enum.Enum):
    """Whether the loss is the mean or the sum over a batch's samples."""

    MEAN = "mean"
    SUM = "sum"


WHOLE = 2**53 - 1  # the largest number that files hold for certain
DIRECTIONS = 2**20  # more would not fit into memory, and tell nothing new


@dataclass(frozen=True)
class Settings:
    """Options of `score`, checked. `on_batch(done, total or None, stage)` is told after every batch."""

    samples_per_class: int = 32
    projections: int = 128
    seed: int = 0
    recipe: Recipe = Recipe.DEFAULT
    reduction: Reduction = Reduction.PER_SAMPLE
    pairs: Pairs = Pairs.MAX
    loss_reduction: LossReduction = LossReduction.MEAN
    backend: str = "auto"
    memory_budget: int | None = None
    gram: bool = False
    max_remove: float = 1.0  # of a group's units: that share is put in order one by one for the residual
    keep_moments: bool | str | os.PathLike[str] = True  # in memory, not at all, or in files of a folder
    samples_of: SamplesOf | None = None
    class_of: ClassOf | Literal[False] | None = None  # False: no classes, and no U
    on_batch: Told = silent
    ranks: Ranks = ALONE  # who hears the batches, each some of them

    def __post_init__(self) -> None:
        self._set(
            samples_per_class=options.whole("samples_per_class", self.samples_per_class, 2, WHOLE),
            projections=options.whole("projections", self.projections, 1, DIRECTIONS),
            seed=options.seed(self.seed),
            gram=options.flag("gram", self.gram),
        )
        share = options.real("max_remove", self.max_remove, "a share of a group, up to 1")
        if not 0.0 < share <= 1.0:
            raise InputError(f"max_remove={self.max_remove!r} is not a share of a group; expected 0 < max_remove <= 1")
        self._set(max_remove=share)
        if self.memory_budget is not None:
            self._set(memory_budget=options.whole("memory_budget", self.memory_budget, 1, WHOLE))
        if not isinstance(self.keep_moments, bool):
            self._set(keep_moments=options.place("keep_moments", self.keep_moments))
            if not self.gram:
                raise InputError("keep_moments= says where second moments go, which gram=True takes: pass that as well")
        if self.class_of is not None and self.class_of is not False:
            options.function("class_of", self.class_of, "a function of a batch, or False for no classes")
        if self.samples_of is not None:
            options.function("samples_of", self.samples_of, "a function of a batch")
        if self.class_of is False and self.reduction is Reduction.PER_CLASS:
            raise InputError(
                "reduction='per_class' adds up within classes, and class_of=False says that there are none; leave out "
                "one of the two"
            )

    def _set(self, **checked: Any) -> None:
        for name, value in checked.items():
            object.__setattr__(self, name, value)
