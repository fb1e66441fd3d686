"""From a clone to the demo's result: which commands are timed, and what of README they are."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import first_run
from bench.provenance import ROOT
from bench.readme import commands


def test_the_commands_are_those_of_readme() -> None:
    assert commands((ROOT / "README.md").read_text(), "main job") == ('pip install ".[demo]"', "fairkern demo")
    assert first_run.builds((ROOT / "pyproject.toml").read_text()) == ["setuptools>=77", "pybind11>=2.13"]


def test_downloads_are_told_apart_and_the_rest_has_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[list[str], bool]]()

    def ran(command: list[str], env: dict[str, str], **_: object) -> SimpleNamespace:
        assert "PYTHONPATH" not in env
        seen.append((command, "PIP_NO_INDEX" in env))
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setattr(subprocess, "run", ran)
    took = first_run.stages(tmp_path)
    assert list(took) == ["clone", "environment", "downloads", "installation", "demo"]
    offline = [command[-1] for command, alone in seen if alone]
    assert offline == ['pip install ".[demo]"', "fairkern demo"]
    assert [command[-1] for command, _ in seen if "download" in command or "pip download" in command[-1]] == [
        f'pip download --dest {tmp_path / "wheels"} ".[demo]"',
        "pybind11>=2.13",
    ]


def test_what_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stdout="out", stderr="no such thing")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match=r"clone failed:(?s:.*)no such thing"):
        first_run.stages(tmp_path)
