from __future__ import annotations

import pytest

from tests.compact.handmade import CASES, Case, bilinear, buffers, make, plain, tied


@pytest.fixture(params=CASES, ids=lambda build: build.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    return make(request.param)


@pytest.fixture
def plain_case() -> Case:
    return make(plain)


@pytest.fixture
def tied_case() -> Case:
    return make(tied)


@pytest.fixture
def buffers_case() -> Case:
    return make(buffers)


@pytest.fixture
def bilinear_case() -> Case:
    return make(bilinear)
