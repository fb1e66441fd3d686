"""`bench/gpu/run.sh`: steps under one clock, and what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from bench import gpu_rehearsal, triton_compiled
from bench.gpu import shards, suite, warm
from bench.gpu.clock import CUT, DONE, LEFT, WRONG, Clock, Step, code_of, table
from bench.gpu.suite import ENDING, SECONDS, Place, groups
from bench.gpu.table import CASES
from bench.gpu.tune import SEARCHES

ROOT = Path(__file__).resolve().parents[2]


def shell(name: str, script: str, budget: float = 5.0, count: int = 1, **options: Any) -> Step:
    return Step(name, name, 1.0, budget, [["bash", "-c", script]] * count, **options)


def run(
    tmp_path: Path, seconds: float, *groups: list[Step], told: Callable[[list[dict[str, Any]]], None] | None = None
):
    clock = Clock(seconds, time.time(), tmp_path, told or (lambda rows: None))
    return {row["step"]: row for row in clock.run(groups)}


# the clock


def test_groups_run_in_turn_and_their_steps_beside_each_other(tmp_path: Path) -> None:
    first = [shell("a", f"touch {tmp_path}/a; until [ -e {tmp_path}/b ]; do sleep 0.02; done"),
             shell("b", f"touch {tmp_path}/b; until [ -e {tmp_path}/a ]; do sleep 0.02; done")]  # fmt: skip
    rows = run(tmp_path, 20, first, [shell("c", f"[ -e {tmp_path}/a ]")])
    assert {name: row["status"] for name, row in rows.items()} == {"a": DONE, "b": DONE, "c": DONE}
    assert rows["c"]["began_s"] >= max(rows["a"]["seconds"], rows["b"]["seconds"])


def test_a_step_is_ended_where_the_next_ones_budget_begins_and_with_all_that_it_started(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    rows = run(tmp_path, 1.5, [shell("long", script, 0.5)], [shell("next", "true", 1.0)])
    assert rows["long"]["status"] == CUT
    assert rows["long"]["seconds"] < 1.2
    assert rows["next"]["status"] == DONE
    stat = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"  # gone, or not yet waited for


def test_what_is_saved_goes_to_the_next_step(tmp_path: Path) -> None:
    rows = run(tmp_path, 3.0, [shell("short", "true", 2.0)], [shell("next", "sleep 1.2", 0.5)])
    assert rows["next"]["status"] == DONE


def test_what_has_no_time_is_left_out(tmp_path: Path) -> None:
    rows = run(tmp_path, 0.0, [shell("never", f"touch {tmp_path}/ran")])
    assert rows["never"]["status"] == LEFT
    assert not (tmp_path / "ran").exists()


def test_a_process_that_does_not_listen_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu.clock.GRACE", 0.1)
    rows = run(tmp_path, 0.5, [shell("deaf", "trap '' TERM; while true; do sleep 0.05; done", 0.5)])
    assert rows["deaf"]["status"] == CUT


def test_one_process_that_fails_is_wrong(tmp_path: Path) -> None:
    rows = run(tmp_path, 9, [shell("bad", "exit 4")], [shell("good", "true")])
    assert rows["bad"]["status"] == WRONG
    assert "[4]" in rows["bad"]["wrong"]
    assert rows["good"]["status"] == DONE


def test_every_change_is_told_at_once(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    run(
        tmp_path,
        9,
        [shell("a", "true")],
        [shell("b", "true")],
        told=lambda rows: seen.append([r["status"] for r in rows]),
    )
    assert seen == [[LEFT, LEFT], ["running", LEFT], [DONE, LEFT], [DONE, "running"], [DONE, DONE]]


def test_a_step_is_told_when_it_ends(tmp_path: Path) -> None:
    step = Step("told", "told", 1.0, 5.0, [["bash", "-c", f"echo UNTIL > {tmp_path}/until"]])
    run(tmp_path, 5, [step])
    assert abs(int((tmp_path / "until").read_text()) - time.time() - 5) < 3


@pytest.mark.parametrize(
    ("statuses", "code"),
    [([DONE, DONE], 0), ([DONE, CUT], 3), ([LEFT, DONE], 3), ([CUT, WRONG], 1), ([DONE, WRONG], 1)],
)
def test_the_exit_code_tells(statuses: list[str], code: int) -> None:
    assert code_of([{"status": status} for status in statuses]) == code


# the steps


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, tmp_path, "90", 16, rehearse=False)


def test_budgets_fit_into_the_clock_and_predictions_into_budgets(place: Place) -> None:
    steps = groups(place)
    assert sum(max(step.budget for step in group) for group in steps) <= SECONDS - ENDING - 5
    assert all(step.predicted < step.budget for group in steps for step in group)
    assert SECONDS == 420


def test_a_step_without_enough_passing_tests_is_wrong(place: Place) -> None:
    """Where a backend cannot run all its tests are skipped."""
    step = next(step for group in groups(place) for step in group if step.name == "kernels")
    lines = [{"test": f"t{i}", "outcome": "skipped", "seconds": 0, "says": "no Triton"} for i in range(900)]
    (place.scratch / "kernels-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    wrong, found = step.judge(False)
    assert "at least" in wrong
    assert found["skipped"] == {"no Triton": 900}
    assert step.judge(True)[0] == ""  # the clock ended it
    failed = {"test": "t", "outcome": "failed", "seconds": 1, "says": "AssertionError"}
    (place.scratch / "kernels-1.jsonl").write_text(json.dumps(failed) + "\n" + '{"test": "half a li')
    wrong, found = step.judge(True)
    assert wrong == "1 failed"
    assert found["failed"] == [failed]


def test_without_a_device_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(suite, "architecture", lambda: None)
    assert suite.main([str(tmp_path / "out")]) == 2
    assert "no device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_folder_is_where_the_script_was_called(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": "echo"}
    script = [str(ROOT / "bench" / "gpu" / "run.sh"), "out", "--rehearse"]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.split()
    assert words[:2] == ["-m", "bench.gpu.suite"]
    assert suite._parsed(words[2:]).out == tmp_path.resolve() / "out"


@pytest.mark.parametrize(("printed", "expected"), [("9.0\\n", "90"), ("12.0\\n8.0\\n", "120"), ("No devices\\n", None)])
def test_the_architecture_is_the_first_devices(
    printed: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{printed}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert suite.architecture() == expected


def test_files_are_whole_while_it_runs_and_it_ends_when_it_is_told_to(place: Place, tmp_path: Path) -> None:
    """As it is stopped from outside: with what there is."""
    seen: list[Mapping[str, Any]] = []
    look = f"import json; print(json.load(open({str(tmp_path / 'run.json')!r}))['rows'][0]['status'])"
    stop = f"kill -TERM {os.getpid()}; sleep 60"
    steps = [[shell("first", f'{sys.executable} -c "{look}"')], [shell("stop", stop)], [shell("never", "true")]]
    before = {kind: suite.signal.getsignal(kind) for kind in (suite.signal.SIGTERM, suite.signal.SIGINT)}
    try:
        assert suite.run(place, steps, 60.0, time.time()) == 3
    finally:
        for kind, handler in before.items():
            suite.signal.signal(kind, handler)
    seen = json.loads((tmp_path / "run.json").read_text())["rows"]
    assert [row["status"] for row in seen] == [DONE, CUT, LEFT]
    assert "running" in (tmp_path / "log.txt").read_text()
    assert "stop" in table(seen)


# what steps are made of


def test_shards_are_all_tests_once_and_lines_are_whole(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('i', range(7))\n"
        "def test_it(i):\n"
        "    if i == 3: pytest.skip('not here')\n"
        "    assert i != 4, 'four'\n"
    )
    for number in range(2):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "bench.gpu.shards"]
        command += ["--shard", f"{number}/2", "--told", f"{tmp_path}/{number}.jsonl", "--rootdir", str(tmp_path)]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        subprocess.run([*command, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, check=False)
    lines = shards.read([tmp_path / f"{number}.jsonl" for number in range(3)])
    assert sorted(line["test"][-2] for line in lines) == list("0123456")
    said = {line["test"][-2]: line for line in lines}
    assert said["3"]["says"] == "Skipped: not here"
    assert "four" in said["4"]["says"]


def test_kernels_are_compiled_by_the_runtimes_own_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: kernels are not compiled")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with triton_compiled.recorded("gather rows") as launches:
        triton_compiled.CASES["gather rows"]()
    ((seconds, took),) = warm.warm(launches, 90, 1)
    assert seconds > 0
    assert isinstance(took, triton_compiled.Compiled), took
    assert took.spill_bytes == 0
    (made,) = tmp_path.rglob("*.ptx")
    assert ".target sm_90" in made.read_text()


@pytest.mark.slow
def test_the_whole_run_is_rehearsed(tmp_path: Path) -> None:
    pytest.importorskip("pybind11")
    found = gpu_rehearsal.rehearsed(tmp_path)
    assert found["ended"] == "all done", json.dumps(found, indent=1)
    expected = groups(Place(tmp_path, tmp_path, "90", 2, rehearse=True))
    assert [row["step"] for row in found["rows"]] == [step.name for group in expected for step in group]
    assert found["rows_took"].keys() == {case.name for case in CASES}
    measured = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["case"] for row in measured["rows"]] == list(found["rows_took"])
    assert measured["tests_before"]["passed"] > 10
    assert len(json.loads((tmp_path / "tuned.json").read_text())["architectures"]["rehearsed"]["tried"]) == len(
        SEARCHES
    )


def test_a_rehearsal_that_the_clock_ends_is_said_with_what_there_is(tmp_path: Path) -> None:
    """No time at all: every step is left out, and the files are there."""
    found = gpu_rehearsal.rehearsed(tmp_path, seconds=0.0)
    assert found["ended"] == "the clock ended it"
    assert {row["status"] for row in found["rows"]} == {LEFT}
    assert "left out" in table(found["rows"])
