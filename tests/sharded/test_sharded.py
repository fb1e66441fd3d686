"""Two and three processes that hold a model in shards, against one that holds it whole."""

from __future__ import annotations

import pytest
import torch

from tests.sharded.processes import check

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


def _cases() -> list[str]:
    from tests.sharded import two

    return two.CASES


@pytest.mark.parametrize("case", _cases())
def test_two(case: str) -> None:
    check("tests.sharded.two", 2, case)


@pytest.mark.parametrize("case", _cases())
def test_three(case: str) -> None:
    """Some of three have no part of what is short."""
    check("tests.sharded.two", 3, case)
