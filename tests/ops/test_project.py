from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fairkern.errors import BackendError, InputError
from fairkern.ops import directions, project
from fairkern.ops.project import native
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 3, 1), (2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 2)])
def test_equals_numpy(shape, dtype, backend):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    onto = directions(int(np.prod(shape[2:])), 7, seed=1)
    flat = x.double().reshape(*shape[:2], -1).numpy()
    expected = torch.from_numpy(np.einsum("ncd,dp->ncp", flat, onto.double().numpy()))
    for view in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        actual = project(view, onto, backend=backend)
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(actual, expected, dtype, scale=4)
        some = torch.tensor([shape[0] - 1, 0])
        assert_close(project(view, onto, rows=some, backend=backend), expected[some], dtype, scale=4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_more_channels_directions_and_positions_than_a_tile(memory_format, backend):
    x = torch.randn(2, 70, 6, 7, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=memory_format)
    onto = directions(42, 80, seed=0)
    expected = x.double().flatten(2) @ onto.double()
    assert_close(project(x, onto, backend=backend), expected, torch.float32, scale=4)


def test_nan_stays_in_its_sample_and_channel(backend):
    x, onto = torch.ones(3, 20, 5), directions(5, 3, seed=0)
    x[1, 4, 2] = float("nan")
    nan = project(x, onto, backend=backend).isnan()
    assert nan[1, 4].all()
    assert nan.sum() == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.tensor([0, 2]), "from 0 to 2"),
        (torch.tensor([-1]), "from -1 to -1"),
        (torch.tensor([0.0]), "float32"),
        ([0], "list"),
    ],
)
def test_bad_rows_are_named(rows, message):
    with pytest.raises(InputError, match=message):
        project(torch.zeros(2, 3, 4), torch.ones(4, 1), rows=rows)


def test_no_rows():
    assert project(torch.zeros(2, 3, 4), torch.ones(4, 1), rows=torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 1)


def test_writes_into_out():
    x, onto = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)), directions(4, 5, seed=0)
    buffer = torch.full((6, 2, 5), float("nan"))
    made = project(x, onto, out=buffer[2:5])
    assert made.data_ptr() == buffer[2:5].data_ptr()
    assert torch.equal(buffer[2:5], project(x, onto))
    assert buffer[[0, 1, 5]].isnan().all()
    for wrong in (torch.empty(3, 2, 4), torch.empty(3, 2, 5).double(), torch.empty(3, 5, 2).transpose(1, 2)):
        with pytest.raises(InputError, match="out is"):
            project(x, onto, out=wrong)


def test_directions_are_unit_columns_and_repeat():
    for d, p in ((2, 1), (3, 128), (784, 16)):
        drawn = directions(d, p, seed=3)
        assert drawn.shape == (d, p)
        assert drawn.dtype == torch.float32
        assert drawn.is_contiguous()
        torch.testing.assert_close(drawn.norm(dim=0), torch.ones(p))
        assert torch.equal(drawn, directions(d, p, seed=3))
    assert not torch.equal(directions(3, 4, seed=0), directions(3, 4, seed=1))
    assert torch.equal(directions(1, 128, seed=0), torch.ones(1, 1))


def test_directions_leave_the_global_random_state():
    before = torch.get_rng_state()
    directions(8, 8, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_directions_cover_the_sphere():
    drawn = directions(3, 20_000, seed=0).double()
    torch.testing.assert_close(drawn @ drawn.T / 20_000, torch.eye(3, dtype=torch.float64) / 3, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("x", "onto", "message"),
    [
        (torch.zeros(4), torch.ones(1, 1), r"\[N, C, D"),
        (torch.zeros(2, 3, 4), torch.ones(5, 2), r"\[4, P\]"),
        (torch.zeros(2, 3, 4), torch.ones(4), r"\[4, P\]"),
        (torch.zeros(2, 3, 4).int(), torch.ones(4, 1), "int32"),
        (torch.zeros(2, 3, 4), torch.ones(4, 1, device="meta"), "different devices"),
    ],
)
def test_bad_input_is_named(x, onto, message):
    with pytest.raises(InputError, match=message):
        project(x, onto)


@pytest.mark.parametrize(("d", "p"), [(0, 1), (1, 0), (2.0, 1), (-1, 1)])
def test_bad_sizes_are_named(d, p):
    with pytest.raises(InputError, match="whole number"):
        directions(d, p, seed=0)


def laid_out(layout: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """[5, 37, 9, 10] in some layout, and 70 directions: no length is a multiple of what is held in registers."""
    x = torch.randn(5, 37, 9, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    onto = directions(90, 70, seed=2).to(torch.float64 if dtype == torch.float64 else torch.float32)
    if layout == "channels-last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "samples last":
        x = x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    elif layout == "no single run":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "spread":
        x = torch.stack((x, x), dim=-1)[..., 0]
    elif layout == "expanded":
        x = x[:1].expand(5, -1, -1, -1)
    return x, onto


LAYOUTS = ["contiguous", "channels-last", "samples last", "no single run", "spread", "expanded"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_and_rows(layout, dtype, backend):
    x, onto = laid_out(layout, dtype)
    expected = x.double().flatten(2) @ onto.double()
    assert_close(project(x, onto, backend=backend), expected, dtype, scale=4)
    rows = torch.tensor([4, 4, 0, 2])
    assert_close(project(x, onto, rows=rows, backend=backend), expected[rows], dtype, scale=4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_on_any_instruction_set_thread_count_and_batch(layout, dtype, extension):
    x, onto = laid_out(layout, dtype)
    whole = torch.empty(5, 37, 70, dtype=onto.dtype)
    native.project(x, onto, None, whole)
    before = torch.get_num_threads()
    for isa in instruction_sets(extension):
        for threads in (1, 3):
            torch.set_num_threads(threads)
            try:
                again = native.project(x, onto, None, torch.full_like(whole, float("nan")), isa=isa)
            finally:
                torch.set_num_threads(before)
            assert torch.equal(again, whole)
    for rows in (torch.tensor([3]), torch.tensor([1, 4, 0])):
        assert torch.equal(project(x, onto, rows=rows, backend="native"), whole[rows])
        assert torch.equal(project(x[rows][:, :3], onto, backend="native"), whole[rows][:, :3])


def instruction_sets(extension) -> range:
    return range(1, ["baseline", "avx2", "avx512"].index(extension.build()["isa"]) + 2)


def rounded(value: Fraction) -> float:
    """The float32 next to it, to even where two are; no overflow."""
    if not value:
        return 0.0
    exponent = max(math.frexp(float(value))[1] - 24, -149)
    return float(np.ldexp(float(round(value / Fraction(2) ** exponent)), exponent))


@pytest.mark.parametrize(
    ("x", "onto"),
    [
        ([1 + 2**-11, 1 + 2**-12], [-1.0, 1 + 2**-12]),  # two roundings: 0
        ([1 + 2**-23, 2**-24 + 2**-47], [1.0, 1 - 2**-23]),  # by way of double: half-way, and then up
        ([2**-60 + 2**-83, 2**-127], [2**-80 - 2**-103, 1 + 2**-22]),  # where floats have fewer digits
        ([2**-75 + 2**-98, 2**-75], [2**-75 + 2**-98, -(2.0**-75)]),  # next to nothing
        ([3e38, -3e38, 1.0], [1.0, 1.0, 2**-30]),
    ],
)
def test_a_product_and_its_addition_are_rounded_once(x, onto, extension):
    """By fractions; and in every place of a block of rows and directions, on every instruction set."""
    values, along = torch.tensor(x), torch.tensor(onto)
    expected = 0.0
    for a, b in zip(values.tolist(), along.tolist(), strict=True):
        expected = rounded(Fraction(a) * Fraction(b) + Fraction(expected))
    for isa in instruction_sets(extension):
        for layout in (values.expand(2, 19, -1).contiguous(), values.view(1, -1, 1).expand(2, -1, 19).mT):
            out = native.project(layout, along.unsqueeze(1).expand(-1, 83), None, torch.empty(2, 19, 83), isa=isa)
            assert out.unique().tolist() == [expected]


def test_rounded_once_in_float64(extension):
    x = torch.tensor([1 + 2**-25, 1 + 2**-26], dtype=torch.float64).expand(1, 3, 2)
    onto = torch.tensor([-1.0, 1 + 2**-26], dtype=torch.float64).unsqueeze(1).expand(2, 9)
    for isa in instruction_sets(extension):
        made = native.project(x, onto, None, torch.empty(1, 3, 9, dtype=torch.float64), isa=isa)
        assert made.unique().tolist() == [2.0**-52]


@pytest.mark.parametrize("scale", [1.0, 2.0**-74, 2.0**70])
def test_the_same_bits_of_numbers_of_all_sizes(scale, extension):
    """Exponents far apart, products around the smallest and the largest floats, zeros, infinities and NaN."""
    generator = torch.Generator().manual_seed(0)
    x, onto = (torch.randn(size, generator=generator) for size in ((3, 17, 40), (40, 33)))
    x = x * scale * 2.0 ** torch.randint(-12, 12, x.shape, generator=generator)
    onto = onto * scale * 2.0 ** torch.randint(-12, 12, onto.shape, generator=generator)
    x.view(-1)[::7] = 0.0
    x[1, 3, 2], x[1, 4, 2] = float("inf"), float("nan")
    made = [native.project(x, onto, None, torch.empty(3, 17, 33), isa=isa) for isa in instruction_sets(extension)]
    for other in made[1:]:
        assert torch.equal(other.isnan(), made[0].isnan())
        assert torch.equal(other.nan_to_num(), made[0].nan_to_num())


def test_native_is_refused_off_the_cpu():
    with pytest.raises(BackendError, match="meta"):
        project(torch.zeros(2, 3, 4, device="meta"), torch.ones(4, 1, device="meta"), backend="native")
