"""Pages of documentation as programs: every block of a page runs, in order, in one namespace and one temporary folder.

    ```python               runs
    ```python title="a.py"  is written to the file a.py, for what follows to import or to run
    ```console              lines that begin with `$ fairkern` or `$ python` run; a `\\` at the end goes on
    ```text, bash, …        is shown

Comments in the lines before a block say more of it:

    <!-- needs: onnx, onnxruntime -->   left out where one of these is not installed; as a page's first line: the page
    <!-- raises: InputError -->         this error ends the block
    <!-- exits: 2 -->                   every command of the block ends with this code
    <!-- prints -->                     before text: all that the last block that ran has printed, or what the error of
                                        `raises` says; before console: what is shown below a command is all that it
                                        prints. `...` stands for anything, and white space does not count
    <!-- prints: like -->               the same, but numbers may be others (times, accuracies); percentages, as 97.5%,
                                        by twenty-five points
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import random
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairkern.cli import main

BLOCK = re.compile(
    r"(?P<notes>(?:^ *<!--[^\n]*-->\n\s*)*)^(?P<indent> *)```(?P<language>\w+)(?P<options>[^\n]*)\n"
    r"(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
NOTE = re.compile(r"<!-- (\w+)(?:: ([^\n]*?))? -->")
TITLE = re.compile(r'title="([^"]+)"')
NUMBER = r"[+−-]?\d[\d,.]*(?:e[+-]?\d+)?%?"
KNOWN = {"needs", "raises", "exits", "prints"}


@dataclass(frozen=True)
class Block:
    """A fenced block: `line` is that of its first line of code, from 1."""

    line: int
    language: str
    code: str
    title: str | None = None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        return missing(self.notes.get("needs", ""))


def missing(needs: str) -> list[str]:
    """Of some packages, `a, b`, those that are not installed."""
    return [name for name in re.findall(r"[\w.]+", needs) if importlib.util.find_spec(name.partition(".")[0]) is None]


def notes_of(text: str) -> dict[str, str]:
    return {name: given for name, given in NOTE.findall(text) if name in KNOWN}


def blocks(text: str) -> list[Block]:
    found = []
    for match in BLOCK.finditer(text):
        title = TITLE.search(match["options"])
        line = text.count("\n", 0, match.start("code")) + 1
        code = textwrap.dedent(match["code"])
        found.append(Block(line, match["language"], code, title and title[1], notes_of(match["notes"])))
    return found


def needs_of(text: str) -> str:
    """What a page needs as a whole: its first line says it."""
    return notes_of(text.split("\n", 1)[0]).get("needs", "")


class Page:
    """A page that runs in the current folder. `left_out`: what was not run, and why."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.blocks = path, blocks(text)
        self.left_out: list[str] = []
        self.printed = ""
        self.names: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}

    def run(self) -> None:
        skipped = False
        for block in self.blocks:
            where = f"{self.path.name}:{block.line}"
            if block.missing:
                self.left_out.append(f"{where} needs {', '.join(block.missing)}")
                skipped = True
            elif block.title is not None:
                Path(block.title).write_text(block.code)
                sys.modules.pop(Path(block.title).stem, None)
                importlib.invalidate_caches()
            elif block.language == "python":
                self._python(block, where)
                skipped = False
            elif block.language == "console":
                self._console(block, where)
                skipped = False
            elif "prints" in block.notes and not skipped:
                compare(block.code, self.printed, where, block.notes["prints"] == "like")

    def _python(self, block: Block, where: str) -> None:
        # as many empty lines before it as there are lines above: tracebacks show the page
        code = compile("\n" * (block.line - 1) + block.code, str(self.path), "exec")
        wanted = block.notes.get("raises")
        with captured() as said:
            if wanted is None:
                exec(code, self.names)
            else:
                self._raises(code, wanted, where)
        self.printed = said.getvalue()

    def _raises(self, code: Any, wanted: str, where: str) -> None:
        try:
            exec(code, self.names)
        except Exception as error:
            if type(error).__name__ != wanted:
                raise
            print(error)  # noqa: T201
        else:
            raise AssertionError(f"{where}: no {wanted} was raised")

    def _console(self, block: Block, where: str) -> None:
        for command, shown in commands(block.code, where):
            with captured() as said:
                code = run(command)
            self.printed = said.getvalue()
            wanted = int(block.notes.get("exits", 0))
            assert code == wanted, f"{where}: `{' '.join(command)}` ended with {code}, not {wanted}:\n{self.printed}"
            if "prints" in block.notes:
                compare(shown, self.printed, where, block.notes["prints"] == "like")


def commands(code: str, where: str) -> Iterator[tuple[list[str], str]]:
    """The commands of a console block, each with the lines that are shown below it."""
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        line, _, shown = part.replace("\\\n", " ").partition("\n")
        command = shlex.split(line, comments=True)
        assert command[0] in {"fairkern", "python"}, f"{where}: `{line}` cannot be run here: make the block bash"
        yield command, shown


def run(command: list[str]) -> int:
    """What the command line ends with, in this process; a script in one of its own."""
    if command[0] == "fairkern":
        return main(command[1:])
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, sep="", end="")  # noqa: T201
    return done.returncode


@contextlib.contextmanager
def captured() -> Iterator[io.StringIO]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said


def compare(shown: str, printed: str, where: str, like: bool) -> None:
    """Raises AssertionError where `printed` is not what is shown."""
    parts, wanted = [], []
    for piece in re.split(rf"(\.\.\.|{NUMBER})" if like else r"(\.\.\.)", shown):
        if piece == "...":
            parts.append(".*")
        elif like and re.fullmatch(NUMBER, piece):
            parts.append(f"({NUMBER})")
            wanted.append(piece)
        else:
            parts.append(r"\s*".join(re.escape(word) for word in re.split(r"\s+", piece)))
    found = re.fullmatch("".join(parts).removeprefix(r"\s*"), printed.strip() + "\n", re.DOTALL)
    apart = found and [
        (a, b) for a, b in zip(wanted, found.groups(), strict=True) if a.endswith("%") and abs(share(a) - share(b)) > 25
    ]
    if found is None or apart:
        raise AssertionError(f"{where}: shown is\n{shown}\nand printed was\n{printed}\n{apart or ''}")


def share(text: str) -> float:
    return float(text.rstrip("%").replace("−", "-"))


@contextlib.contextmanager
def room(folder: Path) -> Iterator[None]:
    """A folder to run a page in, with a seed and one thread; afterwards the process is what it was."""
    modules, path, threads = set(sys.modules), list(sys.path), torch.get_num_threads()
    sys.path.insert(0, str(folder))
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (pages may draw from it)
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]
