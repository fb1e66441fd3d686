from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fairkern.errors import BackendError, InputError
from fairkern.ops import gather, gather_many

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.float8_e4m3fn,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]

# shape → dimension → kept positions
CASES = {
    "vector": ((9,), {0: [0, 3, 4, 8]}),
    "rows": ((6, 5), {0: [1, 4]}),
    "columns": ((6, 50), {1: [*range(3, 20), *range(30, 41)]}),
    "columns, one by one": ((6, 50), {1: [0, 2, 4, 9, 11, 30, 49]}),
    "rows and columns": ((7, 8), {0: [6, 0, 3], 1: [1, 2, 7]}),
    "convolution": ((8, 6, 3, 3), {0: [0, 2, 3, 7], 1: [5, 1]}),
    "experts": ((4, 6, 10), {0: [1, 3], 2: [0, 1, 2, 9]}),
    "all three": ((4, 6, 10), {0: [3], 1: [2, 1], 2: [0, 9]}),
    "middle": ((3, 5, 7), {1: [4, 0]}),
    "repeated": ((3, 4), {0: [2, 2, 2], 1: [0, 0]}),
    "everything": ((3, 4), {0: [0, 1, 2], 1: [0, 1, 2, 3]}),
    "nothing named": ((3, 4, 5), {}),
    "nothing kept": ((3, 4), {0: []}),
    "empty dimension": ((0, 4), {1: [1]}),
    "lengths of one": ((1, 5, 1), {0: [0], 1: [2, 3]}),
    "scalar": ((), {}),
    "negative dimension": ((3, 4), {-1: [3, 0]}),
}


@pytest.fixture
def backend(gather_backend: str) -> str:
    return gather_backend


def numbered(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    values = torch.arange(int(np.prod(shape))) % 251
    if dtype == torch.bool:
        return (values % 3 == 0).reshape(shape)
    return values.to(torch.float32).to(dtype).reshape(shape)


def by_numpy(weight: torch.Tensor, indices: dict[int, list[int]]) -> np.ndarray:
    """Element bytes, taken one dimension at a time."""
    array = weight.contiguous().reshape(*weight.shape, 1).view(torch.uint8).numpy()
    for dim, index in indices.items():
        array = np.take(array, np.array(index, dtype=np.int64), axis=dim % weight.ndim)
    return array


def assert_taken(actual: torch.Tensor, weight: torch.Tensor, indices: dict[int, list[int]]) -> None:
    expected = by_numpy(weight, indices)
    assert actual.dtype == weight.dtype
    assert actual.is_contiguous()
    assert actual.shape == expected.shape[:-1]
    assert np.array_equal(actual.reshape(*actual.shape, 1).view(torch.uint8).numpy(), expected)


def tensors(indices: dict[int, list[int]]) -> dict[int, torch.Tensor]:
    return {dim: torch.tensor(index, dtype=torch.int64) for dim, index in indices.items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_numpy(case, dtype, backend):
    shape, indices = CASES[case]
    weight = numbered(shape, dtype)
    assert_taken(gather(weight, tensors(indices), backend=backend), weight, indices)


@pytest.mark.parametrize("case", ["rows and columns", "convolution", "experts", "middle", "nothing named"])
def test_any_strides(case, backend):
    shape, indices = CASES[case]
    weight = numbered(shape, torch.float32)
    dims = list(range(weight.ndim))
    for order in itertools.permutations(dims):
        inverse = [order.index(d) for d in dims]
        view = weight.permute(order).contiguous().permute(inverse)
        assert_taken(gather(view, tensors(indices), backend=backend), weight, indices)
    every_other = torch.stack((weight, -weight), dim=-1)[..., 0]
    assert_taken(gather(every_other, tensors(indices), backend=backend), weight, indices)


def test_expanded_and_offset_views(backend):
    expanded = torch.arange(5.0).expand(4, 5)
    assert_taken(gather(expanded, tensors({0: [0, 3], 1: [1, 4]}), backend=backend), expanded, {0: [0, 3], 1: [1, 4]})
    part = torch.arange(60.0).view(6, 10)[2:, 3:]
    assert_taken(gather(part, tensors({0: [3, 0], 1: [6, 2]}), backend=backend), part, {0: [3, 0], 1: [6, 2]})
    backwards = torch.arange(10)[::2]
    strided_index = backwards[1:4]
    assert torch.equal(gather(torch.arange(10.0), {0: strided_index}, backend=backend), torch.tensor([2.0, 4.0, 6.0]))


def test_lazily_conjugated_weight(backend):
    weight = torch.tensor([1 + 2j, 3 - 4j]).conj()
    assert torch.equal(gather(weight, tensors({0: [1]}), backend=backend), torch.tensor([3 + 4j]))


@pytest.mark.parametrize("shape", [(700, 900), (3, 300_000), (2, 3, 70_000)])
def test_large_enough_for_threads(shape, backend):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    indices = {0: [1, 0], weight.ndim - 1: list(range(5, shape[-1] - 5))}
    assert_taken(gather(weight, tensors(indices), backend=backend), weight, indices)
    scattered = {weight.ndim - 1: list(range(0, shape[-1], 2))}
    assert_taken(gather(weight, tensors(scattered), backend=backend), weight, scattered)
    assert torch.equal(gather(weight, {}, backend=backend), weight)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float32, torch.complex128], ids=str)
def test_an_index_for_every_expert(dtype, backend):
    weight = numbered((4, 6, 10), dtype)
    rows = torch.tensor([[0, 5], [3, 3], [1, 2], [4, 0]])
    columns = torch.tensor([[9, 1, 2], [0, 1, 2], [7, 7, 0], [5, 4, 3]])
    if backend == "triton":
        with pytest.raises(BackendError, match="no index per position"):
            gather(weight, {1: rows}, backend=backend)
        return
    for experts in ([0, 1, 2, 3], [3, 1], [2, 2], []):
        taken = gather(weight, {0: torch.tensor(experts, dtype=torch.int64), 1: rows, 2: columns}, backend=backend)
        assert taken.shape == (len(experts), 2, 3)
        for result, e in zip(taken, experts, strict=True):
            assert_taken(result, weight[e], {0: rows[e].tolist(), 1: columns[e].tolist()})
    shared = gather(weight, {1: torch.tensor([5, 2]), -1: columns}, backend=backend)
    for result, e in zip(shared, range(4), strict=True):
        assert_taken(result, weight[e], {0: [5, 2], 1: columns[e].tolist()})
    every = gather(weight, {1: rows}, backend=backend)
    assert_taken(every[2], weight[2], {0: [1, 2]})


def test_many_at_once(backend):
    jobs = [(numbered(shape, torch.float32), indices) for shape, indices in CASES.values()]
    results = gather_many([(weight, tensors(indices)) for weight, indices in jobs], backend=backend)
    for result, (weight, indices) in zip(results, jobs, strict=True):
        assert_taken(result, weight, indices)
    assert gather_many([], backend=backend) == []


def test_result_is_new_and_without_gradient(backend):
    weight = torch.zeros(3, 2, requires_grad=True)
    result = gather(weight, {}, backend=backend)
    assert not result.requires_grad
    assert result.data_ptr() != weight.data_ptr()


def test_meta_tensors_take_the_reference():
    weight = torch.empty(5, 4, device="meta")
    assert gather(weight, {0: torch.tensor([0, 2])}).shape == (2, 4)
    with pytest.raises(BackendError, match="meta"):
        gather(weight, {}, backend="native")


def test_more_dimensions_than_the_extension_takes():
    weight = torch.arange(2**13).view([2] * 13)
    expected = weight[1][:, :1]
    assert torch.equal(gather(weight, tensors({0: [1], 2: [0]})), expected.unsqueeze(0))
    with pytest.raises(BackendError, match="13"):
        gather(weight, {}, backend="native")


@pytest.mark.parametrize(
    ("weight", "indices", "message"),
    [
        (torch.zeros(3, 4), {0: torch.tensor([0, 3])}, r"indices 0\[0\] goes from 0 to 3.*0 to 2"),
        (torch.zeros(3, 4), {1: torch.tensor([-1])}, r"indices 0\[1\] goes from -1"),
        (torch.zeros(3, 4), {0: torch.tensor([0], dtype=torch.int32)}, "int32"),
        (torch.zeros(3, 4), {0: torch.tensor([True, False, True])}, "bool"),
        (torch.zeros(3, 4), {0: torch.tensor([[[0]]])}, "one dimension"),
        (torch.zeros(3, 4), {0: torch.tensor([[0], [0], [0]])}, "another dimension"),
        (torch.zeros(3, 4), {1: torch.tensor([[0], [1]])}, "a row per position"),
        (torch.zeros(3, 4), {0: [0, 1]}, "list"),
        (torch.zeros(3, 4), {2: torch.tensor([0])}, "-2 to 1"),
        (torch.zeros(3, 4), {1: torch.tensor([0]), -1: torch.tensor([0])}, "twice"),
        (torch.zeros(0, 4), {0: torch.tensor([0])}, "goes from 0"),
        (torch.zeros(()), {0: torch.tensor([0])}, "0 dimensions"),
        (torch.zeros(3, 4), [torch.tensor([0])], "mapping"),
        ([1.0], {}, "list"),
        (torch.zeros(3, 4).to_sparse(), {}, "sparse"),
    ],
)
def test_bad_input_is_named(weight, indices, message):
    with pytest.raises(InputError, match=message):
        gather(weight, indices)


def test_the_job_at_fault_is_named():
    with pytest.raises(InputError, match=r"indices 1\[0\]"):
        gather_many([(torch.zeros(3), {}), (torch.zeros(3), {0: torch.tensor([7])})])


def test_jobs_are_refused_where_tensors_have_no_values():
    with pytest.raises(InputError, match="call it outside of that"):
        torch.func.vmap(lambda x: gather_many([(x, {0: torch.tensor([1])})])[0])(torch.zeros(2, 3))


@pytest.mark.large
def test_more_than_two_to_the_31_bytes_and_elements(extension):
    weight = torch.zeros(2**16 + 8, 2**15, dtype=torch.int8)
    weight[-1, -1], weight[-2, 5] = 7, 9
    rows, columns = torch.tensor([len(weight) - 2, len(weight) - 1]), torch.tensor([5, 2**15 - 1])
    assert gather(weight, {0: rows, 1: columns}).tolist() == [[9, 0], [0, 7]]
