"""A native backend that is missing fails these tests unless the build was told to leave it out."""

from __future__ import annotations

import pytest

from fairkern.ops import _native


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend of an operator that has both."""
    if request.param == "native" and (reason := _native.unavailable()):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def extension():
    """The compiled extension."""
    if reason := _native.unavailable():
        pytest.skip(reason)
    return _native.extension()
