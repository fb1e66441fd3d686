"""Two and three processes that hold a model in shards, against one that holds it whole."""

from __future__ import annotations

import pytest
import torch

from tests.sharded.processes import check

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


if torch.distributed.is_available():
    from tests.sharded.two import CASES, THREE
else:
    CASES = THREE = []


@pytest.mark.parametrize("case", CASES)
def test_two(case: str) -> None:
    check("tests.sharded.two", 2, case)


@pytest.mark.parametrize("case", THREE)
def test_three(case: str) -> None:
    check("tests.sharded.two", 3, case)
