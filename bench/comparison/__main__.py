"""`python -m bench.comparison`: try every cell, each tool in an environment of its own.

`python -m bench.comparison TOOL …` tries those tools again and keeps the others' cells. Environments are made in a
temporary folder, torch and what exports to ONNX in one of their own below the tools', which pins of a tool go over.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.comparison.features import BESIDE, FEATURES, KEYS, TOOLS
from bench.comparison.tried import cells
from bench.provenance import ROOT, versions, write_results

OUT = ROOT / "bench" / "results" / "comparison.json"


def made(folder: Path, packages: Sequence[str], over: Path | None = None) -> tuple[str, Path]:
    """A fresh environment with some packages, over those of another: its interpreter, and where its packages lie."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (place,) = folder.glob("lib/python*/site-packages")
    if over is not None:
        (place / "over.pth").write_text(f"{over}\n")
    python = str(folder / "bin" / "python")
    if packages:
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-compile", *packages], check=True)
    return python, place


def tried_elsewhere(tool: str, folder: Path, beside: Path) -> dict[str, Any]:
    """The cells of a tool in a fresh environment with what it needs and nothing of fairkern's."""
    python, _ = made(folder, TOOLS[tool][1], beside)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "bench.comparison.tried", tool]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    asked = sys.argv[1:] or list(TOOLS)
    assert set(asked) <= set(TOOLS), f"expected some of {', '.join(TOOLS)}"
    old = json.loads(OUT.read_text())["rows"] if OUT.exists() else []
    found = {tool: {row["case"]: row["cells"][tool] for row in old if tool in row["cells"]} for tool in TOOLS}
    with tempfile.TemporaryDirectory() as folder:
        beside = made(Path(folder) / "beside", BESIDE)[1] if set(asked) - {"ours"} else Path()
        for tool in asked:
            print(f"{TOOLS[tool][0]} …", flush=True)
            if tool == "ours":
                torch.set_num_threads(1)
                found[tool] = {key: vars(cell) for key, cell in cells(tool).items()}
            else:
                found[tool] = tried_elsewhere(tool, Path(folder) / tool, beside)
            _write(found)


def _write(found: Mapping[str, Mapping[str, Any]]) -> None:
    titles = {key: title for rows in FEATURES.values() for key, title in rows.items()}
    rows = [
        {"case": key, "feature": titles[key], "cells": {tool: found[tool][key] for tool in TOOLS if key in found[tool]}}
        for key in KEYS
    ]
    write_results(OUT, beside=list(BESIDE), ours=versions(("fairkern", "transformers", "onnxruntime")), rows=rows)


if __name__ == "__main__":
    main()
