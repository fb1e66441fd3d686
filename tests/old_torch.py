"""What the compiler and the graphs' writers of older torch refuse of a cut model whose code passes on sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

BEFORE = (2, 14)  # docs/design.md, "Not built"


@contextlib.contextmanager
def may_refuse() -> Iterator[None]:
    """What the compiler cannot follow is an expected failure under older versions, and nothing else is."""
    try:
        yield
    except torch._dynamo.exc.Unsupported as error:
        if tuple(map(int, torch.__version__.split(".")[:2])) >= BEFORE:
            raise
        said = str(error).splitlines()[0].split("<code object")[0]  # whose address is of one run alone
        pytest.xfail(f"torch's compiler before 2.14: {said}")
