"""Every operator over its table's shapes, once and small: what `compute-sanitizer` is run on.

On the CPU the same calls run through the backends there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fairkern import ops
from tests.ops import test_class_wasserstein as distances
from tests.ops import test_gather as gathers
from tests.ops import test_gram as grams
from tests.ops import test_taylor as taylors
from tests.tolerances import assert_close

pytestmark = pytest.mark.memcheck
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    yield torch.device(request.param)
    if request.param == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_gather(backend: str, device: torch.device) -> None:
    if backend == "triton" and device.type == "cpu":
        pytest.skip("Triton runs on a GPU")
    jobs = [
        (gathers.numbered(shape, dtype), indices)
        for shape, indices in gathers.CASES.values()
        for dtype in (torch.int8, torch.bfloat16, torch.float32, torch.complex128)
    ]
    there = [(weight.to(device), gathers.tensors(indices)) for weight, indices in jobs]
    for taken, (weight, indices) in zip(ops.gather_many(there, backend=backend), jobs, strict=True):
        gathers.assert_taken(taken.cpu(), weight, indices)


def test_gather_with_an_index_for_every_expert(device: torch.device) -> None:
    weight = torch.randn(5, 7, 12, device=device)
    indices = {0: torch.tensor([4, 1]), 1: torch.randint(0, 7, (5, 3)), 2: torch.randint(0, 12, (5, 8))}
    assert torch.equal(ops.gather(weight, indices), ops.gather(weight, indices, backend="reference"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_taylor(dtype: torch.dtype, device: torch.device) -> None:
    jobs = [taylors.example(shape, dtype) for shape in taylors.SHAPES]
    there = [(act.to(device), grad.to(device), dim) for act, grad, dim in jobs]
    for sums, (act, grad, dim) in zip(ops.taylor_many(there), jobs, strict=True):
        exact = taylors.by_numpy(act, grad, dim)
        size = (act.numel() / act.shape[dim]) ** 0.5
        for actual, expected in zip((sums.signed, sums.per_sample, sums.activation), exact, strict=True):
            assert_close(actual.cpu(), expected, dtype, scale=size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_project(dtype: torch.dtype, device: torch.device) -> None:
    for shape in ((1, 1, 2), (3, 70, 6, 7), (2, 5, 33)):
        for form in (torch.contiguous_format, torch.channels_last) if len(shape) == 4 else (torch.contiguous_format,):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).contiguous(memory_format=form)
            onto, rows = ops.directions(x.shape[2:].numel(), 80, seed=0), torch.tensor([len(x) - 1, 0])
            found = ops.project(x.to(device), onto.to(device), rows=rows.to(device))
            assert_close(found.cpu(), x[rows].double().flatten(2) @ onto.double(), dtype, scale=7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gram(dtype: torch.dtype, device: torch.device) -> None:
    for shape, dim in grams.SHAPES.values():
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        found, (products, total) = ops.gram(x.to(device), dim), grams.by_numpy(x, dim)
        assert_close(found.gram.cpu(), products, dtype, scale=2 * found.count**0.5)
        assert_close(found.total.cpu(), total, dtype, scale=found.count**0.5)


@pytest.mark.parametrize("reduce", ["max", "pairs"])
@pytest.mark.parametrize("shape", distances.SHAPES)
def test_class_wasserstein(shape: str, reduce: str, device: torch.device) -> None:
    x, labels = distances.example(shape, torch.float32)
    expected = ops.class_wasserstein(x.double(), labels, reduce, backend="reference")
    found = ops.class_wasserstein(x.to(device), labels.to(device), reduce)
    assert_close(found.cpu(), expected, torch.float32, scale=4)
