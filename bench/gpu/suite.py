"""What `bench/gpu/run.sh` does: look, build and warm, test, measure, tune, under one clock of seven minutes.

Into the folder OUT, each file whole at every moment: `run.json`, what became of each step and test; `gpu.json`, the
rows, as `pytest -m gpu` writes them; `tuned.json`, what launch settings would be better; `log.txt`, what was printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu import shards
from bench.gpu.clock import Clock, Step, code_of, table
from bench.provenance import ROOT, provenance, write_results

SECONDS = 420.0
ENDED = {0: "all done", 1: "something is wrong", 2: "nothing could be run", 3: "the clock ended it"}  # by exit code
ENDING = 6.0  # of these, to end processes and write files
NEEDED = ("torch", "triton", "numpy", "scipy", "rich", "pybind11", "setuptools", "pytest")
WARMED, SAMPLE = 8, 12  # of a rehearsal: every so many launches and tests
LOG = 400_000  # characters of what one process printed, the last of them
# The most telling first: every kernel in every path, then the operators' tables; the short ones at the end.
KERNELS = ("triton/test_kernels", "ops/test_class_wasserstein", "ops/test_taylor", "ops/test_project", "ops/test_gram",
           "ops/test_memcheck", "ops/test_sliced", "ops/test_gather")  # fmt: skip
PIPELINE = ("test_devices",)


@dataclass(frozen=True)
class Place:
    """Where a run takes place."""

    out: Path
    scratch: Path  # logs, and what a rehearsal builds; gone at the end
    architecture: str  # as in sm_90
    cores: int
    rehearse: bool
    commit: str | None = None

    @property
    def processes(self) -> int:
        """That share the device, or the cores."""
        return min(14, max(1, self.cores - 1))


def groups(place: Place) -> list[list[Step]]:
    """All steps, with what each is expected to take on an H200 with 16 cores, and what it may take at most."""
    return [
        [build(place), warm(place)],
        [tests(place, "kernels", KERNELS, predicted=50, budget=90, at_least=450)],
        [tests(place, "pipeline", PIPELINE, predicted=35, budget=50, at_least=80)],
        [rows(place)],
        [tune(place)],
    ]


def build(place: Place) -> Step:
    """34 seconds of one core in all, eight of them for the longest file."""
    out = ["--inplace"] if not place.rehearse else ["--build-lib", str(place.scratch / "lib")]
    command = [sys.executable, "setup.py", "build_ext", *out, "--build-temp", str(place.scratch / "build")]
    env = {"FAIRKERN_CUDA_ARCHITECTURES": place.architecture, "FAIRKERN_JOBS": str(place.cores)}
    built = ROOT if not place.rehearse else place.scratch / "lib"

    def judge(cut: bool) -> tuple[str, dict[str, Any]]:
        found = sorted(path.name for path in (built / "fairkern" / "ops").glob("_extension_*.so"))
        return ("" if len(found) >= 2 or cut else "not both extensions are there", {"said": ", ".join(found)})

    what = f"the extensions, for sm_{place.architecture} alone, {place.cores} compilers at a time"
    return Step("build", what, 15, 70, [command], {"FAIRKERN_BUILD": "cuda", **env}, judge)


def warm(place: Place) -> Step:
    """41 seconds of one core for 50 kernels, twelve of them for the longest."""
    command = [*_module("bench.gpu.warm"), "--architecture", place.architecture, "--processes", str(place.cores)]
    command += ["--every", str(WARMED)] if place.rehearse else []
    return Step(
        "warm", "Triton's kernels in their shipped configurations", 25, 70, [command], {"TRITON_INTERPRET": "0"}
    )


def tests(place: Place, name: str, files: Sequence[str], *, predicted: float, budget: float, at_least: int) -> Step:
    told = [place.scratch / f"{name}-{number}.jsonl" for number in range(place.processes)]
    marks = "gpu and not slow"
    chosen: list[str] = []
    if place.rehearse:
        at_least //= 2 * SAMPLE
        chosen = ["--every", str(SAMPLE)]
        if name == "kernels":
            chosen += ["-k", "triton and not float16 and not every_value and not beyond and not more_classes"]
        else:
            marks = "not gpu and not slow"
    commands = [
        [*_module("pytest"), "-q", "-p", "no:cacheprovider", "-p", "bench.gpu.shards", "-m", marks, *chosen,
         "--shard", f"{number}/{place.processes}", "--told", str(path), *(f"tests/{file}.py" for file in files)]
        for number, path in enumerate(told)
    ]  # fmt: skip

    def judge(cut: bool) -> tuple[str, dict[str, Any]]:
        lines = shards.read(told)
        counts = Counter(line["outcome"] for line in lines)
        failed = [line for line in lines if line["outcome"] == "failed"]
        skipped = Counter(line["says"] for line in lines if line["outcome"] == "skipped")
        wrong = f"{len(failed)} failed" if failed else ""
        if not wrong and not cut and counts["passed"] < at_least:
            wrong = f"{counts['passed']} passed where at least {at_least} should"
        said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        longest = sorted(lines, key=lambda line: -line["seconds"])[:10]
        return wrong, {
            "said": said,
            "tests": dict(counts),
            "failed": failed,
            "skipped": dict(skipped.most_common()),
            "longest": {line["test"]: line["seconds"] for line in longest},
        }

    env = {"OMP_NUM_THREADS": str(max(1, place.cores // place.processes))}
    env |= {"TRITON_INTERPRET": str(int(name == "kernels"))} if place.rehearse else {}
    return Step(name, f"tests of {', '.join(files)}", predicted, budget, commands, env, judge)


def rows(place: Place) -> Step:
    path, told = place.out / "gpu.json", place.scratch / "rows.jsonl"
    command = [
        *_module("pytest"),
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "bench.gpu.shards",
        "-m",
        "gpu",
        "--until",
        "UNTIL",
    ]
    command += ["--tests-before", str(place.out / "run.json")]
    command += ["--told", str(told), "--gpu-results", str(path), *(["--rehearse"] if place.rehearse else [])]
    command += ["--commit", place.commit] if place.commit else []

    def judge(cut: bool) -> tuple[str, dict[str, Any]]:
        lines = shards.read([told])
        counts = Counter(line["outcome"] for line in lines)
        failed = [line for line in lines if line["outcome"] == "failed"]
        wrong = f"{len(failed)} failed" if failed else "" if counts["passed"] or cut else "no row was measured"
        took = {line["test"].partition("[")[2].rstrip("]"): line["seconds"] for line in lines}
        return wrong, {"said": f"{counts['passed']} rows, {counts['skipped']} left out", "failed": failed, "took": took}

    what = "rows of docs/performance.md, each written when it is measured"
    return Step("rows", what, 130, 140, [[*command, "bench/test_gpu.py"]], {}, judge)


def tune(place: Place) -> Step:
    command = [*_module("bench.gpu.tune"), "--out", str(place.out / "tuned.json"), "--until", "UNTIL"]
    command += ["--rehearse"] if place.rehearse else []
    what = "launch settings beside the shipped ones, as far as time is left"
    return Step("tune", what, 45, 55, [command], {"TRITON_INTERPRET": "1"} if place.rehearse else {})


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


def architecture() -> str | None:
    """Of the first device, by nvidia-smi; None where there is none. Torch takes seconds to say it."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"\s*(\d+)\.(\d+)\s*$", done.stdout.split("\n")[0])
    return None if done.returncode or found is None else found[1] + found[2]


def main(words: list[str]) -> int:
    given = _parsed(words)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    there = architecture() if given.architecture is None else given.architecture
    if missing or there is None:
        print(f"missing packages: {missing}" if missing else "nvidia-smi shows no device", file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fairkern-gpu-") as scratch:
        cores = len(os.sched_getaffinity(0))
        place = Place(given.out, Path(scratch), there, cores, given.rehearse, given.commit)
        return run(place, groups(place), given.seconds, given.began, only=given.only)


def run(place: Place, steps: list[list[Step]], seconds: float, began: float, only: Sequence[str] = ()) -> int:
    """Also where it is told to end (SIGTERM, Ctrl-C): with what there is."""
    chosen = [[step for step in group if not only or step.name in only] for group in steps]
    source = provenance(place.commit)

    def told(found: list[dict[str, Any]]) -> None:
        facts = {"architecture": f"sm_{place.architecture}", "cores": place.cores, "rehearsed": place.rehearse}
        write_results(place.out / "run.json", source=source, **facts, seconds=seconds, rows=found)

    clock = Clock(seconds - ENDING, began, place.scratch, told)
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, lambda *_: setattr(clock, "ended", True))
    found = clock.run([group for group in chosen if group])
    (place.out / "log.txt").write_text(_logs(place.scratch))
    print(table(found))
    code = code_of(found)
    print(f"{time.time() - began:.0f} of {seconds:.0f} s; {ENDED[code]} (exit code {code}); files in {place.out}")
    return code


def _logs(folder: Path) -> str:
    paths = sorted(folder.glob("*.txt"), key=lambda path: path.stat().st_mtime)
    return "".join(f"=== {path.stem}\n{path.read_text(errors='replace')[-LOG:]}\n" for path in paths)


def _parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/gpu/run.sh")
    out = os.environ.get("OUT")
    parser.add_argument("out", type=Path, nargs="?" if out else None, default=out and Path(out), help="a folder")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, small")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the clock; %(default)g")
    parser.add_argument("--here", type=Path, default=Path(), help="what OUT is relative to")
    parser.add_argument("--began", type=float, default=time.time(), help="Unix second at which it began")
    parser.add_argument("--architecture", help="as in sm_90; default: the first device's")
    parser.add_argument("--commit", help="what the files name where there is no git checkout")
    parser.add_argument("--only", nargs="+", default=(), metavar="STEP", help="these steps alone")
    given = parser.parse_args(words)
    given.out = (given.here / given.out).resolve()
    if given.rehearse and given.architecture is None:
        given.architecture = "90"
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
