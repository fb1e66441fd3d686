"""Where a measurement comes from, and the one way in which results files are written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def write_results(
    path: Path, *, schema: int = 1, source: Mapping[str, Any] | None = None, **content: Any
) -> dict[str, Any]:
    """The file anew, and what it says: schema, source (default: `provenance()`), then `content`, mostly rows."""
    document = {"schema": schema, **(provenance() if source is None else source), **content}
    write_whole(path, json.dumps(document, indent=1) + "\n")
    return document


def write_whole(path: Path, text: str) -> None:
    """Beside the file, then renamed: a reader, or a run that is cut short, finds the old text or the new one."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def provenance(commit: str | None = None) -> dict[str, Any]:
    """Commit, date, versions and device of this run; `commit` is what to say where there is no git checkout."""
    found = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", "fairkern", "csrc", "bench/*.py")
    return {
        "commit": found or commit,
        "uncommitted_changes": bool(changes) if found else None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": _cpu_name(),
        "threads": torch.get_num_threads(),
        "load_average_at_the_end": [round(load, 2) for load in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Of installed packages; None for those that are not."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()
