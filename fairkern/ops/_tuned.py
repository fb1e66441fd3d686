"""Launch settings that were measured to be faster on one kind of GPU: `tuned.json`, by architecture.

A kernel's `config.py` says its settings by the situation that it is in, which depends on shapes alone; where the table
has fields for that situation on this architecture, they stand in place of the configured ones. So the order of sums,
and with it the last bits, may differ between architectures, but never between two calls on one. The file is read when
the first kernel is launched.

`{"architectures": {"sm_90": {"made": …, "settings": {"taylor": {"channels innermost": {"channels": 64}}}}}}`
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

PATH = Path(__file__).with_name("tuned.json")
SCHEMA = 1

Settings = Mapping[str, Mapping[str, Mapping[str, int]]]  # kernel → situation → fields of its settings
Chosen = TypeVar("Chosen")

_instead: Settings | None = None


@lru_cache(maxsize=1)
def table() -> Mapping[str, Mapping[str, Any]]:
    """Architecture → `made` (where and when) and `settings`."""
    content: dict[str, Any] = json.loads(PATH.read_text())
    if content["schema"] != SCHEMA:
        raise RuntimeError(f"{PATH} has schema {content['schema']}, expected {SCHEMA}; reinstall fairkern")
    architectures: dict[str, dict[str, Any]] = content["architectures"]
    return architectures


@lru_cache(maxsize=64)
def architecture(device: torch.device) -> str | None:
    """As in "sm_90", or what ROCm calls it; None for a device without kernels of its own."""
    if device.type != "cuda":
        return None
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0])
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@lru_cache(maxsize=64)
def _of(device: torch.device) -> Settings:
    name = architecture(device)
    if name is None or name not in table():
        return {}
    settings: Settings = table()[name]["settings"]
    return settings


def chosen(kernel: str, situation: str, device: torch.device, configured: Chosen) -> Chosen:
    """`configured` (a dataclass), with the fields that the table has for this situation on this device."""
    settings = _of(device) if _instead is None else _instead
    fields = settings.get(kernel, {}).get(situation)
    return configured if fields is None else replace(configured, **fields)  # type: ignore[type-var]


@contextmanager
def using(settings: Settings) -> Iterator[None]:
    """Inside, these in place of the table, on every device: to try them, or to compile what another device has."""
    global _instead
    before, _instead = _instead, settings
    try:
        yield
    finally:
        _instead = before


def reason(device: torch.device) -> str:
    """Which settings kernels take on `device`, and why."""
    name = architecture(device)
    if name is None:
        return f"the configured settings: kernels are not tuned for {device.type}"
    if name not in table():
        known = ", ".join(table()) or "none"
        return f"the configured settings: no table was made on {name} (there are: {known})"
    entry = table()[name]
    count = sum(len(situations) for situations in entry["settings"].values())
    return f"{count} settings measured on {entry['made']['device']}, {entry['made']['date'][:10]}"


def reasons() -> dict[str, str]:
    """The same for every GPU; where there is none, what one would be given."""
    found = {f"cuda:{i}": reason(torch.device("cuda", i)) for i in range(torch.cuda.device_count())}
    return found or {"without a GPU": f"the configured settings; tables were made on: {', '.join(table()) or 'none'}"}
