"""What the command line prints, command by command: held against recordings that people read."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from fairkern.cli.parser import command_line
from tests.cli.recorded import RECORDINGS, commands, played, prepared, told

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
def test_recording(path: Path, folder: Path, here: Path) -> None:
    pytest.importorskip(NEEDS.get(path.stem, "torch"))
    shutil.copytree(folder, here, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    recording = path.read_text()
    assert commands(recording)
    found = played(recording)
    assert found == recording, "if it shall be so: python -m tests.cli.recorded"


def test_every_error_is_one_line() -> None:
    for path in FILES:
        for block in path.read_text().split("\n\n"):
            line, *printed, code = [one for one in block.strip().splitlines() if not one.startswith("#")] or ["", ""]
            if code == "[2]" and not re.fullmatch(r"\$ fairkern( --json)?", line) and "--json" not in line:
                assert [one for one in printed if one.startswith("fairkern: error: ")] == printed[-1:], line
                assert len(printed) == 1, line


def test_every_command_is_recorded_without_arguments_and_at_work() -> None:
    lines = [line for path in FILES for line in commands(path.read_text())]
    bare = {"demo", "info"}  # need none; and the demo trains
    for name in command_line()._subparsers._group_actions[0].choices:
        assert f"$ fairkern {name}" in lines or name in bare, name


def test_the_rule_hides_times_and_nothing_else() -> None:
    assert told("latency 3.21 → 1.5 ms (46.7% kept)") == "latency 3.21 → … ms (46.7% kept)"
    assert told("9 of 24 units in 2 groups removed") == "9 of 24 units in 2 groups removed"
    assert told("parameters 279 → 144 (51.6% kept)") == "parameters 279 → 144 (51.6% kept)"
