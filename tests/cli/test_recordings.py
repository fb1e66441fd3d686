"""What the command line prints, command by command: held against recordings that people read."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from fairkern.cli.parser import command_line
from tests.cli.recorded import PROMPT, RECORDINGS, commands, played, prepared, told

FILES = sorted(RECORDINGS.glob("*.txt"))
NEEDS = {"resnet18": "torchvision", "research": "torch"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        patch.delitem(sys.modules, "parts", raising=False)
        prepared(place)
    return place


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recording(path: Path, folder: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    pytest.importorskip(NEEDS.get(path.stem, "torch"))
    shutil.copytree(folder, here, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    recording = path.read_text()
    assert commands(recording)
    found = played(recording)
    assert found == recording, "if it shall be so: python -m tests.cli.recorded"


def test_every_error_is_one_line() -> None:
    """But for `fairkern` by itself, which prints its help, and where the error is an object of JSON too."""
    seen = 0
    for path in FILES:
        for block in re.split(r"(?m)^(?=\$ fairkern)", path.read_text())[1:]:
            line, *printed = [one for one in block.strip().splitlines() if not one.startswith("#")]
            if "[2]" in printed and line != PROMPT and "--json" not in line:
                (error, _) = [one for one in printed if one]
                assert error.startswith("fairkern: error: "), line
                seen += 1
    assert seen > 100


def test_every_command_is_recorded_without_arguments_and_at_work() -> None:
    lines = [line for path in FILES for line in commands(path.read_text())]
    bare = {"demo", "info"}  # need none; and the demo trains
    for name in command_line()._subparsers._group_actions[0].choices:
        assert f"$ fairkern {name}" in lines or name in bare, name


def test_the_rule_hides_times_and_nothing_else() -> None:
    assert told("latency 3.21 ms → 1.5 ms (46.7% kept)") == "latency … ms → … ms (…)"
    assert told("9 of 24 units in 2 groups removed") == "9 of 24 units in 2 groups removed"
    assert told("parameters 279 → 144 (51.6% kept)") == "parameters 279 → 144 (51.6% kept)"
