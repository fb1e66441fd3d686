from __future__ import annotations

import numpy as np
import pytest
import torch

from fairkern.errors import BackendError, InputError
from fairkern.ops import gram
from fairkern.ops._registry import Backend
from fairkern.ops.gram import native, packed
from fairkern.ops.gram.packed import Packed
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# shape, unit dimension
SHAPES = {
    "one element": ((1, 1), 1),
    "one vector": ((7,), 0),
    "linear": ((33, 7), 1),
    "more units than a tile": ((5, 100), 1),
    "convolution": ((3, 70, 6, 7), 1),
    "one position": ((3, 5, 1, 1), 1),
    "tokens": ((4, 9, 19), -1),
    "heads": ((2, 3, 4, 5), 2),
    "units first": ((6, 3, 5), 0),
    "many vectors": ((300, 40, 3), 1),
}


def by_numpy(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    vectors = np.moveaxis(x.double().numpy(), dim, 0).reshape(x.shape[dim], -1)
    return torch.from_numpy(np.einsum("im,jm->ij", vectors, vectors)), torch.from_numpy(vectors.sum(1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_numpy(shape, dtype, backend):
    size, dim = SHAPES[shape]
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    products, total = by_numpy(x, dim)
    views = [x, x.transpose(0, -1).contiguous().transpose(0, -1), x.repeat_interleave(2, -1)[..., ::2]]
    if x.ndim == 4:
        views.append(x.contiguous(memory_format=torch.channels_last))
    for view in views:
        actual = gram(view, dim, backend=backend)
        assert actual.count == x.numel() // x.shape[dim]
        assert torch.equal(actual.gram, actual.gram.T)
        assert actual.gram.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(actual.gram, products, dtype, scale=2 * actual.count**0.5)
        assert_close(actual.total, total, dtype, scale=actual.count**0.5)


def test_expanded_input(backend):
    actual = gram(torch.tensor([[1.0], [2.0]]).expand(2, 3), backend=backend)
    assert torch.equal(actual.gram, torch.full((3, 3), 5.0))
    assert torch.equal(actual.total, torch.full((3,), 3.0))


def test_nan_reaches_its_row_and_column_and_no_other(backend):
    x = torch.ones(40, 50)
    x[3, 7] = float("nan")
    actual = gram(x, backend=backend)
    expected = torch.zeros(50, 50, dtype=torch.bool)
    expected[7], expected[:, 7] = True, True
    assert torch.equal(actual.gram.isnan(), expected)
    assert actual.total.isnan().nonzero().flatten().tolist() == [7]


def test_the_same_bits_twice(backend):
    x = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gram(x, backend=backend).gram, gram(x, backend=backend).gram)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(2, 3).long(), {}, "int64"),
        (torch.zeros(0, 3), {}, "with elements"),
        (torch.zeros(2, 3), {"dim": 2}, "-2 to 1"),
        (torch.zeros(2, 3), {"backend": "blas"}, "auto, native"),
        ([1.0], {}, "list"),
    ],
)
def test_bad_input_is_named(x, options, message):
    with pytest.raises(InputError, match=message):
        gram(x, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("units", [1, 15, 70, 150, 300])
def test_same_bits_on_any_instruction_set_thread_count_and_layout(units, dtype, extension):
    """Of whole numbers also exactly what they sum to, added to what was there, the upper triangle and nothing else."""
    x = torch.randint(-8, 9, (3, units, 11, 10), generator=torch.Generator().manual_seed(0)).to(dtype)
    flat = x.double().movedim(1, 0).reshape(units, -1)
    before = torch.get_num_threads()
    for values, exact in ((x, flat @ flat.T + 1), (x * 0.3, None)):
        results = []
        for isa in range(1, ["baseline", "avx2", "avx512"].index(extension.build()["isa"]) + 2):
            for threads, layout in ((1, torch.contiguous_format), (3, torch.channels_last)):
                half = Packed.of(torch.ones(units, units, dtype=torch.float64))
                torch.set_num_threads(threads)
                try:
                    native.add(values.contiguous(memory_format=layout).movedim(1, 0), half.flat, isa=isa)
                finally:
                    torch.set_num_threads(before)
                results.append(half.full())
        assert all(torch.equal(result, results[0]) for result in results)
        assert exact is None or torch.equal(results[0], exact)


def test_native_sums_do_not_lose_what_many_vectors_add(extension):
    """Float32 alone would stop at 2²⁴."""
    x = torch.ones(1 << 22, 3) * torch.tensor([3.0, 1.0, 0.0])
    assert gram(x, backend="native").gram.tolist() == [
        [9 * 2.0**22, 3 * 2.0**22, 0],
        [3 * 2.0**22, 2.0**22, 0],
        [0] * 3,
    ]


def test_native_is_refused_off_the_cpu():
    with pytest.raises(BackendError, match="meta"):
        gram(torch.zeros(2, 3, device="meta"), backend="native")


HELD = 2.0**-80, 2.0**126


@pytest.mark.parametrize("native_runs", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_vectors_less_a_shift_equal_numpy(shape, dtype, native_runs, request, monkeypatch):
    if native_runs:
        request.getfixturevalue("extension")
    else:
        monkeypatch.setattr(packed, "resolve", lambda *_: Backend.REFERENCE)
    size, dim = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(size, generator=generator) + 3).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shift = torch.randn(size[dim], generator=generator, dtype=torch.float64).to(wide)
    products, total = by_numpy(x.double().movedim(dim, -1).sub(shift.double()), -1)
    for view in (x, x.transpose(0, -1).contiguous().transpose(0, -1), x.repeat_interleave(2, -1)[..., ::2]):
        half, sums = Packed.zeros(size[dim], x.device), torch.ones(size[dim], dtype=torch.float64)
        count = x.numel() // size[dim]
        assert half.add_shifted(view.movedim(dim, 0), shift, sums, HELD) == count
        accuracy = torch.float64 if dtype == torch.float64 else torch.float32
        assert_close(half.full(), products, accuracy, scale=100 * count**0.5)
        assert_close(sums, total + 1, accuracy, scale=100 * count**0.5)


@pytest.mark.parametrize("units", [1, 15, 70, 300])
def test_sums_are_the_same_bits_on_any_instruction_set_thread_count_and_layout(units, extension):
    x = torch.randn(3, units, 11, 10, generator=torch.Generator().manual_seed(0))
    shift, before, results = x.mean((0, 2, 3)), torch.get_num_threads(), []
    for isa in range(1, ["baseline", "avx2", "avx512"].index(extension.build()["isa"]) + 2):
        for threads, layout in ((1, torch.contiguous_format), (3, torch.channels_last)):
            total, flat = torch.zeros(units, dtype=torch.float64), Packed.zeros(units, x.device).flat
            torch.set_num_threads(threads)
            try:
                native.add(x.contiguous(memory_format=layout).movedim(1, 0), flat, total, shift, HELD, isa=isa)
            finally:
                torch.set_num_threads(before)
            results.append((total, Packed(units, flat).full()))
    for total, whole in results:
        assert torch.equal(total, results[0][0])
        assert torch.equal(whole, results[0][1])
    plain = Packed.zeros(units, x.device)
    sums = torch.zeros(units, dtype=torch.float64)
    native.add((x - shift.view(-1, 1, 1)).movedim(1, 0), plain.flat, sums)
    assert torch.equal(sums, results[0][0])
    assert torch.equal(plain.full(), results[0][1])


@pytest.mark.parametrize("power", [-45, -41, -40, -39, -38, 0, 60, 62, 63, 64])
@pytest.mark.parametrize("units", [1, 3, 70])
def test_vectors_whose_squares_do_not_fit_are_not_added(power, units, extension):
    """Of units alike, and of one that is much larger than the others."""
    for other in (1.0, 1e-6, 0.0):
        x = torch.full((units, 5), 2.0**power * other)
        x[-1] = 2.0**power
        half, total = Packed.zeros(units, x.device), torch.zeros(units, dtype=torch.float64)
        fits = -41 <= power < 62
        assert half.add_shifted(x, torch.zeros(units), total, HELD) == (5 if fits else 0)
        assert bool(half.flat.any()) == bool(total.any()) == fits


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 2.0**70])
@pytest.mark.parametrize("unit", [0, 3])
def test_of_many_vectors_those_before_the_first_that_does_not_fit_are_added(bad, unit, extension):
    x = torch.ones(40000, 40)
    x[30000, unit] = bad
    half, total = Packed.zeros(40, x.device), torch.zeros(40, dtype=torch.float64)
    added = half.add_shifted(x.T, torch.full((40,), 0.5), total, HELD)
    assert 0 < added <= 30000
    assert torch.equal(half.full(), torch.full((40, 40), added / 4, dtype=torch.float64))
    assert torch.equal(total, torch.full((40,), added / 2, dtype=torch.float64))


def test_bounds_need_sums(extension):
    with pytest.raises(ValueError, match="without sums"):
        native.add(torch.ones(2, 3), Packed.zeros(2, torch.device("cpu")).flat, held=HELD)
