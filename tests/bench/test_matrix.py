"""The matrix of supported versions: which commands a row is, and what of pytest's own reports is kept."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from bench import matrix
from bench.provenance import ROOT
from bench.readme import commands

XML = """<testsuites><testsuite>
<testcase classname="tests.a" name="one"/>
<testcase classname="tests.a" name="two"><failure message="no">E</failure></testcase>
<testcase classname="tests.b" name="three"><skipped message="could not\n import 'this'"/></testcase>
<testcase classname="tests.b" name="four"><skipped message="could not import 'this'"/></testcase>
<testcase classname="tests.c" name="five"><error message="at its beginning"/></testcase>
</testsuite></testsuites>"""


def test_the_command_is_that_of_readme() -> None:
    assert commands((ROOT / "README.md").read_text(), "tests") == ('pip install -e ".[test]"', "pytest")


def test_the_oldest_row_is_what_the_package_says_it_takes() -> None:
    (listed,) = re.findall(r"(?ms)^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text())
    least = dict(re.findall(r'"([\w-]+)>=([\d.]+)', listed))
    pinned = dict(pin.split("==") for pin in matrix.ROWS["oldest"].pins)
    for name in least.keys() - {"triton", "typing-extensions"}:  # torch brings the one, and asks for more of the other
        assert pinned[name].startswith(least[name]), name


def test_counts_failures_and_why_tests_were_skipped() -> None:
    assert matrix.outcomes(XML) == {
        "passed": 1,
        "failed": ["tests.a::two", "tests.c::five"],
        "skipped": 2,
        "skipped_why": {"could not import 'this'": 2},
    }


class Runs:
    """In place of commands: kept, and answered as pytest and pip would; `fails`: the one that does not work."""

    def __init__(self, fails: str = "") -> None:
        self.commands: list[list[str]] = []
        self.fails, self.seen = fails, dict[str, str]()

    def __call__(
        self, command: list[str], folder: Path, seen: dict[str, str], to: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        assert (folder / "pyproject.toml").exists()
        self.commands.append(command)
        self.seen = dict(seen)
        if self.fails and self.fails in command[-1]:
            return subprocess.CompletedProcess(command, 1, "Looking\n", "ERROR: no torch here\n")
        if command[0] == "pytest":
            Path(command[1].partition("=")[2]).write_text(XML)
        told = json.dumps({"python": "3.11", "versions": {"torch": "2.9.0", "triton": "3.5.0"}})
        return subprocess.CompletedProcess(command, 0, told if command[0] == "python" else "", "")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    made = Runs()
    monkeypatch.setattr(matrix, "_run", made)
    monkeypatch.setattr(matrix, "_files", lambda: ["pyproject.toml", "README.md"])  # there may be no git
    monkeypatch.setattr(matrix, "RESULTS", tmp_path / "results" / "matrix.json")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("CI", "1")
    return made


def test_a_row_is_installed_tested_and_compiled(runs: Runs, tmp_path: Path) -> None:
    row = matrix.ran(matrix.ROWS["oldest"], tmp_path / "row", ["tests/ops"])
    venv, install, versions, tests, kernels = runs.commands
    assert venv[1:3] == ["-m", "venv"]
    assert install == ["bash", "-c", 'pip install -e ".[test]"']
    assert versions[0] == "python"
    assert tests == ["pytest", f"--junitxml={tmp_path / 'row' / 'tests.xml'}", "tests/ops"]
    assert kernels[2:] == ["tests/triton", "-m", "targets"]
    assert runs.seen["PATH"].startswith(str(tmp_path / "row" / "venv" / "bin"))
    assert Path(runs.seen["PIP_CONSTRAINT"]).read_text().split() == list(matrix.ROWS["oldest"].pins)
    assert not {"PYTHONPATH", "CI"} & runs.seen.keys()
    assert row["versions"]["triton"] == "3.5.0"
    assert row["tests"]["passed"] == 1
    assert not matrix.fine(row)
    assert matrix.fine({**row, "tests": {"failed": []}, "kernels": {"failed": []}})


def test_what_cannot_be_installed_is_no_row_that_passed(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.fails = matrix.NIGHTLY
    assert matrix.main(["nightly", "--into", str(tmp_path)]) == 1
    assert "nightly: not run: pip install --pre torch" in capsys.readouterr().out
    (row,) = json.loads(matrix.RESULTS.read_text())["rows"]
    assert row["not_run"].endswith(": ERROR: no torch here")
    assert {"commit", "date", "case"} <= row.keys()


def test_rows_that_are_not_named_are_kept(runs: Runs) -> None:
    assert matrix.main(["newest"]) == 1  # of the five tests above two failed
    assert matrix.main(["oldest", "--", "tests/ops"]) == 1
    rows = json.loads(matrix.RESULTS.read_text())["rows"]
    assert [row["case"] for row in rows] == ["oldest", "newest"]
    assert [row["part"] for row in rows] == [["tests/ops"], []]


def test_a_row_that_is_none(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        matrix.main(["1.13"])
    assert "there is no row '1.13'; rows are oldest; " in capsys.readouterr().err
    assert runs.commands == []
