"""Operators against what one would write without them. `pytest bench/test_operators.py --write-results`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from bench._compare import Comparison, Timing, compare
from fairkern import ops
from fairkern.ops.gram.packed import Packed

# units, classes, samples per class, projections → how many times as fast as eager torch
WASSERSTEIN = {(512, 10, 32, 128): 25.0, (512, 100, 32, 1): 15.0, (128, 100, 32, 16): 15.0}


def samples(units: int, classes: int, count: int, projections: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(classes * count, units, projections, generator=generator)
    return x, torch.arange(classes * count) % classes


def eager_class_wasserstein(x: Tensor, labels: Tensor) -> Tensor:
    """Sort per class, all distances by `cdist(p=1)`, mean over projections, max over pairs."""
    classes = int(labels.max()) + 1
    ordered = torch.stack([x[labels == k] for k in range(classes)]).sort(1).values
    columns = ordered.permute(2, 3, 0, 1).contiguous()
    return (torch.cdist(columns, columns, p=1) / columns.shape[-1]).mean(1).flatten(1).amax(1)


def settle(benchmark: Any, record: Callable[..., None], ours: Callable[[], object], timed: Comparison, **what: Any):
    benchmark.pedantic(ours, rounds=1)
    record(benchmark, timed, **what)


@pytest.mark.parametrize("shape", WASSERSTEIN, ids=lambda s: "C{}-K{}-n{}-P{}".format(*s))
def test_class_wasserstein_against_eager_torch(shape, benchmark, record):
    x, labels = samples(*shape)

    def ours() -> Tensor:
        return ops.class_wasserstein(x, labels)

    torch.testing.assert_close(ours(), eager_class_wasserstein(x, labels))
    timed = compare(ours, lambda: eager_class_wasserstein(x, labels), rounds=7, warmup=1)
    what = {"op": "class_wasserstein", "rival": "torch sort + cdist(p=1) + max", "shape": shape}
    what |= timed.bound("ratio", WASSERSTEIN[shape], at_least=True)
    settle(benchmark, record, ours, timed, **what)
    assert timed.ratio >= 10


def by_pot(x: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """POT takes columns: [n, units · projections] per class."""
    ot = pytest.importorskip("ot")

    columns = x.reshape(*x.shape[:2], -1)
    distances = [ot.wasserstein_1d(columns[j], columns[k]).reshape(x.shape[2:]).mean(-1) for j, k in pairs]
    return np.stack(distances).max(0)


def by_scipy(x: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    units, projections = x.shape[2:]
    result = np.zeros(units)
    for c, (j, k) in itertools.product(range(units), pairs):
        distance = np.mean([wasserstein_distance(x[j, :, c, p], x[k, :, c, p]) for p in range(projections)])
        result[c] = max(result[c], distance)
    return result


@pytest.mark.parametrize(("rival", "part"), [(by_pot, 32), (by_scipy, 4)], ids=["POT", "scipy"])
def test_class_wasserstein_against_libraries(rival, part, benchmark, record):
    """The rival gets the first `part` units, and its time is multiplied: it would take minutes for all."""
    shape = next(iter(WASSERSTEIN))
    x, labels = samples(*shape)
    classes = np.stack([x[labels == k].numpy() for k in range(shape[1])])[:, :, :part]
    pairs = list(itertools.combinations(range(shape[1]), 2))

    def theirs() -> np.ndarray:
        return rival(classes, pairs)

    def ours() -> Tensor:
        return ops.class_wasserstein(x, labels)

    np.testing.assert_allclose(theirs(), ours()[:part].numpy(), rtol=1e-4)
    timed = compare(ours, theirs, rounds=3, warmup=0)
    scale = shape[0] / part
    scaled = Timing(timed.rival.p20 * scale, timed.rival.p50 * scale, timed.rival.p80 * scale, timed.rival.rounds)
    whole = Comparison(timed.ours, scaled)
    settle(
        benchmark,
        record,
        ours,
        whole,
        op="class_wasserstein",
        rival=f"{'POT wasserstein_1d' if rival is by_pot else 'scipy wasserstein_distance'} per pair",
        shape=shape,
        rival_units=part,
        rival_time_multiplied_by=scale,
        **whole.bound("ratio", 500.0 if rival is by_pot else 1000.0, at_least=True),
    )


def pair(n: int, m: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, columns, generator=generator), torch.randn(m, columns, generator=generator)


@pytest.mark.parametrize(("n", "m"), [(256, 256), (1000, 777)])
def test_wasserstein_1d_against_scipy(n, m, benchmark, record):
    x, y = pair(n, m, 512)
    a, b = x.numpy(), y.numpy()

    def ours() -> Tensor:
        return ops.wasserstein_1d(x, y)

    def theirs() -> np.ndarray:
        return np.array([wasserstein_distance(a[:, c], b[:, c]) for c in range(a.shape[1])])

    np.testing.assert_allclose(theirs(), ours().numpy(), rtol=1e-4)
    timed = compare(ours, theirs, rounds=7, warmup=1)
    what = {"op": "wasserstein_1d", "rival": "scipy wasserstein_distance per column", "shape": [n, m, 512]}
    settle(benchmark, record, ours, timed, **what)
    assert timed.ratio >= 10


@pytest.mark.parametrize("n", [32, 1000, 100_000])
def test_wasserstein_1d_against_torch_sort(n, benchmark, record):
    x, y = pair(n, n, max(16, (1 << 20) // n))

    def ours() -> Tensor:
        return ops.wasserstein_1d(x, y)

    def theirs() -> Tensor:
        return (x.sort(0).values - y.sort(0).values).abs().mean(0)

    torch.testing.assert_close(ours(), theirs())
    timed = compare(ours, theirs, rounds=7, warmup=1)
    what = {"op": "wasserstein_1d", "rival": "torch.sort, then the mean", "shape": list(x.shape)}
    settle(benchmark, record, ours, timed, **what)
    assert timed.ratio >= 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kept", ["all", "half"])
def test_project_against_matmul(kept, dtype, layout, benchmark, record):
    """Some of a batch's samples onto 128 directions; the rival copies rows and layout as it must."""
    generator = torch.Generator().manual_seed(0)
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.randn(64, 64, 28, 28, generator=generator).to(dtype).contiguous(memory_format=form)
    onto = ops.directions(28 * 28, 128, seed=0)
    rows = None if kept == "all" else torch.arange(0, 64, 2)

    def ours() -> Tensor:
        return ops.project(x, onto, rows=rows)

    def theirs() -> Tensor:
        return (x if rows is None else x[rows]).flatten(2).float() @ onto

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-4)
    timed = compare(ours, theirs, rounds=11)
    what = {"op": "project", "rival": "matmul (MKL)", "shape": list(x.shape), "rows": kept}
    what |= timed.bound("relative_cost", 0.8, at_least=False)
    settle(benchmark, record, ours, timed, **what)


@pytest.mark.parametrize("layout", ["units-last", "units-first"])
@pytest.mark.parametrize(("units", "vectors"), [(128, 8192), (512, 4096), (2048, 2048)])
def test_gram_against_a_whole_product(units, vectors, layout, benchmark, record):
    """Half of a symmetric matrix, added to sums in float64, against the product that makes both halves, not added."""
    x = torch.randn(vectors, units, generator=torch.Generator().manual_seed(0)).T
    x = x.contiguous() if layout == "units-first" else x
    sums = Packed.zeros(units, x.device)

    def ours() -> None:
        sums.add_gram(x)

    ours()
    torch.testing.assert_close(sums.full(), x.double() @ x.double().T, rtol=1e-4, atol=1e-2)
    timed = compare(ours, lambda: x @ x.T, rounds=11)
    what = {"op": "gram", "rival": "matmul (MKL), both halves", "shape": [units, vectors], "layout": layout}
    what |= timed.bound("relative_cost", 0.6, at_least=False)
    settle(benchmark, record, ours, timed, **what)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gather_rows_and_columns(dtype, benchmark, record):
    weight, rows, columns = matrix(dtype)
    what = {"shape": [4096, 11008], "dtype": str(dtype)}

    def ours() -> Tensor:
        return ops.gather(weight, {0: rows, 1: columns})

    def twice() -> Tensor:
        return weight.index_select(0, rows).index_select(1, columns)

    assert torch.equal(ours(), twice())
    timed = compare(ours, twice, rounds=15)
    what |= timed.bound("ratio", 2.0, at_least=True)
    settle(benchmark, record, ours, timed, op="gather", rival="index_select twice", **what)
    assert timed.ratio >= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gather_rows(dtype, benchmark, record):
    weight, rows, _ = matrix(dtype)
    what = {"shape": [4096, 11008], "dtype": str(dtype)}
    taken = weight[rows]

    def ours() -> Tensor:
        return ops.gather(weight, {0: rows})

    timed = compare(ours, taken.clone, rounds=25)
    what |= timed.bound("relative_cost", 1.05, at_least=False)
    settle(benchmark, record, ours, timed, op="gather", rival="clone of the result", **what)
    assert timed.ratio >= 0.8


def matrix(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix of a Llama-like MLP, and a random half of its rows and columns, ascending."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4096, 11008, generator=generator).to(dtype)
    rows, columns = (torch.randperm(n, generator=generator)[: n // 2].sort().values for n in weight.shape)
    return weight, rows, columns


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_taylor_against_a_dot_product(layout, dtype, benchmark, record):
    """All three sums against one `torch.dot` over the same elements in float32: its bandwidth is the ceiling."""
    shape = (64, 256, 56, 56)
    generator = torch.Generator().manual_seed(0)
    act, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    flat = act.to(dtype).flatten(), grad.to(dtype).flatten()
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    act, grad = (t.to(dtype).contiguous(memory_format=form) for t in (act, grad))

    def ours() -> ops.TaylorSums:
        return ops.taylor_sums(act, grad)

    timed = compare(ours, lambda: torch.dot(*flat), rounds=11)
    what = {"shape": shape, "layout": layout, "dtype": str(dtype), **timed.bound("ratio", 0.8, at_least=True)}
    settle(benchmark, record, ours, timed, op="taylor_sums", rival="torch.dot over the same bytes", **what)
    if dtype == torch.float32:
        assert timed.ratio >= 0.8


def test_taylor_against_eager_torch(benchmark, record):
    shape = (64, 256, 56, 56)
    generator = torch.Generator().manual_seed(0)
    act, grad = (torch.randn(shape, generator=generator) for _ in range(2))

    def ours() -> ops.TaylorSums:
        return ops.taylor_sums(act, grad)

    def eager() -> tuple[Tensor, Tensor, Tensor]:
        per_sample = (act * grad).sum((2, 3))
        return per_sample.sum(0), per_sample.abs().sum(0), act.sum((0, 2, 3))

    timed = compare(ours, eager, rounds=7)
    settle(benchmark, record, ours, timed, op="taylor_sums", rival="(act * grad).sum and act.sum", shape=shape)


def test_taylor_into_running_sums(benchmark, record):
    """A batch of a small layer, as a pass adds it: against new sums, then added to the running ones."""
    generator = torch.Generator().manual_seed(0)
    act, grad = (torch.randn(64, 64, 8, 8, generator=generator) for _ in range(2))
    running, beside = ops.TaylorSums.zeros(64), ops.TaylorSums.zeros(64)

    def ours() -> ops.TaylorSums:
        return ops.taylor_sums(act, grad, out=running, scale=64.0)

    def apart() -> None:
        sums = ops.taylor_sums(act, grad)
        for total, new, scale in zip(beside.fields, sums.fields, (64.0, 64.0, 1.0), strict=True):
            total.add_(new.double() * scale)

    timed = compare(ours, apart, rounds=101)
    what = {"op": "taylor_sums, running", "rival": "taylor_sums, then added", "shape": list(act.shape)}
    settle(benchmark, record, ours, timed, **what)


def test_tod_curves_of_a_model(benchmark, record):
    """The groups of ResNet-50 at once against one after the other."""
    sizes = [64] * 7 + [128] * 8 + [256] * 13 + [512] * 7 + [1024, 2048]
    generator = torch.Generator().manual_seed(0)
    u, r = (torch.randn(sum(sizes), generator=generator, dtype=torch.float64) for _ in range(2))

    def ours() -> Tensor:
        return ops.tod_curves(u, r, sizes)

    def one_by_one() -> Tensor:
        parts = zip(u.split(sizes), r.split(sizes), strict=True)
        return torch.cat([ops.tod_curve(a, b, backend="reference") for a, b in parts])

    assert torch.equal(ours(), one_by_one())
    timed = compare(ours, one_by_one, rounds=21)
    what = {"op": "tod_curves", "rival": "the reference, group by group", "shape": [len(sizes), sum(sizes)]}
    settle(benchmark, record, ours, timed, **what)


def test_tod_curve_of_a_wide_layer(benchmark, record):
    """Against the definition by prefix masks, k by k."""
    generator = torch.Generator().manual_seed(0)
    u, r = (torch.randn(4096, generator=generator, dtype=torch.float64) for _ in range(2))

    def by_prefixes() -> Tensor:
        low, high = u.argsort(stable=True), r.argsort(stable=True, descending=True)
        inside = torch.zeros(len(u), dtype=torch.int64)
        curve = torch.empty(len(u), dtype=torch.float64)
        for k in range(len(u)):
            inside[low[k]] += 1
            inside[high[k]] += 1
            curve[k] = (inside == 2).sum() / (k + 1)
        return curve

    def ours() -> Tensor:
        return ops.tod_curve(u, r)

    torch.testing.assert_close(ours(), by_prefixes(), rtol=1e-6, atol=0)
    timed = compare(ours, by_prefixes, rounds=5, warmup=1)
    settle(benchmark, record, ours, timed, op="tod_curve", rival="prefix masks", shape=[4096])
