"""What a report is filled with: costs and measures, a row per group, what was chosen, and the versions that made it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fairkern.plans.left_alone import unscored
from fairkern.plans.serving import YES, Server
from fairkern.report.wording import numbered
from fairkern.types import ConfigChange, Plan, Report, Scores
from fairkern.version import package_version

_BY_CONFIGURATION = (Server.HF.value, Server.VLLM.value)


def summary(
    plan: Plan,
    scores: Scores | None,
    *,
    title: str,
    measures: tuple[Mapping[str, float], Mapping[str, float], Mapping[str, float]],
    stages: Mapping[str, float],
    params: int | None,
    unexplained: Mapping[str, float],
    compensation: Mapping[str, Any],
    flags: Sequence[ConfigChange] = (),
    unplaced: Sequence[str] = (),
) -> Report:
    """The report of a plan: its costs beside what was measured before, after and healed, and what was chosen.

    `params`: of the cut model, None for what the plan says; compensation may have added biases, which no plan counts.
    `compensation`: entries of `choices` that say what it did. `flags`: fields of the configuration that it set.
    `unplaced`: biases that it added and that the configuration has no field for.
    """
    result = plan.result
    kept = result["params_after"] if params is None else params
    ends = []
    for when, taken in zip(("before", "after", "after"), measures, strict=True):
        own = {"params": kept if when == "after" else result["params_before"], "flops": result[f"flops_{when}"]}
        predicted = result.get(f"latency_{when}_ms")
        ends.append({**own, **({} if predicted is None else {"latency_predicted_ms": predicted}), **taken})
    return Report(
        title=title,
        before=ends[0],
        after=ends[1],
        groups=tuple(group_rows(plan, unexplained, {} if scores is None else scores.units.classes)),
        stages=dict(stages),
        choices={
            "request": dict(plan.request),
            "tolerance": result.get("tolerance"),
            **compensation,
            **({"added_biases": kept - result["params_after"]} if kept != result["params_after"] else {}),
            **{name: result[name] for name in ("latency_looks", "steps") if name in result},
            **({"left_alone": result["left_alone"]} if result.get("left_alone") else {}),
            **({"serves": _serves(result["serves"], unplaced)} if result.get("serves") else {}),
            "config": {c.name: [c.before, c.after] for c in (*plan.config, *flags)},
            "config_left": result.get("config_left", []),
            "proven": None if scores is None else scores.units.proven,
            "notes": []
            if scores is None
            else [*scores.units.notes, *unscored(scores.units), *_without_classes(scores)],
            "scoring": {} if scores is None else dict(scores.provenance),
        },
        versions=versions(),
        healed=ends[2] if measures[2] else {},
    )


def _serves(said: Mapping[str, str], unplaced: Sequence[str]) -> dict[str, str]:
    """What a plan says of servers, but for those that go by the configuration where that has no field for a bias."""
    if not unplaced:
        return dict(said)
    more = f" and {len(unplaced) - 1} more" if len(unplaced) > 1 else ""
    why = f"the configuration has no field for {unplaced[0]}{more}, which compensation added: it would be dropped"
    return {server: why if answer == YES and server in _BY_CONFIGURATION else answer for server, answer in said.items()}


def _without_classes(scores: Scores) -> list[str]:
    names = scores.provenance.get("no_classes", ())
    return [f"heard in fewer than two classes, without U: {', '.join(names)}"] if names else []


def group_rows(
    plan: Plan, unexplained: Mapping[str, float] | None = None, classes: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Per plan group: name, kind, units, removed units, rate, and the threshold that this count needs.

    `unexplained`, of a compensated model: group name → share of the removed activations that was not made up for.
    `classes`, of modules by group: told where the group's name is a number.
    """
    modules = numbered(classes or {})
    thresholds = plan.result.get("thresholds") or [None] * len(plan.groups)
    return [
        {
            "group": group.name,
            **({"module": modules[group.name]} if group.name in modules else {}),
            "kind": group.kind,
            "units": group.total,
            "removed": group.removed.size,
            "rate": group.rate,
            "threshold": threshold,
            **({"unexplained": unexplained.get(group.name)} if unexplained else {}),
        }
        for group, threshold in zip(plan.groups, thresholds, strict=True)
    ]


def versions() -> dict[str, str]:
    """Versions of fairkern and of what its numbers depend on."""
    return {
        "fairkern": package_version(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
