"""The mutation runner on a package of two functions: what is changed, what is left, and what tests make of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("coverage")
pytest.importorskip("hypothesis")

from bench.mutation.__main__ import ROOMS, in_room, interval, row, sample, survivors
from bench.mutation.equivalent import EQUIVALENT
from bench.mutation.mutants import Mutant, mutants
from bench.provenance import ROOT

SOURCE = '''"""A docstring, 1 < 2."""
from __future__ import annotations

Alias = dict[str, "int"]
LIMIT = 3
__all__ = ["clipped"]


def clipped(x: int, least: int = 0) -> int:
    """1 < 2"""
    if x > LIMIT:
        return LIMIT
    if x < least - 1:
        raise ValueError(f"{x + 1} is below {least}")
    assert x < 5
    return sum(a for a, _ in zip([x, 5], [0], strict=True)) if True else x


def unreached(x: int) -> int:
    return x + 1


def waits(x: int) -> int:
    while x > 0:
        x -= 1
    return x
'''
TESTS = """import pytest
from small import clipped, waits

@pytest.mark.parametrize("x", [0, 3, 4])
def test_clipped(x):
    assert clipped(x) == min(x, 3)

def test_waits():
    assert waits(3) == 0
"""
RUN = """
import json, sys
from pathlib import Path
from bench.mutation import children
children.LEAST_TIME = 1
from bench.mutation.mutants import mutants
root = Path(sys.argv[1])
fates = children.judged(root, ["test_small.py"], mutants(root, "small.py"), lambda *what: None)
print("\\n" + json.dumps({mutant.name.partition("::")[2]: fate for mutant, fate in fates.items()}))
"""


def package(folder: Path, tests: str = TESTS) -> Path:
    (folder / "small.py").write_text(SOURCE.replace("zip([x, 5], [0], strict=True)", "zip([x], [0], strict=True)"))
    (folder / "test_small.py").write_text(tests)
    return folder


def run(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, str(root)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_what_is_changed_and_what_is_left(tmp_path: Path) -> None:
    names = [mutant.name for mutant in mutants(package(tmp_path), "small.py")]
    assert names == [
        "small.py::: 3 → 4",
        "small.py::clipped: 0 → 1",
        "small.py::clipped: x > LIMIT → x >= LIMIT",
        "small.py::clipped: x > LIMIT → x <= LIMIT",
        "small.py::clipped: return LIMIT → pass",
        "small.py::clipped: x < least - 1 → x <= least - 1",
        "small.py::clipped: x < least - 1 → x >= least - 1",
        "small.py::clipped: least - 1 → least + 1",
        "small.py::clipped: 1 → 2",
        "small.py::clipped: raise ValueError(f'{x + 1} is below {least}') → pass",
        "small.py::clipped: True → False",
        "small.py::clipped: 0 → 1",
        "small.py::unreached: x + 1 → x - 1",
        "small.py::unreached: 1 → 2",
        "small.py::waits: x > 0 → x >= 0",
        "small.py::waits: x > 0 → x <= 0",
        "small.py::waits: 0 → 1",
        "small.py::waits: x -= 1 → x += 1",
        "small.py::waits: x -= 1 → pass",
        "small.py::waits: 1 → 2",
    ]


def test_tests_notice_what_they_reach(tmp_path: Path) -> None:
    done = run(package(tmp_path))
    assert done.returncode == 0, done.stderr
    fates = json.loads(done.stdout.splitlines()[-1])
    assert fates[": 3 → 4"] == "killed", "what importing runs is changed before it"
    assert fates["clipped: x > LIMIT → x <= LIMIT"] == "killed"
    assert fates["clipped: x > LIMIT → x >= LIMIT"] == "survived"
    assert fates["clipped: True → False"] == "survived"
    assert fates["unreached: x + 1 → x - 1"] == "survived"
    assert fates["waits: x -= 1 → pass"] == "too long"


def test_tests_that_fail_anyway_say_nothing(tmp_path: Path) -> None:
    done = run(package(tmp_path, TESTS.replace("min(x, 3)", "min(x, 2)")))
    assert done.returncode != 0
    assert "the tests fail without any change" in done.stderr


def test_a_sample_is_drawn_by_its_seed_and_says_how_sure_it_is() -> None:
    everything = [Mutant("a.py", k, k, None, f"a.py::f: {k}") for k in range(100)]
    drawn = sample(everything, 10, seed=1)
    assert drawn == sample(everything, 10, seed=1) != sample(everything, 10, seed=2)
    assert drawn == sorted(drawn, key=lambda m: m.number)
    assert sample(everything, 1000, seed=0) == everything
    fates = dict(zip(drawn, ["killed"] * 6 + ["too long", "survived", "equivalent", "equivalent"], strict=True))
    made = row("a", 100, fates)
    assert (made["sample"], made["killed"], made["of_these_by_time"], made["equivalent"]) == (10, 7, 1, 2)
    assert made["killed_share"] == 0.875
    assert survivors(fates) == [f"{drawn[7].name} (line {drawn[7].line})"]
    low, high = interval(87, 100, 10**9)
    assert (low, high) == pytest.approx((0.790, 0.922), abs=1e-3)  # Wilson's, from tables
    assert interval(87, 100, 100) == pytest.approx((0.87, 0.87))


def test_equivalent_mutants_are_known_by_their_names() -> None:
    named = [mutant.name for pattern, _ in ROOMS.values() for mutant in in_room(pattern)]
    assert [name for name in EQUIVALENT if named.count(name) != 1] == []
    assert len(set(named)) > 2000
