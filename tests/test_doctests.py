"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fairkern.ops

RESULTS = {"Elimination", "View", "Gram", "TaylorSums"}


def modules_below(package) -> list[str]:
    return [package.__name__, *(m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + "."))]


@pytest.mark.parametrize("name", modules_below(fairkern.ops))
def test_examples(name):
    if name.endswith(".triton_kernel"):
        pytest.importorskip("triton")
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_public_operators_have_examples():
    finder = doctest.DocTestFinder(recurse=False)
    functions = [getattr(fairkern.ops, name) for name in fairkern.ops.__all__ if name not in RESULTS]
    without = [f.__name__ for f in functions if not any(t.examples for t in finder.find(f))]
    assert without == ["describe"]
