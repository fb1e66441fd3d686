"""Terminals, pipes and signals: what is drawn, what is printed, what is left behind."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fairkern as fk
from fairkern.cli import commands, main
from fairkern.cli.parser import command_line

LOSS = "torch.nn:CrossEntropyLoss"
ROOTED = {**os.environ, "PYTHONPATH": str(Path(fk.__file__).parents[1])}  # for processes that start elsewhere
PRUNE = ["prune", "parts:model", "parts:loader", LOSS, "--keep-params", "50%", "--out", "small"]


def subcommands() -> dict[str, Any]:
    (found,) = [action for action in command_line()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found.choices)


def test_help_documents_every_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert main([]) == 2
    assert capsys.readouterr().out == said
    for code in (0, 1, 2, 130, 141, 143):
        assert f"\n  {code} " in said
    for name in subcommands():
        assert re.search(rf"^    {name}\s", said, re.MULTILINE)


@pytest.mark.parametrize("name", subcommands())
def test_a_misspelt_option_of_any_command_says_what_was_meant(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in subcommands()[name]._option_string_actions:
        if option.startswith("--"):
            assert main([name, f"{option}x"]) == 2
            assert capsys.readouterr().err.startswith(
                f"fairkern: error: there is no option {option}x; did you mean {option}? (fairkern {name} --help)"
            )


@pytest.mark.parametrize("name", subcommands())
def test_every_command_has_json_quiet_and_debug(name: str) -> None:
    assert {"--json", "--quiet", "--debug"} <= subcommands()[name]._option_string_actions.keys()


def test_json_is_one_object_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    score = ["score", "parts:model", "parts:loader", LOSS, "--gram", "--out", "s"]
    sweep = ["sweep", "parts:model", "parts:loader", LOSS, "--budgets", "0.5", "--methods", "l1"]
    for words in (
        ["info"],
        ["trace", "parts:model", "parts:inputs"],
        score,
        ["plan", "s", "--keep-params", "0.5", "--out", "p.json"],
        ["apply", "parts:model", "p.json", "--out", "cut"],
        PRUNE,
        ["report", "small"],
        ["report", "parts:model", "small", "parts:inputs"],
        ["latency", "parts:model", "parts:inputs", "--out", "l.json"],
        [*sweep, "--evaluate", "parts:evaluate"],
        ["completion", "bash"],
    ):
        assert main([*words, "--json"]) == 0, words
        out, err = capsys.readouterr()
        assert json.loads(out)["command"] == words[0]
        assert main([*words, "--json", "--quiet"]) == 0
        assert json.loads(capsys.readouterr().out)
        assert "{" not in err
    plan = json.loads(Path("p.json").read_text())
    assert main(["plan", "s", "--keep-params", "0.5", "--out", "p.json", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["result"] == plan["result"]


def test_what_users_print_goes_to_the_other_stream(capsys: pytest.CaptureFixture[str]) -> None:
    Path("noisy.py").write_text("from parts import *\n\n\ndef told(model):\n    print('mine')\n    return 1.0\n")
    assert main([*PRUNE, "--evaluate", "noisy:told", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["command"] == "prune"
    assert "mine" in err


@pytest.mark.parametrize(
    "words",
    [["plan", "absent", "--tod", "0.1", "--out", "p"], ["plan", "absent", "--tod", "x", "--out", "p"], ["pruen"]],
    ids=" ".join,
)
def test_an_error_is_an_object_too(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"fairkern: error: {json.loads(out)['error']}")


def test_debug_shows_where_an_error_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "absent", "--tod", "0.1", "--out", "p"]
    assert main(words) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main([*words, "--debug"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("fairkern: error: there is no file absent\n")


def test_functions_may_be_named_themselves(here: Path) -> None:
    assert main(["score", "parts:model", "parts:loader", LOSS, "--gram", "--out", "a", "--quiet"]) == 0
    itself = ["score", "parts:model", "parts:loader", "torch.nn.functional:cross_entropy", "--gram", "--out", "b"]
    assert main([*itself, "--quiet"]) == 0
    assert fk.Scores.load("a").signals["residual"][0].tolist() == fk.Scores.load("b").signals["residual"][0].tolist()


def test_a_device_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PRUNE, "--device", "cpu", "--quiet"]) == 0
    assert main(["trace", "parts:model", "parts:inputs", "--device", "cuda:99"]) == 2
    assert "--device cuda:99 cannot be used here (" in capsys.readouterr().err


# signals


def struck(monkeypatch: pytest.MonkeyPatch, at: str, how: Callable[[], object]) -> None:
    """`how` is called as soon as a command says that it is `at` this stage."""

    def told(done: int, total: int | None, stage: str) -> None:
        if stage == at:
            how()

    monkeypatch.setattr(commands, "progress", lambda arguments: told)


def interrupt() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


STAGES = ("evaluating", "tracing", "scoring", "ordering units", "planning", "cutting", "compensating")
STAGES += ("measuring latency",)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("how", "code", "said"), [(interrupt, 130, "interrupted"), (terminate, 143, "terminated")])
def test_a_signal_at_any_stage_leaves_nothing(
    stage: str,
    how: Callable[[], object],
    code: int,
    said: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    struck(monkeypatch, stage, how)
    before = signal.getsignal(signal.SIGTERM)
    assert main([*PRUNE, "--out", "deep/small", "--evaluate", "parts:evaluate"]) == code
    assert capsys.readouterr() == ("", f"fairkern: {said}\n")
    assert {path.name for path in here.iterdir()} <= {"parts.py", "__pycache__"}
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("there", [False, True])
def test_an_interrupt_between_two_files_leaves_all_old_or_none(
    there: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        assert main([*PRUNE, "--quiet"]) == 0
    before = {path.name: path.read_bytes() for path in here.glob("small/*")}
    assert bool(before) == there
    with monkeypatch.context() as patch:
        patch.setattr(fk.Scores, "save", lambda *_: interrupt())
        assert main([*PRUNE, "--keep-params", "70%", "--quiet"]) == 130
    assert {path.name: path.read_bytes() for path in here.glob("small/*")} == before
    assert {path.name for path in here.iterdir()} <= {"parts.py", "__pycache__", *(["small"] if there else [])}
    assert main([*PRUNE, "--keep-params", "70%", "--quiet"]) == 0
    assert {path.name for path in here.glob("small/*")} >= {"model.safetensors", "plan.json", "report.json"}


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fk.Scores, "save", full)
    assert main([*PRUNE, "--quiet"]) == 2
    assert capsys.readouterr().err == "fairkern: error: cannot write small: no space left on device\n"
    assert not Path("small").exists()


# pipes


def test_nobody_reads_any_more(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["info"], ["--help"], [], ["trace", "parts:model", "parts:inputs"], ["info", "--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as closed:
            monkeypatch.setattr(sys, "stdout", closed)
            assert main(words) == 141
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(shutil.which("bash") is None, reason="a shell")
def test_head_takes_one_line_and_nobody_complains(here: Path) -> None:
    command = f"{sys.executable} -m fairkern info | head -1; echo ${{PIPESTATUS[0]}}"
    path = os.pathsep.join([str(Path(fk.__file__).parents[1]), str(here)])
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.strip().splitlines()[-1] in ("141", "0")  # 0 where all of it fitted into the pipe


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is full")
def test_output_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["completion", "bash"]) == 2
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    assert "cannot write to standard output: No space left on device" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is full")
@pytest.mark.parametrize("full", ["stdout", "stdout stderr"])
@pytest.mark.parametrize("words", ["--version", "info --json", "plan absent --tod 0.1 --out p --json"])
def test_a_full_device_is_one_line_whatever_is_printed(
    words: str, full: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.ExitStack() as closed:  # with nothing left to write, of which Python would complain as it ends
        for name in full.split():
            monkeypatch.setattr(sys, name, closed.enter_context(open("/dev/full", "w")))
        assert main(words.split()) == 2
        monkeypatch.undo()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == (1 if full == "stdout" else 0)
    assert err.startswith("fairkern: error: "[: len(err)])


def test_the_version_is_there_before_torch(here: Path) -> None:
    script = "import sys; from fairkern.cli import main; code = main(['--version']); "
    script += "print(code, sorted({'torch', 'numpy', 'scipy', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=here, env=ROOTED, capture_output=True, text=True)
    assert done.stdout == f"fairkern {fk.__version__}\n0 []\n", done.stderr


def test_an_interrupt_while_torch_is_imported(here: Path) -> None:
    """A torch that never comes to its end stands in for one that takes seconds."""
    (here / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    environment = {**ROOTED, "PYTHONPATH": os.pathsep.join([str(here), ROOTED["PYTHONPATH"]])}
    child = subprocess.Popen(
        [sys.executable, "-m", "fairkern", "info"],
        cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "importing\n"
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=30)
    finally:
        child.kill()
    assert (child.returncode, said) == (130, "fairkern: interrupted\n")


def test_of_several_processes_one_speaks_of_misspelt_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in ((0, 1), (1, 0)):
        monkeypatch.setenv("RANK", str(rank))
        assert main(["prune", "--keep-parms", "0.5", "--json"]) == 2
        out, err = capsys.readouterr()
        assert out.count("\n") == err.count("\n") == lines


# terminals


class Terminal:
    """Standard error as a terminal; `text` is what was drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._master, slave = pty.openpty()
        self._stream, self._parts = os.fdopen(slave, "w"), io.BytesIO()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stderr", self._stream)

    def _read(self) -> None:
        try:
            while part := os.read(self._master, 4096):
                self._parts.write(part)
        except OSError:  # closed at the other end
            pass

    @property
    def text(self) -> str:
        self._stream.close()
        self._reader.join(5)
        return self._parts.getvalue().decode()


def test_bars_with_the_time_left_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)
    assert main(PRUNE) == 0
    drawn = terminal.text
    for stage in ("tracing", "scoring", "ordering units", "compensating", "measuring latency"):
        assert stage in drawn
        assert f"{stage} …" not in drawn
    assert "\x1b[" in drawn
    assert "0:00:00" in drawn
    assert "written to small" in drawn


def test_nothing_is_drawn_where_it_is_to_be_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)
    assert main([*PRUNE, "--quiet"]) == 0
    assert terminal.text == ""


def test_lines_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(PRUNE) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    stages = [line.removesuffix(" …") for line in err.splitlines() if line.endswith(" …")]
    assert stages == [
        "tracing",
        "scoring",
        "ordering units",
        "planning",
        "cutting",
        "compensating",
        "measuring latency",
    ]


def test_lines_say_how_long_it_takes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairkern.cli import output

    now = iter([100.0, 110.0, 131.0, 132.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(now))
    told = output.lines()
    for done in (0, 1, 3, 4):
        told(done, 12, "scoring")
    assert capsys.readouterr().err == "scoring …\nscoring: 3 of 12, 93 s left\n"


# completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("prune", "sweep", "keep-flops", "no-verify"):
        assert word in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="a shell")
def test_bash_completes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    (here / "complete.bash").write_text(capsys.readouterr().out)
    script = """
        source complete.bash
        function asked() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _shtab_fairkern; echo "${COMPREPLY[*]}"
        }
        asked fairkern pr; asked fairkern plan --keep-f; asked fairkern apply m p --compensate seq
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["prune", "--keep-flops", "sequential"], done.stderr


def test_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr().err.endswith("pip install shtab\n")
