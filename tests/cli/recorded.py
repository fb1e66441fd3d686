"""Recordings of the command line: what a file of commands prints, played in a folder of its own.

    # a comment
    $ fairkern plan scores.safetensors --keep-flops 50% --out plan.json
    9 of 24 units in 2 groups removed; written to plan.json
    [0]

Lines that begin with `$ fairkern` are run, below them stands all that is printed, on both streams, and then the exit
code. Times, versions and white space do not count: `told` says how they are written. `python -m tests.cli.recorded`
plays all of them again and writes what came.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import torch

import fairkern as fk
from fairkern.cli import main

RECORDINGS = Path(__file__).with_name("recordings")
PARTS = Path(__file__).with_name("parts.py")
PROMPT = "$ fairkern"

RULES = (
    (re.escape(fk.__version__), "VERSION"),
    (r"(?m)^ (torch|python|numpy) +\S+$", r" \1 VERSION"),
    (r"(?m)^ (processor|cores|threads|platform|devices) +.*$", r" \1 …"),
    (r"seconds \(trace [^)]*\)", "seconds (…)"),
    (r"(?m)^ (trace and score|plan|cut|evaluate|further budgets) +[\d.]+$", r" \1 SECONDS"),
    (r"(?ms)^latency, 20th to 80th percentile.*?\n\n", "latency, …\n\n"),
    (r"(?ms)^(the clock was|unsteady).*?\n\n", ""),
    (r"(?m)^ latency\b.*$", " latency …"),
    (r"\bms \([\d.]+% kept\)", "ms (…)"),
    (r"\b\d[.]\d{2,}e([+-]\d+)", r"…e\1"),
    (r"torch [\d.]+\+?\w*", "torch VERSION"),
    (r"\b[\d.,e+-]+ ms\b", "… ms"),
    (r"cuts are told to [\d.]+%", "cuts are told to …%"),
    (r"─{2,}", "──"),
    (r"(?<=\S) {2,}", "  "),
    (r"(?m)^ +", " "),
    (r"(?m) +$", ""),
)


def told(text: str) -> str:
    """What was printed, without what differs from one run, or machine, to the next."""
    for pattern, instead in RULES:
        text = re.sub(pattern, instead, text)
    return text


def commands(recording: str) -> list[str]:
    return [line for line in recording.splitlines() if line.startswith((PROMPT, "#"))]


def prepared(folder: Path) -> None:
    """What recordings find in their folder: `parts.py`, scores, a plan, a table of latency, a pruned folder, a text."""
    shutil.copy(PARTS, folder)
    (folder / "notes.txt").write_text("No file of fairkern.\n")
    pruned = "parts:model parts:loader torch.nn:CrossEntropyLoss --keep-params 0.5 --out pruned"
    for line in (
        "score parts:model parts:loader torch.nn:CrossEntropyLoss --gram --out scores.safetensors",
        "plan scores.safetensors --keep-flops 0.5 --out plan.json",
        "latency parts:model parts:inputs --out latency.json",
        f"prune {pruned}",
    ):
        assert main([*line.split(), "--quiet"]) == 0, line


def played(recording: str) -> str:
    """The same commands, and what they print here and now, in the current folder."""
    found = []
    for line in commands(recording):
        if line.startswith("#"):
            found.append(f"{line}\n")
            continue
        both = io.StringIO()
        torch.manual_seed(0)
        with contextlib.redirect_stdout(both), contextlib.redirect_stderr(both):
            code = main(shlex.split(line)[2:])
        found.append(f"{line}\n{both.getvalue().replace(os.getcwd(), 'HERE')}[{code}]\n")
    return told("\n".join(found))


def record() -> None:
    os.environ["COLUMNS"] = "80"  # of help
    for path in sorted(RECORDINGS.glob("*.txt")):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            sys.path.insert(0, folder)
            sys.modules.pop("parts", None)
            prepared(Path(folder))
            path.write_text(played(path.read_text()))
            sys.path.remove(folder)
            os.chdir(RECORDINGS)


if __name__ == "__main__":
    record()
