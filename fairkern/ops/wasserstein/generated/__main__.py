"""Writes `triton_kernel.py` beside this file: sorting networks and tiles of class pairs, without loops over registers.

Triton has no arrays of tensors, so that a network over n vectors and a tile of 8 × 8 sums must be straight-line code
if they are to live in registers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

NETWORKS = (4, 8, 16, 32, 64)
TRIANGLES = (4, 8, 10)
SQUARE = 8
PATH = Path(__file__).with_name("triton_kernel.py")

_HEAD = '''"""Sorting networks and tiles of class pairs.

Written by `python -m fairkern.ops.wasserstein.generated`: do not edit.

`ordered` is [line, step, class, lane]: a line holds `UNITS × PROJECTIONS` columns of the input, its steps are the
sorted samples of one block of projections after another. See `fairkern.ops.wasserstein.triton_kernel`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _compared(x, y):
    """Smaller and larger; a NaN makes both NaN."""
    return tl.minimum(x, y, tl.PropagateNan.ALL), tl.maximum(x, y, tl.PropagateNan.ALL)


@triton.jit
def _row(p_rows, x, row: tl.constexpr, count, o_column, m_column, b_pad, stride_n):
    """The columns of sample `row` of a class of `count` [1, 1] samples; `b_pad` where it has fewer."""
    i_sample = tl.load(p_rows + tl.minimum(count - 1, row))
    return tl.load(x + i_sample * stride_n + o_column, mask=m_column & (count > row), other=b_pad).to(tl.float32)


@triton.jit
def _stored(p_line, x, is_sample, m_step):
    """Padding becomes zero, so that it adds nothing where two classes of one size are compared."""
    tl.store(p_line, tl.where(is_sample, x, 0.0), mask=m_step)


@triton.jit
def _larger(x, y):
    return tl.maximum(x, y, tl.PropagateNan.ALL)


@triton.jit
def _distance(b_sum, divisor, ROWS: tl.constexpr, SPLIT: tl.constexpr, UNITS: tl.constexpr, PROJECTIONS: tl.constexpr):
    """[ROWS × SPLIT, lanes] sums → [ROWS, UNITS] distances."""
    b_total = tl.sum(tl.reshape(b_sum, [ROWS, SPLIT, UNITS, PROJECTIONS]), axis=3)
    return tl.sum(b_total, axis=1) / divisor


@triton.jit
def _taken(
    b_best,
    b_distance,
    i_first,
    i_second,
    out,
    numbers,
    o_unit,
    m_unit,
    equal,
    classes,
    units,
    REDUCE: tl.constexpr,
):
    """One pair of slots per row: its distances stored, or reduced into `b_best` [ROWS, UNITS]."""
    m_pair = (i_first < i_second) & (i_second < equal)
    if REDUCE == "pairs":
        i_a = tl.load(numbers + i_first, mask=m_pair, other=0)
        i_b = tl.load(numbers + i_second, mask=m_pair, other=0)
        i_low, i_high = tl.minimum(i_a, i_b), tl.maximum(i_a, i_b)
        i_pair = i_low * (2 * classes - i_low - 1) // 2 + i_high - i_low - 1
        tl.store(out + i_pair[:, None] * units + o_unit, b_distance, mask=m_pair[:, None] & m_unit)
    elif REDUCE == "max":
        b_best = _larger(b_best, tl.where(m_pair[:, None], b_distance, float("-inf")))
    else:
        b_best += tl.where(m_pair[:, None], b_distance, 0.0)
    return b_best
'''

_SORT = '''

@triton.jit
def _sort_{n}_kernel(
    ordered,
    x,
    rows,
    offsets,
    slots,
    units,
    projections,
    projection_blocks,
    first_line,
    lines,
    line_groups,
    longest,
    padded,
    stride_n,
    stride_c,
    stride_p,
    LINES: tl.constexpr,
    UNITS: tl.constexpr,
    PROJECTIONS: tl.constexpr,
):
    """Sorts up to {n} samples of one class, `LINES` lines at a time, into the class's slot."""
    LANES: tl.constexpr = UNITS * PROJECTIONS
    i_program = tl.program_id(0).to(tl.int64)
    i_class = i_program // line_groups
    o_line = (i_program % line_groups) * LINES + tl.arange(0, LINES)
    o_lane = tl.arange(0, LANES)
    i_line = first_line + o_line
    o_unit = (i_line // projection_blocks)[:, None] * UNITS + (o_lane // PROJECTIONS)[None, :]
    o_projection = (i_line % projection_blocks)[:, None] * PROJECTIONS + (o_lane % PROJECTIONS)[None, :]
    m_line = (o_line < lines)[:, None]
    m_column = m_line & (o_unit < units) & (o_projection < projections)
    o_column = o_unit * stride_c + o_projection * stride_p
    b_pad = tl.where(m_column, float("inf"), 0.0).to(x.dtype.element_ty)
    begin = tl.load(offsets + i_class)
    count = tl.load(offsets + i_class + 1 + tl.zeros([1, 1], tl.int64)) - begin
    p_rows = rows + begin
    steps = longest + tl.zeros([1, 1], tl.int64)
    p_line = ordered + ((o_line * longest * padded + tl.load(slots + i_class)) * LANES)[:, None] + o_lane[None, :]
    step = (i_program * 0 + padded) * LANES
'''

_DISTANCE = "    b_gap = _distance(b_{i}_{j}, divisor, ROWS, {split}, UNITS, PROJECTIONS)"
_TAKEN = (
    "    b_best = _taken(b_best, b_gap, {first} + {i}, {second} + {j}, out, numbers, o_unit, m_unit,"
    " equal, classes, units, REDUCE)"
)

_TRIANGLE = '''

@triton.jit
def _triangle_{n}_kernel(
    out,
    ordered,
    numbers,
    units,
    equal,
    classes,
    padded,
    steps,
    first_block,
    blocks,
    divisor,
    REDUCE: tl.constexpr,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    UNITS: tl.constexpr,
    PROJECTIONS: tl.constexpr,
):
    """All pairs of at most {n} classes: `ROWS` blocks of units, the steps of each dealt to `SPLIT` warps."""
    LANES: tl.constexpr = UNITS * PROJECTIONS
    i_program = tl.program_id(0).to(tl.int64)
    o_warp = tl.arange(0, ROWS * SPLIT)
    o_lane = tl.arange(0, LANES)
    i_block = i_program * ROWS + o_warp // SPLIT
    o_step = o_warp % SPLIT
    p_class = ordered + ((i_block * steps + o_step) * padded * LANES)[:, None] + o_lane[None, :]
    steps_here = tl.where(i_block < blocks, steps, 0) - o_step
'''

_SQUARE = '''

@triton.jit
def _square_{n}_kernel(
    out,
    ordered,
    numbers,
    tiles,
    units,
    equal,
    classes,
    padded,
    steps,
    first_block,
    tile_pairs,
    groups,
    divisor,
    REDUCE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    PROJECTIONS: tl.constexpr,
):
    """`ROWS` tiles of {n} × {n} class pairs for one block of units → [groups, units], or all pairs."""
    LANES: tl.constexpr = UNITS * PROJECTIONS
    i_program = tl.program_id(0).to(tl.int64)
    i_block = i_program // groups
    i_group = i_program % groups
    o_tile = i_group * ROWS + tl.arange(0, ROWS)
    o_lane = tl.arange(0, LANES)
    m_tile = o_tile < tile_pairs
    i_a = tl.load(tiles + o_tile, mask=m_tile, other=0) * {n}
    i_b = tl.load(tiles + tile_pairs + o_tile, mask=m_tile, other=0) * {n}
    i_first = tl.where(m_tile, i_a, equal)
    p_block = ordered + i_block * steps * padded * LANES + o_lane[None, :]
    p_a = p_block + (i_a * LANES)[:, None]
    p_b = p_block + (i_b * LANES)[:, None]
'''

_STORE = """    if REDUCE != "pairs":
        tl.store(out + o_unit, b_best, mask=m_unit)
"""

_STORE_GROUP = """    if REDUCE == "max":
        tl.store(out + i_group * units + o_unit, tl.reduce(b_best, 0, _larger)[None, :], mask=m_unit)
    elif REDUCE == "mean":
        tl.store(out + i_group * units + o_unit, tl.sum(b_best, axis=0)[None, :], mask=m_unit)
"""


def comparators(n: int) -> Iterator[tuple[int, int]]:
    """Batcher's odd-even merge sort of n wires, n a power of two: the smaller value goes to the first wire."""
    merged = 1
    while merged < n:
        distance = merged
        while distance >= 1:
            for start in range(distance % merged, n - distance, 2 * distance):
                for wire in range(start, min(start + distance, n - distance)):
                    if wire // (2 * merged) == (wire + distance) // (2 * merged):
                        yield wire, wire + distance
            distance //= 2
        merged *= 2


def _sort(n: int) -> str:
    lines = [f"    x{i} = _row(p_rows, x, {i}, count, o_column, m_column, b_pad, stride_n)" for i in range(n)]
    lines += [f"    x{i}, x{j} = _compared(x{i}, x{j})" for i, j in comparators(n)]
    lines += [f"    _stored(p_line + {i} * step, x{i}, count > {i}, m_line & (steps > {i}))" for i in range(n)]
    return _SORT.format(n=n) + "\n".join(lines) + "\n"


def _ends(pairs: Sequence[tuple[int, int]], **names: str) -> Iterator[str]:
    """What becomes of the sums."""
    yield '    b_best = tl.full([ROWS, UNITS], float("-inf") if REDUCE == "max" else 0.0, tl.float32)'
    for i, j in pairs:
        yield _DISTANCE.format(i=i, j=j, **names)
        yield _TAKEN.format(i=i, j=j, **names)


def _triangle(n: int) -> str:
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    lines = [f"    b_{i}_{j} = tl.zeros([ROWS * SPLIT, LANES], tl.float32)" for i, j in pairs]
    lines += ["    for step in range(0, steps, SPLIT):", "        m_step = (step < steps_here)[:, None]"]
    lines += [f"        x{i} = tl.load(p_class + {i} * LANES, mask=m_step, other=0.0)" for i in range(n)]
    lines += [f"        b_{i}_{j} += tl.abs(x{i} - x{j})" for i, j in pairs]
    lines += ["        p_class += SPLIT * padded * LANES"]
    lines += ["    i_row = i_program * ROWS + tl.arange(0, ROWS)"]
    lines += ["    o_unit = ((first_block + i_row) * UNITS)[:, None] + tl.arange(0, UNITS)[None, :]"]
    lines += ["    m_unit = (o_unit < units) & (i_row < blocks)[:, None]", "    i_zero = (i_row * 0).to(tl.int32)"]
    lines += _ends(pairs, first="i_zero", second="i_zero", split="SPLIT")
    return _TRIANGLE.format(n=n) + "\n".join(lines) + "\n" + _STORE


def _square(n: int) -> str:
    pairs = [(i, j) for i in range(n) for j in range(n)]
    lines = [f"    b_{i}_{j} = tl.zeros([ROWS, LANES], tl.float32)" for i, j in pairs]
    lines += ["    for _ in range(steps):"]
    lines += [f"        {side}{i} = tl.load(p_{side} + {i} * LANES)" for side in "ab" for i in range(n)]
    lines += [f"        b_{i}_{j} += tl.abs(a{i} - b{j})" for i, j in pairs]
    lines += [f"        p_{side} += padded * LANES" for side in "ab"]
    lines += [
        "    o_unit = (first_block + i_block) * UNITS + tl.arange(0, UNITS)[None, :]",
        "    m_unit = o_unit < units",
    ]
    lines += _ends(pairs, first="i_first", second="i_b", split="1")
    return _SQUARE.format(n=n) + "\n".join(lines) + "\n" + _STORE_GROUP


def source() -> str:
    """The whole of `triton_kernel.py`."""
    tables = [
        ("SORTS", [f"{n}: _sort_{n}_kernel" for n in NETWORKS]),
        ("TRIANGLES", [f"{n}: _triangle_{n}_kernel" for n in TRIANGLES]),
        ("SQUARES", [f"{SQUARE}: _square_{SQUARE}_kernel"]),
    ]
    ends = [
        f"{name} = {{{body}}}\n"
        if len(body := ", ".join(rows)) < 100
        else f"{name} = {{\n" + "".join(f"    {row},\n" for row in rows) + "}\n"
        for name, rows in tables
    ]
    parts = [_HEAD, *map(_sort, NETWORKS), *map(_triangle, TRIANGLES), _square(SQUARE), "\n\n", *ends]
    return "".join(parts)


if __name__ == "__main__":
    PATH.write_text(source())
