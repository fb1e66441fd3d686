"""A model → what can be cut: run it once, follow every axis position, solve for units and groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from fairkern.axes.accepts import check_inputs, check_model
from fairkern.axes.config import config_fields
from fairkern.axes.trace import trace as _trace
from fairkern.axes.units import Solution, solve
from fairkern.axes.unreached import named_unused
from fairkern.deadline import NO_LIMIT, Deadline

__all__ = ["Solution", "config_fields", "named_unused", "solutions"]


def solutions(
    model: nn.Module,
    runs: Sequence[Any],
    deadline: Deadline = NO_LIMIT,
    dare: bool = False,
    unused: Iterable[str] = (),
    depth: bool = False,
) -> tuple[Solution, Solution | None]:
    """The unit map; and, to `dare` (a proof follows), every size site that could be substituted where that finds that a
    group needs it, and a map that cuts more, if there is one, which holds only if the proof shows that it does.

    `unused`: parameters and modules that no input ever reaches, by name or pattern. `depth`: branches of residual
    blocks, and blocks, are units too."""
    check_model(model)
    left = named_unused(model, unused)
    check_inputs(model, runs)
    return solve(model, _trace(model, runs, deadline, left, sites=dare, depth=depth), dare)
