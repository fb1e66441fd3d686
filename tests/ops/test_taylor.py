from __future__ import annotations

import numpy as np
import pytest
import torch

from fairkern.errors import InputError
from fairkern.ops import TaylorSums, taylor, taylor_many, taylor_sums
from fairkern.ops.taylor import native
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# shape, channel dimension
SHAPES = {
    "one element": ((1, 1), 1),
    "linear": ((33, 7), 1),
    "wide linear": ((5, 300), 1),
    "many samples": ((1300, 270), 1),
    "convolution": ((3, 5, 6, 7), 1),
    "one position": ((3, 5, 1, 1), 1),
    "one sample": ((1, 6, 5, 5), 1),
    "two positions": ((70, 53, 2), 1),
    "four positions": ((33, 35, 2, 2), 1),
    "eight positions": ((34, 67, 2, 4), 1),
    "as many positions as lanes": ((3, 37, 4, 4), 1),
    "nine positions": ((65, 19, 3, 3), 1),
    "7 by 7": ((5, 33, 7, 7), 1),
    "few positions, the most": ((2, 3, 32, 32), 1),
    "many positions, the fewest": ((2, 3, 25, 41), 1),
    "tokens": ((4, 9, 19), 2),
    "tokens, last dimension": ((4, 9, 19), -1),
    "many tokens": ((1, 1500, 3), 2),
    "heads": ((2, 3, 4, 5), 2),
    "long": ((2, 2, 70_001), 1),
}


def example(shape: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, int]:
    size, dim = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    act, grad = (torch.randn(size, generator=generator).to(dtype) for _ in range(2))
    return act, grad, dim


def by_numpy(act: torch.Tensor, grad: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
    a, g = (np.moveaxis(t.double().numpy(), dim, 1) for t in (act, grad))
    a, g = (t.reshape(*t.shape[:2], -1) for t in (a, g))
    terms = np.einsum("ncd,ncd->nc", a, g)
    return tuple(torch.from_numpy(total) for total in (terms.sum(0), np.abs(terms).sum(0), a.sum((0, 2))))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_numpy(shape, dtype, backend):
    act, grad, dim = example(shape, dtype)
    signed, per_sample, activation = by_numpy(act, grad, dim)
    size = act.numel() / act.shape[dim]
    sums = taylor_sums(act, grad, dim, backend=backend)
    assert sums.signed.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for actual, expected in (
        (sums.signed, signed),
        (sums.per_sample, per_sample),
        (sums.activation, activation),
        (taylor(act, grad, dim, backend=backend), signed),
        (taylor(act, grad, dim, "per_sample", backend=backend), per_sample),
    ):
        assert_close(actual, expected, dtype, scale=size**0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(dtype, backend):
    act, grad, dim = example("convolution", dtype)
    expected = by_numpy(act, grad, dim)
    last = {"memory_format": torch.channels_last}
    apart = [torch.stack((t, t), dim=-1)[..., 0] for t in (act, grad)]
    for a, g in (
        (act.to(**last), grad.to(**last)),
        (act.to(**last), grad),
        (act, grad.to(**last)),
        tuple(apart),
        (act.transpose(0, 3).contiguous().transpose(0, 3), grad),
    ):
        sums = taylor_sums(a, g, dim, backend=backend)
        for actual, value in zip((sums.signed, sums.per_sample, sums.activation), expected, strict=True):
            assert_close(actual, value, dtype, scale=12)


def test_expanded_gradient_of_a_mean(backend):
    act = torch.arange(24.0).view(2, 3, 4)
    grad = torch.full((), 1 / 24).expand_as(act)
    assert_close(taylor(act, grad, backend=backend), act.double().sum((0, 2)) / 24, torch.float32)


def test_every_value_of_half_precision(backend):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        values = values[values.isfinite()].view(1, -1)
        sums = taylor_sums(values, torch.ones_like(values), backend=backend)
        assert torch.equal(sums.activation, values[0].float())
        by_dot = taylor_sums(values.T.expand(-1, 64)[None], torch.ones(1, values.shape[1], 64, dtype=dtype))
        assert torch.equal(by_dot.activation, values[0].float() * 64)


def test_channels_in_the_first_dimension(backend):
    act, grad, _ = example("linear", torch.float32)
    assert_close(taylor(act, grad, 0, backend=backend), (act.double() * grad.double()).sum(1), torch.float32, scale=3)


def test_batches_add_up(backend):
    act, grad, dim = example("convolution", torch.float64)
    whole = taylor_sums(act, grad, dim, backend=backend)
    parts = [taylor_sums(act[i : i + 1], grad[i : i + 1], dim, backend=backend) for i in range(len(act))]
    for field in ("signed", "per_sample", "activation"):
        total = sum(getattr(part, field) for part in parts)
        assert_close(total, getattr(whole, field), torch.float64, scale=12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_running_sums(shape, dtype, backend):
    """Batches of one and two samples, each with a weight of its own, into float64; what stood there stays in."""
    act, grad, dim = example(shape, dtype)
    act, grad = (torch.cat((t[:1], t[:1].flip(-1), t[:1].roll(1, -1))) for t in (act, grad))
    parts = [(act[:1], grad[:1], 1.0), (act[1:], grad[1:], 2.0)]
    exact = [by_numpy(a, g, dim) for a, g, _ in parts]
    expected = [sum(w * sums[i] for (_, _, w), sums in zip(parts, exact, strict=True)) for i in (0, 1)]
    expected.append(exact[0][2] + exact[1][2] + 3.0)
    size = (act.numel() / act.shape[dim]) ** 0.5
    for wide in {torch.float64, torch.float64 if dtype == torch.float64 else torch.float32}:
        running = TaylorSums.zeros(act.shape[dim], dtype=wide)
        running.activation.add_(3.0)
        for a, g, weight in parts:
            running = taylor_sums(a, g, dim, out=running, scale=weight, backend=backend)
        for actual, value in zip(running.fields, expected, strict=True):
            assert actual.dtype == wide
            assert_close(actual, value, dtype, scale=2 * size)


def test_running_sums_are_written_in_place():
    act, grad, dim = example("convolution", torch.float32)
    running = TaylorSums.zeros(5)
    before = [field.data_ptr() for field in running.fields]
    for backend in ("reference", "auto"):
        given = taylor_sums(act, grad, dim, out=running, backend=backend)
        assert [field.data_ptr() for field in given.fields] == before
        (many,) = taylor_many([(act, grad, dim)], out=[running], backend=backend)
        assert [field.data_ptr() for field in many.fields] == before
    assert_close(running.signed, 4 * by_numpy(act, grad, dim)[0], torch.float32, scale=50)


def test_many_equals_one_by_one(backend):
    jobs = [example(shape, torch.float32) for shape in ("linear", "convolution", "tokens", "heads", "convolution")]
    alone = [taylor_sums(*job, scale=3.0, backend=backend) for job in jobs]
    running = [TaylorSums.zeros(act.shape[dim]) for act, _, dim in jobs]
    for together in (
        taylor_many(jobs, scale=3.0, backend=backend),
        taylor_many(jobs, out=running, scale=3.0, backend=backend),
    ):
        for one, other in zip(alone, together, strict=True):
            for a, b in zip(one.fields, other.fields, strict=True):
                assert_close(b, a, torch.float32, scale=30)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (TaylorSums.zeros(4), r"out\.signed is torch\.float64 \(4,\)"),
        (TaylorSums.zeros(3, dtype=torch.bfloat16), "all three float64 or all torch.float32"),
        (TaylorSums(*torch.zeros(2, 3), torch.zeros(3, dtype=torch.float64)), r"out\.activation"),
        (TaylorSums(*torch.zeros(3, 3).T), "contiguous"),
        (TaylorSums.zeros(3, device="meta"), "on meta"),
    ],
)
def test_bad_running_sums_are_named(out, message):
    with pytest.raises(InputError, match=message):
        taylor_sums(torch.zeros(2, 3), torch.zeros(2, 3), out=out)


def test_running_sums_that_fitted_are_looked_at_again_where_they_have_changed(backend):
    running, x = TaylorSums.zeros(3), torch.ones(2, 3)
    for _ in range(2):
        taylor_sums(x, x, out=running, backend=backend)
    with pytest.raises(InputError, match=r"out\.signed"):
        taylor_sums(x[:, :2], x[:, :2], out=running, backend=backend)
    object.__setattr__(running, "signed", torch.zeros(3, dtype=torch.float64, device="meta"))
    with pytest.raises(InputError, match=r"out\.signed is .* on meta"):
        taylor_sums(x, x, out=running, backend=backend)
    object.__setattr__(running, "signed", torch.zeros(3, dtype=torch.float64))
    taylor_sums(x, x, out=running, backend=backend)
    assert running.signed.tolist() == [2.0, 2.0, 2.0]
    assert running.activation.tolist() == [6.0, 6.0, 6.0]
    running.signed.set_(torch.zeros(8, dtype=torch.float64)[::2])
    with pytest.raises(InputError, match=r"out\.signed"):
        taylor_sums(x, x, out=running, backend=backend)


def test_as_many_running_sums_as_jobs():
    job = (torch.zeros(2, 3), torch.zeros(2, 3), 1)
    with pytest.raises(InputError, match="2 running sums for 1 jobs"):
        taylor_many([job], out=[TaylorSums.zeros(3)] * 2)


def test_nan_and_infinity_pass_through(backend):
    act = torch.ones(2, 40, 3)
    act[1, 4, 2], act[0, 5, 0] = float("nan"), float("inf")
    result = taylor(act, torch.ones_like(act), backend=backend)
    assert result.isnan().nonzero().flatten().tolist() == [4]
    assert result.isinf().nonzero().flatten().tolist() == [5]


def test_equals_weight_times_weight_gradient_of_the_consumer(backend):
    torch.manual_seed(0)
    consumer = torch.nn.Conv2d(5, 7, 3, padding=1).double()
    act = torch.randn(4, 5, 6, 6, dtype=torch.float64, requires_grad=True)
    loss = consumer(act).square().sum()
    grad, weight_grad = torch.autograd.grad(loss, (act, consumer.weight))
    expected = (consumer.weight * weight_grad).detach().sum((0, 2, 3))
    assert_close(taylor(act, grad, backend=backend), expected, torch.float64, scale=100)


@pytest.mark.parametrize(
    "shape", ["convolution", "four positions", "7 by 7", "many samples", "tokens", "many tokens", "long"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_on_any_thread_count(shape, dtype, extension):
    act, grad, dim = example(shape, dtype)
    dim = dim % act.ndim
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            results.append(torch.stack(native.taylor_sums(act, grad, dim)))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(shape, dtype, extension):
    act, grad, dim = example(shape, dtype)
    expected = torch.stack(by_numpy(act, grad, dim))
    for isa in range(1, ["baseline", "avx2", "avx512"].index(extension.build()["isa"]) + 2):
        actual = torch.stack(native.taylor_sums(act, grad, dim % act.ndim, isa=isa))
        assert_close(actual, expected, dtype, scale=(act.numel() / act.shape[dim]) ** 0.5)


@pytest.mark.parametrize(
    ("act", "grad", "options", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), {}, "same dtype and shape"),
        (torch.zeros(2, 3), torch.zeros(2, 3).double(), {}, "same dtype and shape"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 3).long(), {}, "int64"),
        (torch.zeros(0, 3), torch.zeros(0, 3), {}, "with elements"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"dim": 2}, "-2 to 1"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"dim": 0, "reduction": "per_sample"}, "dim is 0"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"reduction": "abs"}, "'signed', 'per_sample'"),
        (torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), {}, "different devices"),
        (torch.zeros(()), torch.zeros(()), {}, "0 dimensions"),
    ],
)
def test_bad_input_is_named(act, grad, options, message):
    with pytest.raises(InputError, match=message):
        taylor(act, grad, **options)


def test_sums_need_a_sample_dimension():
    with pytest.raises(InputError, match="dim is 0"):
        taylor_sums(torch.zeros(2, 3), torch.zeros(2, 3), dim=0)
