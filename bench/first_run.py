"""`python -m bench.first_run`: from a clone to the demo's result, by the commands of README.md.

What has to be fetched is fetched first, into a folder, and timed by itself: how long that takes says something of a
network. The rest is what a new user waits for, with no network: the clone, a virtual environment, the installation
with its compiler run, and `fairkern demo` up to its last line.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bench._compare import bound
from bench.provenance import ROOT, write_results
from bench.readme import commands

OUT = ROOT / "bench" / "results" / "first_run.json"
MOST = 240.0  # seconds, of all but the downloads
ALONE = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME", "FAIRKERN_BUILD")


def builds(pyproject: str) -> list[str]:
    """What pip fetches to build, beside what it installs."""
    (requires,) = re.findall(r"^requires = \[(.*)\]$", pyproject, re.MULTILINE)
    return re.findall(r'"([^"]+)"', requires)


def stages(place: Path, source: Path = ROOT) -> dict[str, float]:
    """Seconds of every stage, in the order in which a new user meets them; `place` is an empty folder."""
    checkout, wheels = place / "fairkern", place / "wheels"
    install, run = commands((source / "README.md").read_text(), "main job")
    requires = builds((source / "pyproject.toml").read_text())
    environment = {name: value for name, value in os.environ.items() if name not in ALONE}
    activated = {**environment, "PATH": f"{place / 'venv' / 'bin'}{os.pathsep}{environment['PATH']}"}
    offline = {**activated, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    steps: list[tuple[str, list[str], Path, Mapping[str, str]]] = [
        ("clone", ["git", "clone", "--quiet", source.as_uri(), str(checkout)], place, environment),
        ("environment", [sys.executable, "-m", "venv", str(place / "venv")], place, environment),
        (
            "downloads",
            ["bash", "-c", install.replace("pip install", f"pip download --dest {wheels}")],
            checkout,
            activated,
        ),
        ("downloads", ["pip", "download", "--dest", str(wheels), *requires], checkout, activated),
        ("installation", ["bash", "-c", install], checkout, offline),
        ("demo", ["bash", "-c", run], checkout, offline),
    ]
    took = dict[str, float]()
    for name, command, folder, seen in steps:
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=seen, capture_output=True, text=True, check=False)
        took[name] = took.get(name, 0.0) + time.perf_counter() - begin
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        print(f"{name}: {took[name]:.1f} s", flush=True)
    print(done.stdout)
    return took


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        took = stages(Path(folder))
    waited = sum(seconds for name, seconds in took.items() if name != "downloads")
    row = {
        "case": "clone to the demo's result",
        "stages_s": took,
        "value": waited,
        **bound(waited, MOST, at_least=False),
    }
    write_results(OUT, rows=[row])
    print(f"{waited:.0f} s without the downloads, of {MOST:.0f} s")


if __name__ == "__main__":
    main()
