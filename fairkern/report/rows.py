"""What a report is filled with: a row per group, and the versions that made it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fairkern.artefacts.files import package_version
from fairkern.types import Plan


def group_rows(plan: Plan, unexplained: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """Per plan group: name, kind, units, removed units, rate, and the threshold that this count needs.

    `unexplained`, of a compensated model: group name → share of the removed activations that was not made up for.
    """
    thresholds = plan.result.get("thresholds") or [None] * len(plan.groups)
    return [
        {
            "group": group.name,
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
