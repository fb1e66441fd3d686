"""Tests in forked children of a process that has imported everything but fairkern.

Importing torch takes seconds, fairkern a fraction of one; and its rules register themselves on import, so that a change
has to be there before. A child imports fairkern with one module changed, runs the tests that reach the changed line and
stops at the first that fails.
"""

from __future__ import annotations

import ast
import os
import pickle
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import Any

import hypothesis
import pytest

from bench.mutation.mutants import Mutant

IMPORTS = ("scipy.stats", "scipy.optimize", "safetensors.torch", "rich", "torch.utils.flop_counter", "torchvision")
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly")
FORGIVING = 10  # times as long as the tests took without a change; more counts as noticed
LEAST_TIME = 20.0  # seconds that a child has at least
MOST_TIME = 60.0  # seconds of tests that a mutant is given, the quickest first
PASSED, NO_TESTS = int(pytest.ExitCode.OK), int(pytest.ExitCode.NO_TESTS_COLLECTED)


def prepare() -> None:
    """What every child needs, imported once; tests that draw their examples draw the same ones in each."""
    for name in IMPORTS:
        __import__(name)
    hypothesis.settings.register_profile("mutation", derandomize=True, database=None)
    hypothesis.settings.load_profile("mutation")
    loaded = [name for name in sys.modules if name.partition(".")[0] in ("fairkern", "tests")]
    assert not loaded, f"{loaded[0]} is imported already, so no child would see its change"


@dataclass
class Reach:
    """Which tests run a line: `lines[path][line]`, numbers of tests; those of import time are not there."""

    tests: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lines: dict[str, dict[int, set[int]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))

    def of(self, root: Path, mutant: Mutant) -> tuple[list[str], float]:
        """Tests that reach a mutant, the quickest first, up to `MOST_TIME`, and the seconds they take.

        What runs on import only (tables, defaults, decorators) is reached by all tests of the function that it belongs
        to, or of the file.
        """
        lines = self.lines.get(mutant.path, {})
        found = lines.get(mutant.line, set())
        if not found:
            first, last = _stretch(root / mutant.path, mutant.line)
            found = set().union(*(tests for line, tests in lines.items() if first <= line <= last))
        chosen, total = [], 0.0
        for test in sorted(found, key=lambda k: self.seconds[k]):
            total += self.seconds[test]
            if total > MOST_TIME:
                break
            chosen.append(self.tests[test])
        return chosen, total


def _stretch(path: Path, line: int) -> tuple[int, int]:
    """First and last line of the definition around a line that is run on import; of the whole file where there is none."""
    first, last = 1, sys.maxsize
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            begin = min(part.lineno for part in (node, *node.decorator_list))
            if begin <= line <= (node.end_lineno or begin) and node.body[0].lineno > line:
                first, last = begin, node.end_lineno or begin
    return first, last


def reach(root: Path, sources: Sequence[str], tests: Sequence[str]) -> Reach:
    """Runs all tests once, unchanged, with coverage by test. RuntimeError where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reach"
        status = in_child(lambda: _measured(root, sources, tests, file), seconds=3600, loud=True)
        if status != PASSED:
            raise RuntimeError(f"the tests fail without any change (status {status}); mutants would say nothing")
        return pickle.loads(file.read_bytes())


def _measured(root: Path, sources: Sequence[str], tests: Sequence[str], file: Path) -> int:
    import coverage

    tracer = coverage.Coverage(data_file=None, include=[str(root / s) for s in sources], config_file=False)
    tracer.set_option("run:core", "ctrace")  # the only one that tells tests apart on every Python
    made = Reach()
    numbers: dict[str, int] = {}

    class Watch:
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
            numbers[item.nodeid] = len(made.tests)
            made.tests.append(item.nodeid)
            tracer.switch_context(item.nodeid)
            begin = time.perf_counter()
            result = yield
            made.seconds.append(time.perf_counter() - begin)
            tracer.switch_context("")
            return result

    tracer.start()
    status = run_tests(root, tests, plugins=[Watch()])
    tracer.stop()
    data = tracer.get_data()
    for path in data.measured_files():
        relative = str(Path(path).relative_to(root))
        for line, contexts in data.contexts_by_lineno(path).items():
            made.lines[relative][line] |= {numbers[c] for c in contexts if c}
    plain = Reach(made.tests, made.seconds, {path: dict(lines) for path, lines in made.lines.items()})
    file.write_bytes(pickle.dumps(plain))
    return status


def noticed(root: Path, mutant: Mutant, tests: Sequence[str], seconds: float) -> str:
    """"killed", "too long" or "survived": what these tests, which take so many seconds, make of a mutant."""
    if not tests:
        return "survived"
    status = in_child(lambda: _changed(root, mutant, tests), max(LEAST_TIME, FORGIVING * seconds))
    if status == NO_TESTS:
        raise RuntimeError(f"none of the chosen tests was found: {tests[:3]}")
    return "too long" if status is None else "survived" if status == PASSED else "killed"


def _changed(root: Path, mutant: Mutant, tests: Sequence[str]) -> int:
    code = compile(mutant.tree(root), str(root / mutant.path), "exec", dont_inherit=True)
    sys.meta_path.insert(0, _Finder(mutant.path, root, code))
    return run_tests(root, tests)


class _Finder(MetaPathFinder):
    """Finds one module, and gives it other code."""

    def __init__(self, path: str, root: Path, code: CodeType) -> None:
        self.name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self.path, self.code = str(root / path), code

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        return spec_from_file_location(fullname, self.path, loader=_Loader(fullname, self.path, self.code))


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self.code = code

    def get_code(self, fullname: str) -> CodeType:
        return self.code


def run_tests(root: Path, tests: Iterable[str], plugins: Sequence[object] = ()) -> int:
    os.chdir(root)
    sys.path.insert(0, str(root))
    return int(pytest.main([*OPTIONS, "--rootdir", str(root), *tests], plugins=list(plugins)))


def in_child(work: Callable[[], int], seconds: float, loud: bool = False) -> int | None:
    """The status that the work ends with in a fork of this process: negative by a signal, None where it is stopped."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.setsid()  # so that what the tests start is stopped with them
            if not loud:
                quiet = os.open(os.devnull, os.O_WRONLY)
                os.dup2(quiet, 1)
                os.dup2(quiet, 2)
            status = work()
        finally:
            os._exit(status)
    end, pause = time.monotonic() + seconds, 0.005
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
