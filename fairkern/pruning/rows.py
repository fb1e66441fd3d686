"""Rows of budgets that were tried: what was asked for, what was left, and what was measured of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from fairkern.allocate import Allocation, Target
from fairkern.errors import InputError
from fairkern.options import iterable, real
from fairkern.types import Plan

_EXAMPLE = "numbers above 0, at most 1, for example (0.9, 0.7, 0.5)"


def shares(budgets: Any, target: Target = Target.PARAMS, name: str = "budgets") -> tuple[float, ...]:
    """Several budgets of one kind, each once, in the order given. Raises InputError for what are none."""
    iterable(name, budgets, _EXAMPLE)
    found: list[float] = []
    for k, given in enumerate(budgets):
        share = real(f"{name}[{k}]", given, _EXAMPLE)
        if not (0.0 <= share <= 1.0) or (share == 0.0 and target is not Target.TOD):
            raise InputError(f"{name}[{k}]={given!r} is not a share; expected {_EXAMPLE}")
        found.append(share)
    return tuple(dict.fromkeys(found))


def further_budgets(budgets: Any, target: Target, keep: Any, iterations: int) -> tuple[float, ...]:
    """Those beside the one that was asked for. Raises InputError for what are none, or cannot be had beside it."""
    found = shares(budgets, target)
    if found and target is Target.DROP:
        raise InputError("budgets= are further shares, and drop= asks for numbers of units: leave one of them out")
    if found and iterations > 1:
        raise InputError(
            f"budgets= are planned from the same scores, and iterations={iterations} scores anew after every step: "
            "leave one of them out"
        )
    return tuple(share for share in found if share != keep)


def name_of_request(request: Mapping[str, Any]) -> str:
    """How a plan was made, as `sweep` calls it: "tod", "priced-residual"."""
    allocation, removal = str(request["allocation"]), str(request["removal"]).removeprefix("function ")
    tod = Allocation.TOD.value
    return tod if (allocation, removal) == (tod, "wasserstein") else f"{allocation}-{removal}"


def row(
    plan: Plan,
    small: nn.Module,
    *,
    seed: int,
    budget: float,
    by: str,
    seconds: float,
    measures: Mapping[str, float],
    latency_ms: float | None = None,
    method: str = "",
) -> dict[str, Any]:
    """What was asked for and what is left, in the order of a table's columns. `seconds`: to cut and compensate."""
    return {
        "method": method or name_of_request(plan.request),
        "seed": seed,
        "budget": budget,
        "by": by,
        "params": sum(p.numel() for p in small.parameters()),
        "flops": plan.result["flops_after"],
        **({} if latency_ms is None else {"latency_ms": latency_ms}),
        **measures,
        "seconds": seconds,
    }


def in_order(rows: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The largest budget first."""
    return tuple(sorted(rows, key=lambda made: -made["budget"]))
