"""Cases of the Triton kernels beyond the tables of `tests/ops`: on a GPU (`-m gpu`), or in the interpreter, which
`test_interpreted.py` starts.
"""

from __future__ import annotations

import pytest
import torch

from fairkern import env
from fairkern.errors import BackendError
from fairkern.ops import _triton, backends, class_wasserstein, gather, taylor_many, taylor_sums
from tests.tolerances import assert_close

pytest.importorskip("triton")

from fairkern.ops.wasserstein import triton_kernel as wasserstein_kernel

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cpu") if env.triton_interpreted() else torch.device("cuda", 0)


def samples(counts: list[int], units: int, projections: int | None, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    shape = (len(labels), units, *([projections] if projections else []))
    x = torch.randn(shape, generator=generator) + 0.2 * labels.view(-1, *[1] * (len(shape) - 1))
    return x.to(DEVICE), labels.to(DEVICE)


@pytest.fixture(autouse=True)
def poisoned():
    """A device; torch.empty holds NaN there."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    if reason := _triton.unavailable(DEVICE):
        pytest.skip(reason)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not env.triton_interpreted(), reason="TRITON_INTERPRET is not 1")
def test_triton_is_interpreted():
    assert all(row.get("triton") is None for row in backends("cpu").values())
    assert "interpreter" in backends("cuda")["gather"]["triton"]


@pytest.mark.parametrize(
    ("counts", "units", "projections"),
    [
        ([3] * 12, 5, 3),  # tiles, a part of the last
        ([5] * 11, 3, 9),  # tiles, projections over several lines
        ([17] * 3, 2, None),
        ([33] * 2, 2, None),  # network of 64
        ([65, 65], 3, None),  # torch.sort
        ([66, 70, 66], 3, 2),  # torch.sort, merge
        ([40] * 2, 1, 90),  # steps split over warps
        ([1, 2], 1, None),
        ([2, 2, 2, 3, 3, 1, 2, 2, 2, 2, 2, 2], 3, None),  # tiles and merge
        ([2, 3, 4, 5, 6, 7], 3, 2),  # merge alone
    ],
)
@pytest.mark.parametrize("reduce", ["max", "mean", "pairs"])
def test_class_wasserstein_on_triton(counts, units, projections, reduce):
    x, labels = samples(counts, units, projections)
    expected = class_wasserstein(x.double(), labels, reduce, backend="reference")
    actual = class_wasserstein(x, labels, reduce, backend="triton")
    assert_close(actual, expected, torch.float32, scale=4)
    assert torch.equal(actual, class_wasserstein(x, labels, reduce, backend="triton"))


@pytest.mark.parametrize("counts", [[3] * 5, [3] * 12, [2, 3, 4, 3], [65, 66]])
def test_a_small_workspace_changes_nothing_on_triton(counts, monkeypatch):
    x, labels = samples(counts, 70, 2)
    whole = class_wasserstein(x, labels, backend="triton")
    monkeypatch.setattr(wasserstein_kernel, "WORKSPACE", 1)
    monkeypatch.setattr(wasserstein_kernel, "MERGE_GROUPS", 1)
    assert torch.equal(class_wasserstein(x, labels, backend="triton"), whole)


def test_nan_beyond_the_networks_on_triton():
    x, labels = samples([66, 70, 70], 2, None)
    x[1, 0] = float("nan")
    pairs = class_wasserstein(x, labels, "pairs", backend="triton")
    assert pairs.isnan().tolist() == [[True, False], [True, False], [False, False]]


def test_taylor_many_equals_one_by_one_on_triton():
    generator = torch.Generator().manual_seed(0)
    shapes = [
        ((2, 5, 6, 7), 1),
        ((3, 4), 1),
        ((2, 9, 8), 2),
        ((2, 64, 2, 2), 1),
        ((1, 3, 40, 40), 1),
        ((2, 3, 4, 5), 2),
    ]
    jobs = []
    for dtype in (torch.float32, torch.float16):
        for shape, dim in shapes:
            act, grad = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(2))
            jobs.append((act, grad, dim))
            if act.ndim == 4:
                last = torch.channels_last
                jobs.append((act.contiguous(memory_format=last), grad.contiguous(memory_format=last), dim))
                jobs.append((act, grad.contiguous(memory_format=last), dim))
                jobs.append((act.transpose(2, 3).contiguous().transpose(2, 3), grad, dim))
    for job, together in zip(jobs, taylor_many(jobs, backend="triton"), strict=True):
        exact = taylor_sums(job[0].double(), job[1].double(), job[2], backend="reference")
        alone = taylor_sums(*job, backend="triton")
        size = (job[0].numel() / job[0].shape[job[2]]) ** 0.5
        for field in ("signed", "per_sample", "activation"):
            assert torch.equal(getattr(alone, field), getattr(together, field))
            assert_close(getattr(alone, field), getattr(exact, field), job[0].dtype, scale=size)


def test_taylor_splits_one_sample_over_programs_on_triton():
    generator = torch.Generator().manual_seed(0)
    for shape, dim in (((2, 2, 20_000), 1), ((2, 2_000, 3), 2)):
        act, grad = (torch.randn(shape, generator=generator).to(DEVICE) for _ in range(2))
        exact = taylor_sums(act.double(), grad.double(), dim, backend="reference")
        actual = taylor_sums(act, grad, dim, backend="triton")
        assert_close(actual.per_sample, exact.per_sample, torch.float32, scale=200)
        assert_close(actual.signed, exact.signed, torch.float32, scale=200)


def test_gather_refuses_what_its_kernel_cannot_walk_on_triton():
    weight = torch.arange(3**5, device=DEVICE).view(3, 3, 3, 3, 3)
    keep = torch.tensor([2, 0], device=DEVICE)
    with pytest.raises(BackendError, match="at most 3"):
        gather(weight, dict.fromkeys(range(4), keep) | {4: keep}, backend="triton")
    four = dict.fromkeys(range(3), keep)
    assert torch.equal(gather(weight, four, backend="triton"), gather(weight, four, backend="reference"))


def test_double_precision_is_left_to_the_reference_on_triton():
    x, labels = samples([2, 2], 1, None)
    with pytest.raises(BackendError, match="add in float32"):
        class_wasserstein(x.double(), labels, backend="triton")
