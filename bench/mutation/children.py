"""Tests in forked children: what every child needs is imported once, and the tests are collected once.

A change inside a function is made in a fork of a process that has collected all tests: the function that is registered,
imported or bound anywhere is one object, and is given other code. What runs on import (tables, defaults, decorators) is
changed before fairkern is imported, in a fork of a process that has imported everything but fairkern. A child runs the
tests that reach the changed line, and ends at the first that fails.
"""

from __future__ import annotations

import gc
import inspect
import math
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import hypothesis
import pytest

from bench.mutation.mutants import Mutant
from bench.mutation.reach import measured, tracer

IMPORTS = ("scipy.stats", "scipy.optimize", "rich", "torch.utils.flop_counter", "torchvision")
OPTIONS = ("-x", "-q", "-s", "--tb=no", "--no-header", "-W", "ignore",
           *(word for name in ("cacheprovider", "unraisableexception", "threadexception")
             for word in ("-p", f"no:{name}")))  # fmt: skip
FORGIVING = 5  # times the processor time that the tests took without a change; more counts as noticed
LEAST_TIME = 5  # seconds of processor time that a child has at least
WAITING = 20  # times as long by the clock: for what waits for ever
PASSED, NO_TESTS = int(pytest.ExitCode.OK), int(pytest.ExitCode.NO_TESTS_COLLECTED)
CRASHED = 70
SURVIVED = "survived"

Fates = dict[Mutant, str]
Told = Callable[[Mutant, str, int], None]
Functions = dict[tuple[str, int], list[FunctionType]]  # by file and first line


def prepare() -> None:
    """What every child needs, imported once; tests that draw their examples draw the same ones in each."""
    for name in IMPORTS:
        __import__(name)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    hypothesis.settings.register_profile("mutation", derandomize=True, database=None)
    hypothesis.settings.load_profile("mutation")
    loaded = [name for name in sys.modules if name.partition(".")[0] in ("fairkern", "tests")]
    assert not loaded, f"{loaded[0]} is imported already, so no child would see its change"


def judged(root: Path, tests: Sequence[str], chosen: Sequence[Mutant], told: Told) -> Fates:
    """Of every mutant "killed", "too long" or "survived"; `told` hears it, with the number of tests that it was given.

    RuntimeError where a test fails without any change.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found"
        status = in_child(_Loop(root, tests, chosen, file, told).start)
        if status != PASSED or not file.exists():
            raise RuntimeError(f"the tests fail without any change (status {status}); mutants would say nothing")
        found, fates = pickle.loads(file.read_bytes())
    for mutant in chosen:
        if mutant not in fates:
            own, seconds = found.of(mutant)
            fates[mutant] = _fate(partial(_imported, root, mutant, own), seconds) if own else SURVIVED
            told(mutant, fates[mutant], len(own))
    return fates


class _Loop:
    """Takes the place of pytest's loop over the tests that it has collected; judges what importing does not run."""

    def __init__(self, root: Path, tests: Sequence[str], chosen: Sequence[Mutant], file: Path, told: Told) -> None:
        self.root, self.tests, self.chosen, self.file, self.told = root, tests, chosen, file, told
        self.paths = sorted({mutant.path for mutant in chosen})
        self.tracer = tracer(root, self.paths)

    def start(self) -> int:
        self.tracer.start()
        return _pytest(self.root, self.tests, [self])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        functions = _functions({str(self.root / path) for path in self.paths})
        gc.freeze()  # so that children share these pages
        if in_child(lambda: measured(self.root, self.tracer, list(items.values()), self.file)) != PASSED:
            return True
        self.tracer.stop()
        found, fates = pickle.loads(self.file.read_bytes()), {}
        for mutant in self.chosen:
            if found.runs(mutant):
                names, seconds = found.of(mutant)
                own = [items[name] for name in names]
                fates[mutant] = _fate(partial(_exchanged, self.root, mutant, functions, own), seconds)
                self.told(mutant, fates[mutant], len(own))
        self.file.write_bytes(pickle.dumps((found, fates)))
        return True


def _functions(files: set[str]) -> Functions:
    found: Functions = defaultdict(list)
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename in files:
            found[thing.__code__.co_filename, thing.__code__.co_firstlineno].append(thing)
    return found


def _exchanged(root: Path, mutant: Mutant, functions: Functions, items: Sequence[pytest.Item]) -> int:
    """Gives the function that a mutant changes its new code, and runs tests until one fails."""
    path = str(root / mutant.path)
    code = next(c for c in _codes(mutant.compiled(root)) if c.co_firstlineno == mutant.function)
    for function in functions[path, mutant.function or 0]:
        if function.__code__.co_name == code.co_name:
            function.__code__ = code
    for k, item in enumerate(items):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=items[k + 1] if k + 1 < len(items) else None)
        if item.session.testsfailed:
            return int(pytest.ExitCode.TESTS_FAILED)
    return PASSED


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Of a module's functions and methods, and of what is in them: outer ones first."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & inspect.CO_OPTIMIZED:  # a function, not the body of a class
                yield constant
            yield from _codes(constant)


def _imported(root: Path, mutant: Mutant, tests: Sequence[str]) -> int:
    sys.meta_path.insert(0, _Finder(mutant.path, root, mutant.compiled(root)))
    return _pytest(root, tests)


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


def _pytest(root: Path, tests: Sequence[str], plugins: Sequence[object] = ()) -> int:
    os.chdir(root)
    sys.path.insert(0, str(root))
    return int(pytest.main([*OPTIONS, "--rootdir", str(root), *tests], plugins=list(plugins)))


def _fate(work: Callable[[], int], seconds: float) -> str:
    status = in_child(work, round(LEAST_TIME + FORGIVING * seconds))
    if status == NO_TESTS:
        raise RuntimeError("none of the chosen tests was found")
    return "too long" if status is None else SURVIVED if status == PASSED else "killed"


def in_child(work: Callable[[], int], limit: int | None = None) -> int | None:
    """The status that the work ends with in a fork of this process, negative by a signal.

    `limit`: seconds of processor time, and `WAITING` times that by the clock; such a child says nothing. None where it
    is stopped.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = CRASHED
        try:
            if limit is not None:
                os.setsid()  # so that what the tests start is stopped with them
                resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
                quiet = os.open(os.devnull, os.O_WRONLY)
                os.dup2(quiet, 1)
                os.dup2(quiet, 2)
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    end, pause = time.monotonic() + (limit * WAITING if limit is not None else math.inf), 0.002
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            ended = os.waitstatus_to_exitcode(status)
            return None if ended in (-signal.SIGXCPU, -signal.SIGKILL) else ended
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
