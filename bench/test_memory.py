"""What stages add to a process beyond a model's weights, each in a process of its own, beside forward + backward.

Time is told apart from what is done once, however much data there is (the order of elimination).
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from bench._compare import Comparison, Timing, bound
from bench._memory import SIZES
from bench.provenance import ROOT

MOST = 1.0  # bytes added over those of the weights
MOST_TIME = 1.3  # over forward + backward
STAGES = ("score", "moments", "moments kept", "moments in files", "trace")


@functools.cache
def measured(stage: str, size: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench._memory", stage, size]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("stage", STAGES)
def test_memory_beside_forward_backward(stage: str, benchmark: Any, record: Callable[..., None]) -> None:
    pytest.importorskip("transformers")
    row(stage, "139M", benchmark, record)


def row(stage: str, name: str, benchmark: Any, record: Callable[..., None]) -> dict[str, Any]:
    """Measure one stage, and forward + backward over the same data."""
    found, rival, size = measured(stage, name), measured("train", name), SIZES[name]
    benchmark.pedantic(lambda: None, rounds=1)
    elimination = found.pop("elimination_s", 0.0)
    timed = Comparison(Timing.of([found.pop("seconds") - elimination]), Timing.of([rival["seconds"]]))
    share = found["added_bytes"] / found["weights_bytes"]
    moments = stage.startswith("moments")
    made = {
        "op": stage,
        "shape": f"Llama of {found['weights_bytes'] / 4e6:.0f}M, {size.sequences} batches of 1 x {size.tokens}",
        "rival": "forward + backward, weight gradients included",
        "added_over_weights": share,
        "rival_added_over_weights": rival["added_bytes"] / rival["weights_bytes"],
        "memory": bound(share, MOST, at_least=False),
        "elimination_s": elimination,
        **found,
        **(timed.bound("relative_cost", MOST_TIME, at_least=False) if moments else {}),
    }
    record(benchmark, timed, **made)
    return made
