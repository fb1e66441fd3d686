from __future__ import annotations

import pytest
import torch
from scipy.stats import wasserstein_distance

from fairkern.errors import BackendError, InputError
from fairkern.ops import wasserstein_1d
from fairkern.ops.wasserstein import native
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
COUNTS = [(1, 1), (1, 5), (5, 5), (7, 3), (6, 4), (16, 16), (32, 32), (31, 64), (300, 257), (600, 600)]


def samples(n: int, m: int, columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n + 1000 * m)
    x = torch.randn(n, columns, generator=generator)
    return x.to(dtype), (1 + torch.randn(m, columns, generator=generator)).to(dtype)


def by_scipy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    a, b = x.double().numpy(), y.double().numpy()
    return torch.tensor([wasserstein_distance(a[:, c], b[:, c]) for c in range(a.shape[1])], dtype=torch.float64)


def repeated(x: torch.Tensor, y: torch.Tensor, p: int) -> torch.Tensor:
    """Every sample of x as often as y has samples and the other way round: the same distributions, equal counts."""
    a, b = x.repeat_interleave(len(y), 0).sort(0).values, y.repeat_interleave(len(x), 0).sort(0).values
    mean = (a.double() - b.double()).abs().pow(p).mean(0)
    return mean if p == 1 else mean.sqrt()


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "native":
        request.getfixturevalue("extension")
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m"), COUNTS)
@pytest.mark.parametrize("columns", [1, 3, 19])
def test_equals_scipy(columns, n, m, dtype, backend):
    x, y = samples(n, m, columns, dtype)
    actual = wasserstein_1d(x, y, backend=backend)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(actual, by_scipy(x, y), dtype)
    assert_close(wasserstein_1d(y, x, backend=backend), by_scipy(x, y), dtype)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m"), [(4, 4), (4, 6), (3, 7), (16, 16), (33, 64)])
def test_equals_repeated_samples(n, m, dtype, p, backend):
    x, y = samples(n, m, 18, dtype)
    assert_close(wasserstein_1d(x, y, p, backend=backend), repeated(x, y, p), dtype)


@pytest.mark.parametrize("p", [1, 2])
def test_strides_do_not_matter(p, backend):
    x, y = samples(9, 5, 21, torch.float32)
    expected = wasserstein_1d(x, y, p, backend=backend)
    assert torch.equal(wasserstein_1d(x.T.contiguous().T, y, p, backend=backend), expected)
    assert torch.equal(wasserstein_1d(x, torch.stack((y, y), 2)[..., 1], p, backend=backend), expected)
    assert torch.equal(wasserstein_1d(x[:, :1].expand(9, 21), y, p, backend=backend)[0], expected[0])


@pytest.mark.parametrize("p", [1, 2])
def test_nan_stays_in_its_column(p, backend):
    x, y = samples(40, 33, 20, torch.float32)
    clean = wasserstein_1d(x, y, p, backend=backend)
    x[3, 4], y[7, 5] = float("nan"), float("nan")
    actual = wasserstein_1d(x, y, p, backend=backend)
    assert actual.isnan().nonzero().flatten().tolist() == [4, 5]
    assert torch.equal(actual.nan_to_num()[6:], clean[6:])


def test_translation_scaling_and_order(backend):
    x, y = samples(31, 12, 17, torch.float64)
    for p in (1, 2):
        distances = wasserstein_1d(x, y, p, backend=backend)
        assert_close(wasserstein_1d(x + 5, y + 5, p, backend=backend), distances, torch.float64, scale=10)
        assert_close(wasserstein_1d(-3 * x, -3 * y, p, backend=backend), 3 * distances, torch.float64)
        assert torch.equal(wasserstein_1d(x.flip(0), y.flip(0), p, backend=backend), distances)


def test_more_samples_than_a_network_sorts(backend):
    x, y = samples(9001, 8300, 3, torch.float32)
    assert_close(wasserstein_1d(x, y, backend=backend), by_scipy(x, y), torch.float32)


@pytest.mark.slow
def test_a_million_samples(backend):
    x, y = samples(1_000_000, 1_000_000, 1, torch.float32)
    assert_close(wasserstein_1d(x, y, backend=backend), by_scipy(x, y), torch.float32)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m"), [(16, 16), (32, 7), (300, 301)])
def test_same_bits_on_any_instruction_set_thread_count_and_route(n, m, dtype, p, extension):
    x, y = samples(n, m, 37, dtype)
    expected = native.wasserstein_1d(x, y, p)
    best = ["baseline", "avx2", "avx512"].index(extension.build()["isa"]) + 1
    before = torch.get_num_threads()
    for isa in range(1, best + 1):
        for threads, limit in ((1, 1 << 20), (3, 0), (2, min(n, m))):
            torch.set_num_threads(threads)
            try:
                actual = native.wasserstein_1d(x, y, p, isa=isa, limit=limit)
            finally:
                torch.set_num_threads(before)
            assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 4), {}, r"\(3, 4\)"),
        (torch.zeros(0, 2), torch.zeros(3, 2), {}, "neither empty"),
        (torch.zeros(3), torch.zeros(3), {}, r"\[N, C\]"),
        (torch.zeros(3, 2), torch.zeros(3, 2).double(), {}, "one dtype"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"p": 3}, "p=3 is too large; expected a whole number, at most 2"),
        (torch.zeros(3, 2), torch.zeros(3, 2, device="meta"), {}, "different devices"),
    ],
)
def test_bad_input_is_named(x, y, options, message):
    with pytest.raises(InputError, match=message):
        wasserstein_1d(x, y, **options)


def test_native_is_refused_off_the_cpu():
    with pytest.raises(BackendError, match="meta"):
        wasserstein_1d(torch.zeros(2, 1, device="meta"), torch.zeros(2, 1, device="meta"), backend="native")


@pytest.mark.parametrize("limit", [-1, (1 << 20) + 1])
def test_the_extension_checks_the_limit(limit, extension):
    x, y = samples(3, 3, 1, torch.float32)
    with pytest.raises(ValueError, match="network_limit"):
        native.wasserstein_1d(x, y, 1, limit=limit)
