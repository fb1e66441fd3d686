"""How a run goes over a folder's model: whole, where memory holds that, or block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fairkern.compensate import Compensation
from fairkern.errors import InputError
from fairkern.hf.folder import Folder
from fairkern.options import choose, short
from fairkern.plans.serving import Server
from fairkern.walk import Walk

TIMES = 4  # of the weights: the model, a proof or a copy that is refitted, what is left, and sums beside them


@dataclass(frozen=True)
class Chosen:
    """`why`: in words, for a report."""

    walk: Walk
    why: str


_NOT_BY_BLOCKS = {
    "keep_latency": "timing takes the whole model at once",
    "latency": "timing takes the whole model at once",
    "evaluate": "it is given the whole model",
    "iterations": "a later step would start from a model that is not there",
    "inplace": "there is no model to be cut in place",
    "depth": "branches at one place of all blocks are a group, so that all blocks are one",
}
_NOTHING = {"iterations": 1}  # what says nothing, where that is neither None nor False


def chosen(
    asked: Any, source: Folder, options: Mapping[str, Any], dtype: torch.dtype | None, device: torch.device
) -> Chosen:
    """`asked`: "whole", "blocks", or None: whole where `TIMES` the weights are there in memory, or where blocks cannot
    do what is asked for.

    Raises InputError for blocks that cannot.
    """
    walk = None if asked is None else choose(Walk, "walk", asked)
    if walk is Walk.WHOLE:
        if options.get("walk_folder") is not None:
            raise InputError("walk_folder is for what passes between blocks: pass walk='blocks' too, or leave it out")
        return Chosen(walk, "asked for")
    reason = _why_not(source, options)
    if walk is Walk.BLOCKS:
        if reason:
            raise InputError(f"walk='blocks' cannot be had with {reason}: leave out one of the two")
        return Chosen(walk, "asked for")
    needed, there = TIMES * weight_bytes(source, dtype), available(device)
    if there is None:
        return Chosen(Walk.WHOLE, "how much memory there is cannot be told here")
    said = f"{TIMES} times the weights are {_size(needed)}, and {_size(there)} of memory are there"
    if needed <= there or reason:
        return Chosen(Walk.WHOLE, f"{said}; blocks cannot be had with {reason}" if needed > there else said)
    return Chosen(Walk.BLOCKS, said)


def _why_not(source: Folder, options: Mapping[str, Any]) -> str:
    """What of a request cannot be done block by block, and why; empty if all can."""
    for name, why in _NOT_BY_BLOCKS.items():
        given = options.get(name)
        if given is not None and given is not False and given != _NOTHING.get(name):
            return f"{name}={'' if callable(given) else short(given)} ({why})"
    if options.get("compensate") == Compensation.JOINT.value:
        return "compensate='joint' (it changes all layers together)"
    if options["serve"] != Server.HF.value:
        return f"serve={short(options['serve'])} (a folder of layers that differ is written at once)"
    pickled = [name for name in source.shards if not name.endswith(".safetensors")]
    return f"{pickled[0]} (a pickle is read at once)" if pickled else ""


def weight_bytes(source: Folder, dtype: torch.dtype | None) -> int:
    """What a folder's weights take in memory, by the sizes of its files: in `dtype`, else in the files' own."""
    stored = sum((source.path / name).stat().st_size for name in source.shards)
    own = source.config.get("dtype") or source.config.get("torch_dtype")
    held = getattr(torch, own, None) if isinstance(own, str) else None
    if dtype is None or not isinstance(held, torch.dtype):
        return stored
    return stored * dtype.itemsize // held.itemsize


def available(device: torch.device) -> int | None:
    """Bytes that may still be asked for, on the device or, of the CPU, by this process: of the machine, of its control
    group and of its address space, the least. None where no limit can be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min((found for found in (_of_machine(), _of_group(), _of_addresses()) if found is not None), default=None)


def _of_machine() -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_group() -> int | None:
    """Of the control group that this process is in, version 2, and of those around it."""
    path = next((line.partition("::")[2] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), "")
    found = []
    place = Path("/sys/fs/cgroup") / path.strip("/")
    for group in (place, *place.parents):
        limit, used = (next(iter(_lines(group / name)), "") for name in ("memory.max", "memory.current"))
        if limit.isdigit() and used.isdigit():
            found.append(int(limit) - int(used))
    return max(0, min(found)) if found else None


def _of_addresses() -> int | None:
    try:
        import resource
    except ImportError:  # not a system that has such limits
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    size = next((line.split()[1] for line in _lines("/proc/self/status") if line.startswith("VmSize:")), None)
    return None if limit == resource.RLIM_INFINITY or size is None else max(0, limit - int(size) * 1024)


def _lines(path: str | Path) -> list[str]:
    """Of a file that the system may not have."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
