"""The index arithmetic of the CUDA gather, walked on the host block by block and thread by thread."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from fairkern.ops import _native, gather
from fairkern.ops.gather import cuda
from tests.ops.test_gather import CASES, DTYPES, assert_taken, numbered, tensors


def planned(jobs, module):
    valid = [(weight, {d % weight.ndim: index for d, index in indices.items()}) for weight, indices in jobs]
    return cuda.plan(valid, module)


def walked(jobs, module) -> list[torch.Tensor]:
    """What the device would write, made on the host; poisoned first, so that what is not written shows."""
    results, tasks, blocks, keep_alive = planned(jobs, module)
    for result in results:
        if result.numel():
            result.view(-1).view(torch.uint8).fill_(0xA5)
    module.gather_emulate(tasks=tasks.data_ptr(), jobs=len(jobs), blocks=blocks)
    del keep_alive
    return results


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_numpy(case, dtype, extension):
    shape, indices = CASES[case]
    weight = numbered(shape, dtype)
    assert_taken(walked([(weight, tensors(indices))], extension)[0], weight, indices)


def test_all_in_one_launch(extension):
    jobs = [(numbered(shape, dtype), indices) for shape, indices in CASES.values() for dtype in DTYPES]
    results = walked([(weight, tensors(indices)) for weight, indices in jobs], extension)
    for result, (weight, indices) in zip(results, jobs, strict=True):
        assert_taken(result, weight, indices)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("columns", [63, 64, 4096])
def test_more_than_a_block(columns, dtype, extension):
    weight = numbered((70, columns), dtype)
    for indices in ({0: list(range(0, 70, 3))}, {0: [69, 0], 1: list(range(0, columns, 2))}, {1: [columns - 1]}):
        assert_taken(walked([(weight, tensors(indices))], extension)[0], weight, indices)
        shifted = weight.view(-1)[1:].as_strided((69, columns), (columns, 1))  # not aligned to 16 bytes
        rows = {d: [i % 69 for i in index] if d == 0 else index for d, index in indices.items()}
        assert_taken(walked([(shifted, tensors(rows))], extension)[0], shifted, rows)


@pytest.mark.parametrize("strides", [(0, 1, 2), (0, 2, 1), (1, 0, 2)])
def test_an_index_per_expert(strides, extension):
    weight = numbered((5, 7, 12), torch.float32).permute(strides).contiguous().permute(strides)
    rows, columns = torch.randint(0, 7, (5, 3)), torch.randint(0, 12, (5, 8))
    for indices in ({1: rows}, {2: columns}, {1: rows, 2: columns}, {1: torch.tensor([2, 1]), 2: columns}):
        assert torch.equal(walked([(weight, indices)], extension)[0], gather(weight, indices, backend="reference"))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_random_shapes_and_indices(data):
    if _native.unavailable():
        pytest.skip("no extension")
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4), label="shape"))
    dims = data.draw(st.sets(st.integers(0, len(shape) - 1)), label="dims")
    indices = {d: data.draw(st.lists(st.integers(0, shape[d] - 1), max_size=9)) for d in dims}
    weight = numbered(shape, torch.bfloat16)
    assert_taken(walked([(weight, tensors(indices))], _native.extension())[0], weight, indices)


# Shapes that are not allocated: addresses are made up, and offsets are asked for, item by item.


def virtual(module, size, shape, strides, index=None):
    """Tasks and blocks of one tensor; strides in bytes, `index` (dim, positions)."""
    row = torch.zeros(1, module.TASK_COLUMNS, dtype=torch.int64)
    row[0, :4] = torch.tensor([1 << 40, 1 << 44, size, len(shape)])
    row[0, 4 : 4 + len(shape)] = torch.tensor(shape)
    row[0, 4 + module.TASK_DIMS : 4 + module.TASK_DIMS + len(shape)] = torch.tensor(strides)
    if index is not None:
        row[0, 4 + 2 * module.TASK_DIMS + index[0]] = index[1].data_ptr()
    tasks = torch.zeros(module.TASK_BYTES, dtype=torch.uint8)
    return tasks, module.gather_plan(table=row.data_ptr(), jobs=1, tasks=tasks.data_ptr())


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        (2, (3, 2**31 + 24)),  # a row longer than 2³¹
        (1, (2**16 + 3, 2**15 + 1)),  # just over 2³¹ units
        (1, (2**16 - 1, 2**15 - 1)),  # just under
        (16, (5, 7, 2**28)),
        (4, (2**20, 3, 3, 1025)),
    ],
)
def test_offsets_beyond_two_to_the_31(size, shape, extension):
    strides = [
        int(np.prod(shape[d + 1 :], dtype=object)) * size * (2 if d < len(shape) - 1 else 1) for d in range(len(shape))
    ]
    tasks, blocks = virtual(extension, size, shape, strides)
    rng = np.random.default_rng(0)
    highest = -1
    for block in [0, 1, blocks // 2, blocks - 1, *rng.integers(0, blocks, 40).tolist()]:
        for thread in (0, 17, 255):
            for i in (0, 3, 7):
                _, item, source, target = extension.gather_offsets(tasks.data_ptr(), 1, block, thread, i)
                if item < 0:
                    continue
                at, expected = target // size, 0
                for length, stride in zip(reversed(shape), reversed(strides), strict=True):
                    at, digit = divmod(at, length)
                    expected += digit * stride
                assert at == 0
                assert source == expected
                highest = max(highest, source)
    assert highest > 2**31


def test_indexed_rows_beyond_two_to_the_31(extension):
    rows = torch.tensor([5, 2**33, 2**32 + 1])
    tasks, blocks = virtual(extension, 4, (3, 8192), (8192 * 4, 4), (0, rows))
    assert blocks == 3
    for block in range(3):
        _, item, source, target = extension.gather_offsets(tasks.data_ptr(), 1, block, 0, 0)
        assert item * 16 == target == block * 8192 * 4
        assert source == rows[block] * 8192 * 4


@pytest.mark.parametrize("length", [1, 2, 3, 7, 641, 2**16 + 1, 2**30 - 1, 2**31 - 1])
def test_division_by_multiplication(length, extension):
    """The target's offset, taken apart by a dimension of any length, has its digits."""
    shape = (max(1, (2**31 - 1) // length), length)
    tasks, blocks = virtual(extension, 16, shape, (1 << 31, 16))
    for block in {0, blocks // 3, blocks - 1}:
        for thread in range(0, 256, 51):
            _, item, source, _ = extension.gather_offsets(tasks.data_ptr(), 1, block, thread, 0)
            assert item < 0 or source == item // length * (1 << 31) + item % length * 16


def test_bad_tables_are_refused(extension):
    with pytest.raises(ValueError, match="null pointer"):
        extension.gather_plan(table=0, jobs=1, tasks=0)
    with pytest.raises(ValueError, match="element size is 3"):
        virtual(extension, 3, (2,), (3,))
