"""Two and three processes that hold a model in shards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ranks import sharded_cases
from tests.ranks.processes import Processes


class Company:
    """Processes that run cases. Once one has failed they may wait for each other for ever."""

    def __init__(self, processes: Processes) -> None:
        self.processes, self.failed = processes, ""

    def check(self, case: str) -> None:
        assert not self.failed, f"{self.failed} failed before"
        self.failed = case
        for rank, found in enumerate(self.processes.run(sharded_cases.run, case)):
            assert found == "done", f"rank {rank}:\n{getattr(found, 'where', found)}"
        self.failed = ""


@pytest.fixture(scope="module")
def two() -> Iterator[Company]:
    made = Processes(2)
    yield Company(made)
    made.end()


@pytest.fixture(scope="module")
def three(processes: Processes) -> Company:
    return Company(processes)


@pytest.mark.parametrize("case", sharded_cases.CASES)
def test_two(two: Company, case: str) -> None:
    two.check(case)


@pytest.mark.parametrize("case", sharded_cases.THREE)
def test_three(three: Company, case: str) -> None:
    """Of which some have no part of what is short."""
    three.check(case)
