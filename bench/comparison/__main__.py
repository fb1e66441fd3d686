"""`python -m bench.comparison`: try every cell, each tool in an environment of its own.

`python -m bench.comparison TOOL …` tries those tools again and keeps the others' cells. An environment is made in a
temporary folder and takes with torch a few hundred megabytes, or gigabytes where torch comes with CUDA.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.comparison.features import BESIDE, FEATURES, KEYS, TOOLS
from bench.comparison.tried import cells
from bench.provenance import ROOT, versions, write_results

OUT = ROOT / "bench" / "results" / "comparison.json"


def tried_elsewhere(tool: str) -> dict[str, Any]:
    """The cells of a tool in a fresh environment with what it needs and nothing of fairkern's."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder) / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *BESIDE, *TOOLS[tool][1]], check=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [python, "-m", "bench.comparison.tried", tool],
            cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    return json.loads(done.stdout)


def main() -> None:
    asked = sys.argv[1:] or list(TOOLS)
    assert set(asked) <= set(TOOLS), f"expected some of {', '.join(TOOLS)}"
    old = json.loads(OUT.read_text())["rows"] if OUT.exists() else []
    found = {tool: {row["case"]: row["cells"][tool] for row in old if tool in row["cells"]} for tool in TOOLS}
    for tool in asked:
        print(f"{TOOLS[tool][0]} …", flush=True)
        found[tool] = (
            {key: vars(cell) for key, cell in cells(tool).items()} if tool == "ours" else tried_elsewhere(tool)
        )
    titles = {key: title for rows in FEATURES.values() for key, title in rows.items()}
    rows = [
        {"case": key, "feature": titles[key], "cells": {tool: found[tool][key] for tool in TOOLS if key in found[tool]}}
        for key in KEYS
    ]
    write_results(OUT, beside=list(BESIDE), ours=versions(("fairkern", "transformers", "onnxruntime")), rows=rows)


if __name__ == "__main__":
    main()
