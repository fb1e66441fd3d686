"""The entry points of the CPU extension under libFuzzer, with sanitizers of addresses and undefined behaviour."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from bench.provenance import ROOT
from bench.reliability.rows import Row, Tally

HERE = Path(__file__).parent / "native"
SHARES = {"gather": 45, "tod_curves": 24, "taylor": 16, "project": 9, "wasserstein_1d": 3.5, "class_wasserstein": 2.5}
FLAGS = (
    *("-std=c++17", "-O1", "-g1", "-ffp-contract=off", f"-I{ROOT / 'csrc'}", f"-I{HERE / 'without_python'}"),
    *("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined"),
)
CALLED, FOUND = "computed or refused, as it must be", "crash, wrong result or report of a sanitizer"


class Unavailable(Exception):
    """What is missing."""


def compiler() -> str:
    """Of the newest clang that has libFuzzer. Raises Unavailable."""
    if sys.platform != "linux":
        raise Unavailable("clang with libFuzzer is looked for on Linux only")
    found = [name for name in ("clang++", *(f"clang++-{n}" for n in range(30, 12, -1))) if shutil.which(name)]
    if not found:
        raise Unavailable("no clang++ (on Debian: apt-get install clang libclang-rt-14-dev)")
    for name in found:
        probe = [name, "-fsanitize=fuzzer,address,undefined", "-x", "c++", "-", "-o", os.devnull]
        source = (
            '#include <cstdint>\nextern "C" int LLVMFuzzerTestOneInput(const uint8_t*, unsigned long) { return 0; }'
        )
        if subprocess.run(probe, input=source, text=True, capture_output=True, check=False).returncode == 0:
            return name
    raise Unavailable(f"{found[0]} has no libFuzzer or sanitizers (on Debian: apt-get install libclang-rt-14-dev)")


def build(folder: Path, jobs: int = 2) -> Path:
    """The fuzzer, compiled in `folder`. Raises Unavailable, RuntimeError (what the compiler said)."""
    clang = compiler()
    sources = [HERE / "harness.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]

    def call(*words: str) -> None:
        done = subprocess.run([clang, *FLAGS, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{clang} {' '.join(words)}:\n{done.stderr[-3000:]}")

    def compiled(source: Path) -> str:
        target = str(folder / f"{source.stem}.o")
        call("-c", str(source), "-o", target)
        return target

    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compiled, sources))
    call(*objects, "-o", str(folder / "fuzz"))
    return folder / "fuzz"


def run(seed: int, count: int, folder: Path) -> Iterator[Row]:
    """A row per operator, `count` executions in all; or one that says why there are none."""
    begun = time.perf_counter()
    try:
        program = build(folder)
    except Unavailable as missing:
        yield Row("fuzz", "native entry points", not_run=str(missing))
        return
    built = time.perf_counter() - begun
    total = sum(SHARES.values())
    for operator, share in SHARES.items():
        yield replace(_operator(program, operator, seed, round(count * share / total)), measured={"build_s": built})


def _operator(program: Path, operator: str, seed: int, count: int) -> Row:
    begun = time.perf_counter()
    options = [f"-runs={count}", f"-seed={seed + 1}", "-max_len=192", "-len_control=0", "-timeout=60"]
    options += ["-rss_limit_mb=4096", "-print_final_stats=1", f"-artifact_prefix={program.parent}/"]
    done = subprocess.run([program, f"--operator={operator}", *options], capture_output=True, text=True, check=False)
    executed, found = outcome(done.stderr, done.returncode)
    tally = Tally((FOUND,))
    tally.outcomes[CALLED] = executed
    if found:
        tally.add(FOUND, found)
    row = tally.row("fuzz", f"native: {operator}", seed=seed)
    return replace(row, count=executed, seconds=time.perf_counter() - begun)


def outcome(said: str, code: int) -> tuple[int, str]:
    """From what libFuzzer prints: executions, and what it stopped at, with the input as base64."""
    (executed,) = re.findall(r"stat::number_of_executed_units: (\d+)", said) or ["0"]
    if code == 0:
        return int(executed), ""
    telling = r"^(WRONG: .*|SUMMARY: .*|.*runtime error: .*|.*Uncaught Python exception.*)$"
    lines = re.findall(telling, said, re.MULTILINE)
    lines += re.findall(r"^Base64: .*$", said, re.MULTILINE)[-1:]  # the last input: those before it were slow
    return int(executed), " | ".join(lines)[:600] or f"exit code {code}: {said[-300:]}"
