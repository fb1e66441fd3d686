"""The examples in the docstrings of allocation and artefacts run."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from fairkern.allocate import budget, tod
from fairkern.artefacts import files
from fairkern.plans import build as plan
from fairkern.plans import cost


@pytest.mark.parametrize("module", [budget, cost, plan, tod, files], ids=lambda module: module.__name__)
def test_examples(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0
