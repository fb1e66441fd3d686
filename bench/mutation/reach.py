"""Which tests run a line, and how long they take."""

from __future__ import annotations

import ast
import pickle
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import coverage
import pytest

from bench.mutation.mutants import Mutant

QUICK = 0.02  # seconds
MOST_TIME = 5.0  # seconds of tests that a mutant is given


@dataclass(frozen=True)
class Reach:
    """`lines[path][line]`: numbers of the tests that run it; none of a line that only importing runs."""

    root: Path
    tests: Sequence[str]  # node ids
    seconds: Sequence[float]  # of processor time
    lines: Mapping[str, Mapping[int, set[int]]]

    def runs(self, mutant: Mutant) -> bool:
        """Whether tests run the line in a function: exchanging that one is enough."""
        return mutant.function is not None and bool(self.lines.get(mutant.path, {}).get(mutant.line))

    @cached_property
    def _idle(self) -> set[int]:
        """Tests that run no line."""
        every = (tests for lines in self.lines.values() for tests in lines.values())
        return set(range(len(self.tests))).difference(*every)

    def of(self, mutant: Mutant) -> tuple[list[str], float]:
        """Tests that reach a mutant, up to `MOST_TIME`, and the seconds that they take.

        First all quick ones, then the quickest of every test function, the second of each, and so on. What runs on
        import only (tables, defaults, decorators) is reached by all tests of the function that it belongs to, or of the
        file where no test runs that; and by tests that run none of these files, so that they can look at nothing else.
        """
        lines = self.lines.get(mutant.path, {})
        found = lines.get(mutant.line, set())
        if mutant.function is None or (mutant.line in lines and not found):
            first, last = _stretch(self.root / mutant.path, mutant.line)
            found = set().union(*(tests for line, tests in lines.items() if first <= line <= last))
            found = (found or set().union(*lines.values())) | self._idle
        chosen, total = [], 0.0
        for test in self._varied(found):
            if chosen and total + self.seconds[test] > MOST_TIME:
                break
            total += self.seconds[test]
            chosen.append(self.tests[test])
        return chosen, total

    def _varied(self, tests: set[int]) -> list[int]:
        seen: Counter[str] = Counter()
        turns = []
        for test in sorted(tests, key=lambda k: self.seconds[k]):
            function = self.tests[test].partition("[")[0]
            seen[function] += 1
            turns.append((seen[function] if self.seconds[test] > QUICK else 0, self.seconds[test], test))
        return [test for _, _, test in sorted(turns)]


def _stretch(path: Path, line: int) -> tuple[int, int]:
    """First and last line of the innermost definition around a line, decorators included; without one, of the file."""
    first, last = 1, sys.maxsize
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            begin = min(part.lineno for part in (node, *node.decorator_list))
            if first <= begin <= line <= (node.end_lineno or begin):
                first, last = begin, node.end_lineno or begin
    return first, last


def tracer(root: Path, sources: Sequence[str]) -> coverage.Coverage:
    """Lines of these files by test; to be started before they are imported."""
    made = coverage.Coverage(data_file=None, include=[str(root / source) for source in sources], config_file=False)
    made.set_option("run:core", "ctrace")  # the one that tells tests apart on every Python
    return made


def measured(root: Path, started: coverage.Coverage, items: Sequence[pytest.Item], file: Path) -> int:
    """Runs all tests, unchanged, and leaves a pickled `Reach`; the status of the run."""
    seconds = []
    for k, item in enumerate(items):
        started.switch_context(str(k))
        begin = time.process_time()
        following = items[k + 1] if k + 1 < len(items) else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        seconds.append(time.process_time() - begin)
        if item.session.testsfailed:
            print(f"fails without any change: {item.nodeid}", file=sys.stderr)
            return int(pytest.ExitCode.TESTS_FAILED)
    started.stop()
    data = started.get_data()
    lines = {
        str(Path(path).relative_to(root)): {
            line: {int(k) for k in contexts if k} for line, contexts in data.contexts_by_lineno(path).items()
        }
        for path in data.measured_files()
    }
    file.write_bytes(pickle.dumps(Reach(root, [item.nodeid for item in items], seconds, lines)))
    return 0
