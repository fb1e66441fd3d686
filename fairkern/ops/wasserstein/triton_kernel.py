"""`class_wasserstein` on a GPU: sort each class, then an L1 "matmul" between classes with the maximum fused.

For one unit the sorted samples of class k over all projections are a vector s_k of R = P·n numbers, and the distance
of two classes of n samples is Σ|s_j − s_k| / R: a matrix product with |a − b| in the place of a·b. So:

1. Sort. A column's n samples are n registers of one lane, sorted by a network of minimum and maximum without branches
   or shuffles. They are stored as `[line, step, class, lane]`: a line is 32 columns (units × projections, 128 bytes),
   its steps are the samples, so that all classes of a step are neighbours and their addresses are constants apart.
2. Pairs. A warp holds the sums of a tile of 8 × 8 pairs in registers, a lane for each column: 16 loads for 64 sums,
   two additions each. Warps of a program take neighbouring tiles of the upper triangle and meet in L1. At most
   10 classes are one triangle, where each sample is loaded once.
3. The sums are added over the lanes of a unit, divided, and reduced over pairs before anything is written. Each
   program writes its own row; torch reduces the rows in a fixed order. No atomics, and no K × K matrix.

Unequal counts n, m: ∫|F⁻¹ − G⁻¹| on the common refinement of the grids i/n and j/m, in integers of 1/(n·m): both
samples advance by counts alone, so all lanes take the same steps. Classes of the most frequent size take path 2.
A NaN spreads through its class's network and with it to every pair of the class.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairkern.ops import _triton
from fairkern.ops.wasserstein.config import MERGE_GROUPS, NETWORKS, TILE, WORKSPACE, Settings, Slots, settings
from fairkern.ops.wasserstein.generated.triton_kernel import SORTS, SQUARES, TRIANGLES, _distance, _larger, _taken


@triton.jit
def _merge_kernel(
    out,
    ordered,
    numbers,
    counts,
    pairs,
    units,
    classes,
    projections,
    projection_blocks,
    longest,
    padded,
    first_block,
    pair_count,
    groups,
    batches,
    steps,
    REDUCE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    PROJECTIONS: tl.constexpr,
):
    """Pairs of classes of any sizes, `ROWS` at a time, for one block of units."""
    LANES: tl.constexpr = UNITS * PROJECTIONS
    i_program = tl.program_id(0).to(tl.int64)
    i_block = i_program // groups
    i_group = i_program % groups
    o_lane = tl.arange(0, LANES)[None, :]
    o_unit = (first_block + i_block) * UNITS + tl.arange(0, UNITS)[None, :]
    m_unit = o_unit < units
    step_stride = (i_program * 0 + padded) * LANES
    line_stride = step_stride * longest
    p_block = ordered + i_block * projection_blocks * line_stride + o_lane
    b_best = tl.full([ROWS, UNITS], float("-inf") if REDUCE == "max" else 0.0, tl.float32)
    for batch in range(batches):
        o_pair = (i_group * batches + batch) * ROWS + tl.arange(0, ROWS)
        m_pair = o_pair < pair_count
        i_first = tl.load(pairs + o_pair, mask=m_pair, other=0)
        i_second = tl.load(pairs + pair_count + o_pair, mask=m_pair, other=0)
        n_first = tl.load(counts + i_first)
        n_second = tl.load(counts + i_second)
        o_first = i_first * 0
        o_second = i_first * 0
        begin = i_first * 0
        b_sum = tl.zeros([ROWS, LANES], tl.float32)
        for _ in range(steps):
            end_first = (o_first + 1) * n_second
            end_second = (o_second + 1) * n_first
            end = tl.minimum(end_first, end_second)
            m_step = (o_first < n_first)[:, None]
            b_width = (end - begin).to(tl.float32)[:, None]
            p_first = p_block + (o_first * step_stride + i_first * LANES)[:, None]
            p_second = p_block + (o_second * step_stride + i_second * LANES)[:, None]
            for block in range(projection_blocks):
                x = tl.load(p_first + block * line_stride, mask=m_step, other=0.0)
                y = tl.load(p_second + block * line_stride, mask=m_step, other=0.0)
                b_sum += b_width * tl.abs(x - y)
            o_first += (end == end_first).to(tl.int64)
            o_second += (end == end_second).to(tl.int64)
            begin = end
        divisor = (n_first * n_second * projections).to(tl.float32)[:, None]
        b_gap = _distance(b_sum, divisor, ROWS, 1, UNITS, PROJECTIONS)
        i_a = tl.where(m_pair, i_first, classes)
        b_best = _taken(b_best, b_gap, i_a, i_second, out, numbers, o_unit, m_unit, classes, classes, units, REDUCE)
    if REDUCE == "max":
        tl.store(out + i_group * units + o_unit, tl.reduce(b_best, 0, _larger)[None, :], mask=m_unit)
    elif REDUCE == "mean":
        tl.store(out + i_group * units + o_unit, tl.sum(b_best, axis=0)[None, :], mask=m_unit)


def class_wasserstein(
    x: Tensor, order: Tensor, offsets: Tensor, reduce: str, network_limit: int = NETWORKS[-1]
) -> Tensor:
    """[N, C, P] float32, bfloat16 or float16, any strides → float32 [C] or [pairs, C]; arguments as the reference.

    Classes of more than `network_limit` samples are sorted by `torch.sort`.
    """
    bounds = offsets.tolist()
    counts = [end - begin for begin, end in pairwise(bounds)]
    classes, (_, units, projections) = len(counts), x.shape
    slots = Slots.of(counts)
    chosen = settings(classes, projections, slots, x.device, 64 if torch.version.hip else 32, network_limit)
    numbers = torch.tensor(slots.numbers, dtype=torch.int64, device=x.device)
    pairs = classes * (classes - 1) // 2
    blocks = -(-units // chosen.units)
    block_size = (
        -(-projections // chosen.projections) * slots.longest * chosen.padded * chosen.units * chosen.projections
    )
    at_once = max(1, min(blocks, WORKSPACE // block_size))
    ordered = torch.empty(at_once * block_size, dtype=torch.float32, device=x.device)
    results: list[Tensor] = []
    if reduce == "pairs":
        results.append(torch.empty(pairs, units, dtype=torch.float32, device=x.device))
    equal = _equal_launches(x, chosen, slots, numbers, results, reduce)
    unequal = _unequal_launches(x, chosen, slots, counts, numbers, results, reduce)
    for first in range(0, blocks, at_once):
        count = min(at_once, blocks - first)
        if chosen.network is None:
            _sort_by_torch(ordered, x, order, bounds, slots, chosen, first, count)
        else:
            _sort(ordered, x, order, offsets, numbers, slots, chosen, first, count)
        for kernel, arguments, programs_per_block, rows, warps in (*equal, *unequal):
            here = {**arguments, "ordered": ordered, "first_block": first}
            if rows:  # the triangle takes several blocks per program
                here["blocks"] = count
            programs = -(-count // rows) if rows else count * programs_per_block
            _triton.launch(kernel, programs, x.device, here, warps)
    if reduce == "pairs":
        return results[0]
    partial = torch.cat(results)
    return partial.amax(0) if reduce == "max" else partial.sum(0) / pairs


def _sort(
    ordered: Tensor,
    x: Tensor,
    order: Tensor,
    offsets: Tensor,
    numbers: Tensor,
    slots: Slots,
    chosen: Settings,
    first: int,
    blocks: int,
) -> None:
    projection_blocks = -(-x.shape[2] // chosen.projections)
    lines = blocks * projection_blocks
    assert chosen.network is not None
    groups = -(-lines // chosen.lines)
    arguments = {
        "ordered": ordered,
        "x": x,
        "rows": order,
        "offsets": offsets,
        "slots": numbers.argsort(),
        "units": x.shape[1],
        "projections": x.shape[2],
        "projection_blocks": projection_blocks,
        "first_line": first * projection_blocks,
        "lines": lines,
        "line_groups": groups,
        "longest": slots.longest,
        "padded": chosen.padded,
        "stride_n": x.stride(0),
        "stride_c": x.stride(1),
        "stride_p": x.stride(2),
        "LINES": chosen.lines,
        "UNITS": chosen.units,
        "PROJECTIONS": chosen.projections,
    }
    _triton.launch(SORTS[chosen.network], groups * len(numbers), x.device, arguments, warps=chosen.lines)


def _sort_by_torch(
    ordered: Tensor,
    x: Tensor,
    order: Tensor,
    bounds: list[int],
    slots: Slots,
    chosen: Settings,
    first: int,
    blocks: int,
) -> None:
    """The same layout for classes beyond the networks, one `torch.sort` per class."""
    projection_blocks = -(-x.shape[2] // chosen.projections)
    shape = (blocks, projection_blocks, slots.longest, chosen.padded, chosen.units, chosen.projections)
    view = ordered[: blocks * projection_blocks * slots.longest * chosen.padded * chosen.units * chosen.projections]
    view = view.view(shape)
    here = x[:, first * chosen.units : (first + blocks) * chosen.units]
    padding = (0, projection_blocks * chosen.projections - x.shape[2], 0, blocks * chosen.units - here.shape[1])
    for slot, number in enumerate(slots.numbers):
        rows = order[bounds[number] : bounds[number + 1]]
        samples = torch.nn.functional.pad(here[rows].to(torch.float32).sort(0).values, padding)
        samples = samples.view(len(rows), blocks, chosen.units, projection_blocks, chosen.projections)
        samples = samples.permute(1, 3, 0, 2, 4)  # [block, projection block, sample, unit, projection]
        nan = samples[:, :, -1:].isnan()  # sorted to the end; every step shows it
        view[:, :, : len(rows), slot] = torch.where(nan, samples[:, :, -1:], samples)
        view[:, :, len(rows) :, slot] = 0.0


Launch = tuple[object, dict[str, object], int, int, int]  # kernel, arguments, programs or blocks per program, warps


def _equal_launches(
    x: Tensor, chosen: Settings, slots: Slots, numbers: Tensor, results: list[Tensor], reduce: str
) -> list[Launch]:
    """Pairs of classes of the most frequent size."""
    if slots.equal < 2:
        return []
    arguments = {
        "numbers": numbers,
        "units": x.shape[1],
        "equal": slots.equal,
        "classes": len(numbers),
        "padded": chosen.padded,
        "steps": -(-x.shape[2] // chosen.projections) * slots.longest,
        "divisor": float(slots.count * x.shape[2]),
        "REDUCE": reduce,
        "ROWS": chosen.rows,
        "UNITS": chosen.units,
        "PROJECTIONS": chosen.projections,
    }
    if chosen.triangle is not None:
        arguments |= {"out": _result(x, results, 1, reduce), "SPLIT": chosen.split}
        return [(TRIANGLES[chosen.triangle], arguments, 0, chosen.rows, chosen.warps)]
    side = -(-slots.equal // TILE)
    tiles = torch.triu_indices(side, side, device=x.device)
    tiles = tiles[:, torch.argsort(tiles[0] // 2 * side + tiles[1] // 4, stable=True)]  # neighbours share classes
    groups = -(-tiles.shape[1] // chosen.rows)
    arguments |= {
        "out": _result(x, results, groups, reduce),
        "tiles": tiles.contiguous(),
        "tile_pairs": tiles.shape[1],
        "groups": groups,
    }
    return [(SQUARES[TILE], arguments, groups, 0, chosen.warps)]


def _unequal_launches(
    x: Tensor,
    chosen: Settings,
    slots: Slots,
    counts: list[int],
    numbers: Tensor,
    results: list[Tensor],
    reduce: str,
) -> list[Launch]:
    """All other pairs."""
    pairs = torch.triu_indices(len(counts), len(counts), 1, device=x.device)
    if slots.equal > 1:
        pairs = pairs[:, pairs[1] >= slots.equal].contiguous()
    if not pairs.shape[1]:
        return []
    batches = -(-pairs.shape[1] // (chosen.merge_rows * MERGE_GROUPS))
    groups = -(-pairs.shape[1] // (chosen.merge_rows * batches))
    arguments = {
        "out": _result(x, results, groups, reduce),
        "numbers": numbers,
        "counts": torch.tensor([counts[number] for number in slots.numbers], dtype=torch.int64, device=x.device),
        "pairs": pairs,
        "units": x.shape[1],
        "classes": len(counts),
        "projections": x.shape[2],
        "projection_blocks": -(-x.shape[2] // chosen.projections),
        "longest": slots.longest,
        "padded": chosen.padded,
        "pair_count": pairs.shape[1],
        "groups": groups,
        "batches": batches,
        "steps": sum(sorted(counts)[-2:]) - 1,
        "REDUCE": reduce,
        "ROWS": chosen.merge_rows,
        "UNITS": chosen.units,
        "PROJECTIONS": chosen.projections,
    }
    return [(_merge_kernel, arguments, groups, 0, chosen.merge_rows)]


def _result(x: Tensor, results: list[Tensor], groups: int, reduce: str) -> Tensor:
    """Where a kernel writes: all pairs, or its own rows of partial results."""
    if reduce == "pairs":
        return results[0]
    results.append(torch.empty(groups, x.shape[1], dtype=torch.float32, device=x.device))
    return results[-1]
