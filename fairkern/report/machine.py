"""Where a report was made: what a reader has to know to make it again."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def environment(seeds: Mapping[str, int]) -> dict[str, Any]:
    """Processor, cores that this process may use, threads, platform, GPUs and `seeds` by what they are of."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        **({"devices": devices} if devices else {}),
        **({"seeds": dict(seeds)} if seeds else {}),
    }


def processor() -> str:
    """The processor's name; Python knows it on few systems, Linux writes it down."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
