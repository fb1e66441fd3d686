"""`torchrun -m fairkern`: one process writes and speaks, and an error of one ends all with its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fairkern as fk
from fairkern.cli import main
from tests.ranks import cases
from tests.ranks.processes import Processes

OURS = Path(__file__).resolve().parents[2]
GIVEN = """
import os
from torch.nn import functional
from tests.ranks import cases

model = cases.net
loader = cases.data

def loss():
    return functional.cross_entropy

def spoilt():
    if os.environ["RANK"] == "1":
        raise OSError("the disk is gone")
    return cases.data()
"""


def torchrun(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes; a port that is free is found by torchrun itself."""
    (folder / "given.py").write_text(GIVEN)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fairkern"]
    paths = os.pathsep.join([str(OURS), os.environ.get("PYTHONPATH", "")])
    own = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*run, *map(str, arguments)], cwd=folder, env=own, capture_output=True, text=True, timeout=120, check=False
    )


def test_two_processes_write_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["given:model", "given:loader", "given:loss", "--keep-params", 0.5]
    done = torchrun(tmp_path, "prune", *given, "-o", "two")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("units in ") == 1  # once
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert main(["prune", *map(str, given), "-o", "one", "--quiet"]) == 0
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names
    one, two = (fk.Plan.load(tmp_path / name / "plan.json") for name in ("one", "two"))
    assert [g.removed.tolist() for g in one.groups] == [g.removed.tolist() for g in two.groups]
    assert fk.Scores.load(tmp_path / "two" / "scores.safetensors").provenance["ranks"] == 2


def test_an_error_of_one_ends_all(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "given.py").write_text(GIVEN)
    command = ["score", "given:model", "given:spoilt", "given:loss", "--out", "scores.safetensors"]
    first, failed, last = processes.run(cases.commanded, str(tmp_path), command)
    assert (failed.kind, failed.message) == ("OSError", "the disk is gone")  # with its traceback
    assert first == (2, "fairkern: error: rank 1: stopped with OSError: the disk is gone\n")
    assert last == (2, "")  # one process speaks for the others
    assert not (tmp_path / "scores.safetensors").exists()


def test_a_full_disk_of_the_one_that_writes_ends_all(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "given.py").write_text(GIVEN)
    (tmp_path / "file").write_text("")
    command = ["score", "given:model", "given:loader", "given:loss", "--out", "file/scores.safetensors"]
    codes, said = zip(*processes.run(cases.commanded, str(tmp_path), command), strict=True)
    assert codes == (2, 2, 2)
    assert said[0].startswith("fairkern: error: cannot write ")
    assert said[1:] == ("", "")  # the process that it comes from has said it


def test_what_one_process_does_is_refused(processes: Processes, tmp_path: Path) -> None:
    codes, said = zip(*processes.run(cases.commanded, str(tmp_path), ["info"]), strict=True)
    assert codes == (2, 2, 2)
    once = "fairkern: error: fairkern info is done by one process: start it without torchrun\n"
    assert sorted(said) == ["", "", once]  # though it comes to all of them


def test_what_all_refuse_is_said_once(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "given.py").write_text(GIVEN)
    command = ["prune", "given:modle", "given:loader", "given:loss", "--keep-params", "0.5", "-o", "small"]
    codes, said = zip(*processes.run(cases.commanded, str(tmp_path), command), strict=True)
    assert codes == (2, 2, 2)
    assert len([line for line in said if line]) == 1
    assert "did you mean model?" in "".join(said)
