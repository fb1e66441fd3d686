"""`python -m bench.matrix [ROW …] [--into FOLDER] [-- TEST …]`: README's test command under every torch supported.

A row is a virtual environment of its own, in which README's own line runs on a copy of the checkout, held to some
versions (`PIP_CONSTRAINT`); torch brings its Triton. Then that compiles every kernel for every target, where none may
spill. The results file has for each row what was installed, how many tests passed, which failed, how many were skipped
and why; rows that are not named are kept. A row that could not be installed says so, and is none that passed.

`--into`: where environments stay, and are used again (each takes some 7 GB where torch comes with CUDA's libraries).
Without it each is thrown away after its row. What stands behind `--` goes to pytest: paths to run a part, which the row
then says.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.provenance import ROOT, provenance, write_results
from bench.readme import commands

RESULTS = ROOT / "bench" / "results" / "matrix.json"
PACKAGES = ("torch", "triton", "torchvision", "numpy", "scipy", "rich", "typing-extensions", "pytest", "hypothesis")
NIGHTLY = "https://download.pytorch.org/whl/nightly/cpu"
INTERPRETED = "numpy==2.3.*"  # the last that Triton's interpreter works with before Triton 3.8: tests/interpreter.py
ALONE = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CI", "TRITON_INTERPRET")


@dataclass(frozen=True)
class Row:
    """`pins`: what README's command is held to. `first`: what pip installs before it, and from where."""

    name: str
    pins: tuple[str, ...] = ()
    first: tuple[str, ...] = ()


ROWS = {
    row.name: row
    for row in (
        Row("oldest", ("torch==2.9.0", "torchvision==0.24.0", "numpy==1.26.0", "scipy==1.11.1", "rich==13.0.0")),
        Row("2.10", ("torch==2.10.*", INTERPRETED)),
        Row("2.11", ("torch==2.11.*", INTERPRETED)),
        Row("2.11, numpy 2.4", ("torch==2.11.*", "numpy==2.4.*")),
        Row("2.12", ("torch==2.12.*", INTERPRETED)),
        Row("2.13", ("torch===2.13.0",)),  # no build of a local version, which torchvision may not go with
        Row("newest"),
        Row("nightly", first=("--pre", "torch", "torchvision", "--index-url", NIGHTLY)),
    )
}


def outcomes(xml: str) -> dict[str, Any]:
    """What pytest's own report of a run (`--junitxml`) says: counts, what failed, and why how many were skipped."""
    failed, reasons, passed = [], Counter[str](), 0
    for case in ElementTree.fromstring(xml).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif skipped is not None:
            reasons[" ".join((skipped.get("message") or "").split())] += 1
        else:
            passed += 1
    return {
        "passed": passed,
        "failed": sorted(failed),
        "skipped": sum(reasons.values()),
        "skipped_why": dict(sorted(reasons.items())),
    }


def ran(row: Row, place: Path, part: Sequence[str] = ()) -> dict[str, Any]:
    """One row, in the folder `place`, where an environment of an earlier run is used again."""
    begin = time.perf_counter()
    checkout, pins = place / "checkout", place / "pins.txt"
    install, test = commands((ROOT / "README.md").read_text(), "tests")
    assert install.startswith("pip install -e "), install  # the checkout's own package is what is tested
    assert test == "pytest", test
    place.mkdir(parents=True, exist_ok=True)
    pins.write_text("\n".join(row.pins) + "\n")
    seen = {name: value for name, value in os.environ.items() if name not in ALONE}
    seen |= {"PATH": f"{place / 'venv' / 'bin'}{os.pathsep}{seen['PATH']}"}
    if row.pins:
        seen["PIP_CONSTRAINT"] = str(pins)
    made: dict[str, Any] = {"case": row.name, "pins": list(row.pins), "part": list(part)}
    _checkout(checkout)
    steps = [["pip", "install", *row.first]] if row.first else []
    for command in ([sys.executable, "-m", "venv", str(place / "venv")], *steps, ["bash", "-c", install]):
        done = _run(command, checkout, seen)
        if done.returncode:
            last = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            return {**made, "not_run": f"{' '.join(command)}: {last[-1] if last else done.returncode}"}
    made |= _versions(checkout, seen)
    for name, words in (("tests", list(part)), ("kernels", ["tests/triton", "-m", "targets"])):
        report = place / f"{name}.xml"
        report.unlink(missing_ok=True)
        command = [test, f"--junitxml={report}", *words]
        done = _run(command, checkout, seen, to=place / f"{name}.log")
        if not report.exists():
            return {**made, "not_run": f"{shlex.join(command)}: exit code {done.returncode}"}
        made[name] = outcomes(report.read_text().replace(f"{place}{os.sep}", ""))  # it is of one machine alone
    return {**made, "seconds": round(time.perf_counter() - begin)}


def fine(row: Mapping[str, Any]) -> bool:
    return "not_run" not in row and not any(row[name]["failed"] for name in ("tests", "kernels"))


def _checkout(place: Path) -> None:
    """What git tracks, and would track, without what was built; the folder anew, but for its name."""
    shutil.rmtree(place, ignore_errors=True)
    for name in _files():
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)


def _files() -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return [name for name in listed.stdout.decode().split("\0") if name]


def _versions(checkout: Path, seen: Mapping[str, str]) -> dict[str, Any]:
    code = f"import json, platform; from bench.provenance import versions; names = {PACKAGES!r}; "
    code += "print(json.dumps({'python': platform.python_version(), 'versions': versions(names)}))"
    done = _run(["python", "-c", code], checkout, seen)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _run(
    command: Sequence[str], folder: Path, seen: Mapping[str, str], to: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Quietly, or with all that it says in a file."""
    print(f"{time.strftime('%H:%M:%S')} {' '.join(command)}", file=sys.stderr, flush=True)
    if to is None:
        return subprocess.run(command, cwd=folder, env=dict(seen), capture_output=True, text=True, check=False)
    with to.open("w") as file:
        return subprocess.run(
            command, cwd=folder, env=dict(seen), stdout=file, stderr=subprocess.STDOUT, text=True, check=False
        )


@contextmanager
def _place(into: Path | None, row: Row) -> Iterator[Path]:
    if into is not None:
        yield into / re.sub(r"\W+", "-", row.name)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def written(rows: Sequence[Mapping[str, Any]]) -> None:
    """These rows, and those of the file that are of other cases, in the order of `ROWS`."""
    source = {key: value for key, value in provenance().items() if key in ("commit", "uncommitted_changes", "date")}
    kept = {row["case"]: row for row in json.loads(RESULTS.read_text())["rows"]} if RESULTS.exists() else {}
    kept |= {row["case"]: {**source, **row} for row in rows}
    ordered = [kept[name] for name in ROWS if name in kept]
    write_results(RESULTS, source=source, rows=ordered)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.matrix", description="rows: " + "; ".join(ROWS))
    parser.add_argument("rows", nargs="*", metavar="ROW", default=[])
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="keep environments here, and use them again")
    given = list(sys.argv[1:] if words is None else words)
    at = given.index("--") if "--" in given else len(given)
    asked, part = parser.parse_args(given[:at]), given[at + 1 :]
    unknown = [name for name in asked.rows if name not in ROWS]
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}; rows are {'; '.join(ROWS)}")
    good = True
    for name in asked.rows or ROWS:
        with _place(asked.into and asked.into.resolve(), ROWS[name]) as place:
            row = ran(ROWS[name], place, part)
        written([row])
        good &= fine(row)
        print(_told(row), flush=True)
    return 0 if good else 1


def _told(row: Mapping[str, Any]) -> str:
    if "not_run" in row:
        return f"{row['case']}: not run: {row['not_run']}"
    said = [f"{row['case']}: torch {row['versions']['torch']}, Triton {row['versions']['triton']}"]
    for name in ("tests", "kernels"):
        found = row[name]
        said.append(f"{name}: {found['passed']} passed, {len(found['failed'])} failed, {found['skipped']} skipped")
    return "; ".join(said)


if __name__ == "__main__":
    raise SystemExit(main())
