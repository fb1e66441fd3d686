from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ranks.processes import Processes


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """Three of them; the first two are a group as well, and the first works by itself where it is asked alone."""
    made = Processes(3)
    yield made
    made.end()
