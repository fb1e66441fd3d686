"""`pytest -m zoo`: every model of the zoo that is installed is cut exactly, or frozen with a reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.zoo.catalogue import Entry, entries
from bench.zoo.reload import Reloader
from bench.zoo.row import LIMIT, examine


@pytest.fixture(scope="module")
def reloader() -> Iterator[Reloader]:
    with Reloader() as process:
        yield process


@pytest.mark.zoo
@pytest.mark.parametrize("entry", entries(), ids=str)
def test_exact(entry: Entry, reloader: Reloader) -> None:
    row = examine(entry, reloader)
    assert not row.problem
    assert row.prunable == 0 or (row.error < LIMIT and row.reloads)
    assert row.prunable == row.groups or row.frozen
