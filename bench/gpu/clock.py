"""Steps under one clock: each has a budget, what is not done by then is ended, and what there is stands in a file.

Steps of a group run beside each other, groups in turn. A group may take what is left of the clock less the budgets of
those after it: what one saves the next may use, and none takes what another was promised.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

DONE, WRONG, CUT, LEFT = "done", "wrong", "cut short", "left out"
EVERY = 0.1  # seconds between looks at the processes
GRACE = 2.0  # seconds between asking a process to end and ending it


@dataclass(frozen=True)
class Step:
    """Processes that run beside each other, and how long they may.

    `UNTIL` in a command stands for the second (Unix) at which the step is ended. `judge` looks at what they left, told
    whether they were ended by the clock: what is wrong ("" if nothing is), and what is worth keeping.
    """

    name: str
    what: str
    predicted: float  # seconds on the machine that it is meant for
    budget: float  # seconds that it is promised
    commands: Sequence[Sequence[str]]
    env: Mapping[str, str] = field(default_factory=dict)
    judge: Callable[[bool], tuple[str, Mapping[str, Any]]] = lambda cut: ("", {})


@dataclass
class Clock:
    """`seconds` from `began` on (Unix seconds). `told` is called with all rows whenever one has changed."""

    seconds: float
    began: float
    logs: Path  # a folder: what each process prints
    told: Callable[[list[dict[str, Any]]], None]
    rows: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False  # from outside: nothing more is started

    @property
    def left(self) -> float:
        return 0.0 if self.ended else self.began + self.seconds - time.time()

    def run(self, groups: Sequence[Sequence[Step]]) -> list[dict[str, Any]]:
        """All groups in turn; a row per step."""
        later = [max(step.budget for step in group) for group in groups]
        self.rows += [_row(step) for group in groups for step in group]
        self.told(self.rows)
        for number, group in enumerate(groups):
            self._group(group, self.left - sum(later[number + 1 :]))
        return self.rows

    def _group(self, group: Sequence[Step], seconds: float) -> None:
        rows = {step.name: next(row for row in self.rows if row["step"] == step.name) for step in group}
        if seconds <= 0:
            return  # they stay left out
        until = time.time() + seconds
        with ExitStack() as stack:
            running = {step.name: self._start(step, until, stack) for step in group}
            began = time.time()
            for row in rows.values():
                row |= {"status": "running", "began_s": round(began - self.began, 1)}
            self.told(self.rows)
            while running:
                time.sleep(EVERY)
                over = self.ended or time.time() >= until
                for step in group:
                    processes = running.get(step.name)
                    if processes is None or (not over and any(process.poll() is None for process in processes)):
                        continue
                    cut = [process for process in processes if process.poll() is None]
                    end(cut)
                    del running[step.name]
                    rows[step.name] |= _judged(step, processes, bool(cut), time.time() - began)
                    self.told(self.rows)

    def _start(self, step: Step, until: float, stack: ExitStack) -> list[subprocess.Popen[str]]:
        started = []
        for number, command in enumerate(step.commands):
            log: IO[str] = stack.enter_context((self.logs / f"{step.name}-{number}.txt").open("w"))
            words = [word.replace("UNTIL", str(int(until))) for word in command]
            print("$", *words, file=log, flush=True)
            env = {**os.environ, **step.env}
            how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            started.append(subprocess.Popen(words, env=env, text=True, start_new_session=True, **how))
        return started


def _row(step: Step) -> dict[str, Any]:
    return {
        "step": step.name,
        "what": step.what,
        "processes": len(step.commands),
        "predicted_s": step.predicted,
        "budget_s": step.budget,
        "status": LEFT,
    }


def _judged(step: Step, processes: Sequence[subprocess.Popen[str]], cut: bool, seconds: float) -> dict[str, Any]:
    codes = [process.returncode for process in processes]
    wrong, found = step.judge(cut)
    if not cut and not wrong and any(codes):
        wrong = f"processes ended with {sorted(set(codes))}"
    status = WRONG if wrong else CUT if cut else DONE
    return {"status": status, "seconds": round(seconds, 1), **({"wrong": wrong} if wrong else {}), **found}


def end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Them, and all that they started."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None or kind == signal.SIGKILL:
                try:
                    os.killpg(process.pid, kind)
                except ProcessLookupError:
                    continue
        deadline = time.time() + GRACE
        while kind == signal.SIGTERM and time.time() < deadline and any(p.poll() is None for p in processes):
            time.sleep(EVERY / 2)
    for process in processes:
        process.wait()


def code_of(rows: Sequence[Mapping[str, Any]]) -> int:
    """0: all done, 1: something is wrong, 3: not all was done, and nothing is wrong with what was."""
    statuses = {row["status"] for row in rows}
    return 1 if WRONG in statuses else 3 if statuses != {DONE} else 0


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{'step':<12}{'predicted':>10}{'budget':>8}{'took':>8}  what came of it"]
    for row in rows:
        took = "" if "seconds" not in row else f"{row['seconds']:.1f}"
        said = " · ".join(str(part) for part in (row["status"], row.get("said", ""), row.get("wrong", "")) if part)
        lines.append(f"{row['step']:<12}{row['predicted_s']:>10g}{row['budget_s']:>8g}{took:>8}  {said}")
    return "\n".join(re.sub(r"\s+$", "", line) for line in lines)
