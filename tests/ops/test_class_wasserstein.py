from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from fairkern.errors import BackendError, InputError
from fairkern.ops import class_wasserstein
from fairkern.ops.wasserstein import group_by_class, native
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# (units, projections or None, samples per class)
SHAPES = {
    "one sample per class": (3, None, [1, 1]),
    "one unit, one projection": (1, 1, [4, 4]),
    "odd counts": (5, None, [7, 7, 7]),
    "more units than lanes": (37, None, [8, 8, 8, 8, 8]),
    "few projections": (19, 3, [5, 5, 5]),
    "projections fill a line": (3, 16, [6, 6, 6, 6, 6, 6]),
    "projections over a line": (4, 21, [4, 4, 4]),
    "many projections": (2, 70, [9, 9, 9, 9, 9, 9, 9, 9, 9]),
    "unequal counts": (18, None, [1, 2, 3, 5, 8]),
    "some counts equal": (6, 17, [4, 7, 4, 7, 4, 4, 4, 3]),
    "unequal, coprime, projections": (5, 18, [31, 32, 33]),
    "more samples than a flush": (2, None, [300, 301, 300]),
}


def example(shape: str, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples in mixed order, the classes shifted against each other, labels with gaps and negative."""
    units, projections, counts = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((n,), 3 * k - 4) for k, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    x = torch.randn(len(labels), units, *([projections] if projections else []), generator=generator)
    x = x + 0.3 * labels.view(-1, *[1] * (x.ndim - 1))
    return x.to(dtype), labels


def by_scipy(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Every pair by scipy, one column at a time: [pairs, C]."""
    columns = x.to(torch.float64).reshape(len(x), x.shape[1], -1).numpy()
    groups = [columns[(labels == label).numpy()] for label in labels.unique()]
    pairs = [
        [
            np.mean([wasserstein_distance(a[:, c, p], b[:, c, p]) for p in range(columns.shape[2])])
            for c in range(columns.shape[1])
        ]
        for a, b in itertools.combinations(groups, 2)
    ]
    return torch.tensor(pairs, dtype=torch.float64)


REDUCED = {"max": lambda pairs: pairs.amax(0), "mean": lambda pairs: pairs.mean(0), "pairs": lambda pairs: pairs}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_scipy_on_every_pair(shape, dtype, backend):
    x, labels = example(shape, dtype)
    expected = by_scipy(x, labels)
    for reduce, of in REDUCED.items():
        actual = class_wasserstein(x, labels, reduce, backend=backend)
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(actual, of(expected), dtype, scale=4)


@pytest.mark.parametrize("shape", ["odd counts", "some counts equal", "many projections"])
def test_strides_do_not_matter(shape, backend):
    x, labels = example(shape, torch.float32)
    expected = class_wasserstein(x, labels, "pairs", backend=backend)
    dims = list(range(x.ndim))
    transposed = x.permute(dims[::-1]).contiguous().permute(dims[::-1])
    spread = torch.empty(*x.shape[:-1], 2 * x.shape[-1])[..., ::2].copy_(x)
    every_other_row = x.repeat_interleave(2, dim=0)[::2]
    for view in (transposed, spread, every_other_row):
        actual = class_wasserstein(view, labels, "pairs", backend=backend)
        assert_close(actual, expected, torch.float32)
        assert backend == "reference" or torch.equal(actual, expected)


def test_expanded_input(backend):
    column = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(4, 1, 1)
    labels = torch.tensor([0, 0, 1, 1])
    actual = class_wasserstein(column.expand(4, 20, 16), labels, backend=backend)
    assert torch.equal(actual, torch.full((20,), 4.5))


def test_constant_units_and_ties(backend):
    x = torch.tensor([[5.0, 1.0, 0.0], [5.0, 1.0, 0.0], [5.0, 1.0, 1.0], [5.0, 0.0, 1.0]])
    actual = class_wasserstein(x, torch.tensor([0, 0, 1, 1]), backend=backend)
    assert torch.equal(actual, torch.tensor([0.0, 0.5, 1.0]))


def test_large_offset_leaves_small_distances(backend):
    x = 4096.0 + torch.tensor([[0.0], [0.0], [2.0**-10], [2.0**-10]])
    actual = class_wasserstein(x, torch.tensor([0, 0, 1, 1]), backend=backend)
    assert actual.item() == 2.0**-10


@pytest.mark.parametrize("shape", ["more units than lanes", "projections over a line", "unequal counts"])
def test_translation_scaling_and_permutation(shape, backend):
    x, labels = example(shape, torch.float64)
    distances = class_wasserstein(x, labels, backend=backend)
    assert_close(class_wasserstein(x + 11.0, labels, backend=backend), distances, torch.float64, scale=100)
    assert_close(class_wasserstein(-2.5 * x, labels, backend=backend), 2.5 * distances, torch.float64)
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert torch.equal(class_wasserstein(x[shuffled], labels[shuffled], backend=backend), distances)
    units = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(2))
    assert torch.equal(class_wasserstein(x[:, units], labels, backend=backend), distances[units])


@pytest.mark.parametrize("projections", [None, 3, 40])
@pytest.mark.parametrize("counts", [[4, 4, 4], [3, 4, 5]])
def test_nan_reaches_its_unit_and_class_and_no_other(projections, counts, backend):
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(labels), 20, *([projections] if projections else []), generator=generator)
    clean = class_wasserstein(x, labels, "pairs", backend=backend)
    x[1, 7] = float("nan")  # class 0: pairs (0, 1) and (0, 2)
    pairs = class_wasserstein(x, labels, "pairs", backend=backend)
    assert pairs[:2, 7].isnan().all()
    pairs[:2, 7] = clean[:2, 7]
    assert torch.equal(pairs, clean)
    for reduce in ("max", "mean"):
        assert class_wasserstein(x, labels, reduce, backend=backend).isnan().nonzero().flatten().tolist() == [7]


def test_infinity_gives_infinity(backend):
    x = torch.tensor([[1.0, 0.0], [float("inf"), 0.0], [2.0, 1.0], [3.0, 1.0]])
    actual = class_wasserstein(x, torch.tensor([0, 0, 1, 1]), backend=backend)
    assert torch.equal(actual, torch.tensor([float("inf"), 1.0]))


def test_samples_beyond_the_sorting_network(backend):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8193 + 9000, 3, generator=generator)
    labels = torch.arange(len(x)).ge(8193).long()
    assert_close(class_wasserstein(x, labels, backend=backend), by_scipy(x, labels)[0], torch.float32, scale=4)


def test_more_classes_than_the_published_package_allows(backend):
    x, labels = torch.randn(3 * 150, 4, generator=torch.Generator().manual_seed(0)), torch.arange(450) % 150
    assert_close(class_wasserstein(x, labels, backend=backend), by_scipy(x, labels).amax(0), torch.float32, scale=4)


@pytest.mark.parametrize("limit", [0, 5, 1 << 20])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sorting_column_by_column_gives_the_same_bits(shape, dtype, limit, extension):
    """Above the limit each column is sorted by itself; signs, ties, infinities and NaN included."""
    x, labels = example(shape, dtype)
    x.view(-1)[::3] = x.view(-1)[::3].round()
    x.view(-1)[::29] = -0.0
    x.view(-1)[::31], x.view(-1)[::37] = float("inf"), float("nan")
    columns = x if x.ndim == 3 else x.unsqueeze(2)
    order, offsets = group_by_class(labels, len(x), x.device)
    expected = native.class_wasserstein(columns, order, offsets, "pairs")
    actual = native.class_wasserstein(columns, order, offsets, "pairs", limit=limit)
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(), expected.nan_to_num())


@pytest.mark.slow
def test_a_hundred_thousand_samples_per_class(backend):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(210_000, 2, generator=generator) * torch.tensor([1.0, 1e-3])
    labels = torch.arange(len(x)).ge(100_000).long()
    assert_close(class_wasserstein(x, labels, backend=backend), by_scipy(x, labels)[0], torch.float32)


@pytest.mark.parametrize("shape", ["more units than lanes", "some counts equal", "many projections"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_on_any_instruction_set_and_thread_count(shape, dtype, extension):
    x, labels = example(shape, dtype)
    columns = x if x.ndim == 3 else x.unsqueeze(2)
    order, offsets = group_by_class(labels, len(x), x.device)
    best = ["baseline", "avx2", "avx512"].index(extension.build()["isa"]) + 1
    before = torch.get_num_threads()
    for reduce in REDUCED:
        results = []
        for isa in range(1, best + 1):
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                try:
                    results.append(native.class_wasserstein(columns, order, offsets, reduce, isa=isa))
                finally:
                    torch.set_num_threads(before)
        assert all(torch.equal(result, results[0]) for result in results[1:])


def test_gradients_are_left_out(backend):
    x = torch.randn(4, 2, requires_grad=True)
    assert not class_wasserstein(x, torch.tensor([0, 0, 1, 1]), backend=backend).requires_grad


@pytest.mark.parametrize(
    ("x", "labels", "options", "message"),
    [
        (torch.zeros(4), torch.zeros(4).long(), {}, r"shape \(4,\)"),
        (torch.zeros(0, 3), torch.zeros(0).long(), {}, "without empty"),
        (torch.zeros(4, 0), torch.tensor([0, 0, 1, 1]), {}, "without empty"),
        (torch.zeros(4, 3).long(), torch.tensor([0, 0, 1, 1]), {}, "int64"),
        ([[1.0]], torch.tensor([0]), {}, "list"),
        (torch.zeros(4, 3).to_sparse(), torch.tensor([0, 0, 1, 1]), {}, "sparse"),
        (torch.zeros(4, 3), torch.tensor([0.0, 0.0, 1.0, 1.0]), {}, "float32"),
        (torch.zeros(4, 3), torch.tensor([True, False, True, True]), {}, "bool"),
        (torch.zeros(4, 3), torch.tensor([0, 1, 1]), {}, r"\[4\]"),
        (torch.zeros(4, 3), torch.tensor([[0, 1, 1, 0]]), {}, r"\[4\]"),
        (torch.zeros(4, 3), torch.tensor([2, 2, 2, 2]), {}, "at least 2"),
        (torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]), {"reduce": "min"}, "'max', 'mean', 'pairs'"),
        (torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]), {"backend": "cudnn"}, r"auto, native, .*reference"),
    ],
)
def test_bad_input_is_named(x, labels, options, message):
    with pytest.raises(InputError, match=message):
        class_wasserstein(x, labels, **options)


def test_native_is_refused_off_the_cpu():
    with pytest.raises(BackendError, match="meta"):
        class_wasserstein(torch.zeros(4, 3, device="meta"), torch.tensor([0, 0, 1, 1]), backend="native")
