"""`pytest -m zoo`: every model of the zoo that is installed is cut exactly, or frozen with a reason."""

from __future__ import annotations

import pytest

from bench.zoo.catalogue import Entry, entries
from bench.zoo.row import LIMIT, examine


@pytest.mark.zoo
@pytest.mark.parametrize("entry", entries(), ids=str)
def test_exact(entry: Entry) -> None:
    row = examine(entry)
    assert not row.problem
    assert row.prunable == 0 or row.error < LIMIT
    assert row.prunable == row.groups or row.frozen
