"""The bench of several processes, at a small scale: every number of them makes the same plan."""

from __future__ import annotations

import pytest

from bench import _ranks


@pytest.mark.slow
def test_one_and_two_processes_make_one_plan() -> None:
    one, two = _ranks.rows((1, 2), width=24, layers=2, batches=3)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["removed"] == two["removed"]
    assert all(row["wall_s"] > 0 for row in (one, two))
