"""A pytest plugin (`-p bench.gpu.shards`): one of several processes' share of the tests, a line per test that is done.

`--shard 2/12`: every twelfth test, from the third on, so that a table's long rows are dealt out. `--every 10`: a
sample, every tenth before they are dealt. `--told FILE`: JSON lines, whole at every moment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

KEPT = 4000  # characters of what a failing test says


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="0/1", metavar="I/N", help="the tests of process I of N")
    parser.addoption("--every", type=int, default=1, metavar="N", help="a sample: every Nth test")
    parser.addoption("--told", metavar="FILE", help="a line of JSON for every test that is done")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number, count = (int(word) for word in config.getoption("--shard").split("/"))
    sample = items[:: config.getoption("--every")]
    mine = sample[number::count]
    chosen = set(mine)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = mine


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--told"):
        config.pluginmanager.register(Told(Path(path)), "told")


class Told:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":  # of setup and teardown what is not as it should be
            line: dict[str, Any] = {
                "test": report.nodeid,
                "outcome": report.outcome,
                "seconds": round(report.duration, 3),
            }
            if report.outcome == "failed":
                line["says"] = report.longreprtext[-KEPT:]
            elif report.outcome == "skipped":
                line["says"] = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
            self._file.write(json.dumps(line) + "\n")


def read(paths: list[Path]) -> list[dict[str, Any]]:
    """All that was told so far; a line that is being written is left out."""
    lines = [line for path in paths if path.exists() for line in path.read_text().split("\n")[:-1]]
    return [json.loads(line) for line in lines]
