"""The examples in the docstrings of allocation and artefacts run."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from fairkern.allocate import budget, cost, plan, tod
from fairkern.artefacts import files


@pytest.mark.parametrize("module", [budget, cost, plan, tod, files], ids=lambda module: module.__name__)
def test_examples(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0
