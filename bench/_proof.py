"""`python -m bench._proof SIZE DTYPE HOW`: a trace with its proof (`verify=HOW`) of a Llama in a process of its own;
seconds, and memory beyond what the process held before it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

import fairkern as fk
from bench._memory import SIZES, batches, build
from bench._status import status


def main(name: str, dtype: str, how: str) -> None:
    """A first trace of a tiny model, of either kind of proof, so that libraries have taken what they take once."""
    warm = build(SIZES["tiny"])
    for first in ("sibling", "whole"):
        fk.trace(warm, {"input_ids": batches(SIZES["tiny"])[0]["input_ids"]}, verify=first)
    model = build(SIZES[name]).to(getattr(torch, dtype))
    given = {"input_ids": batches(SIZES[name])[0]["input_ids"]}
    weights = sum(p.nbytes for p in model.parameters())
    before = status()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    units = fk.trace(model, given, verify=True if how == "auto" else how)
    seconds = time.perf_counter() - start
    found = {
        "seconds": seconds,
        "added_bytes": status()["VmHWM"] - before,
        "weights_bytes": weights,
        "prunable": len(units.prunable),
        "groups": len(units.groups),
        "sibling": {change.name: [change.before, change.after] for change in units.sibling},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
