"""The Gram matrix on a GPU: tiles of the upper triangle, vectors split over programs, added in a fixed order.

A program reads two blocks of channels over the same vectors in place (channels, an outer and an inner loop have a
stride each) and keeps a tile of Σ a aᵀ in float32. Float32 input is multiplied in float32 (`ieee`); the products of
bfloat16 and float16 are exact in float32, so these use the matrix units. Each program writes its own partial tile;
the second kernel adds them in order and writes both triangles. No atomics, and the result is exactly symmetric.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairkern import env
from fairkern.ops import _triton
from fairkern.ops._strides import innermost, merged, padded
from fairkern.ops.gram.config import splits, tile


@triton.jit
def _gram_partial_kernel(
    partials,
    totals,
    x,
    tiles,
    channels,
    positions,
    position_blocks,
    blocks,
    blocks_per_split,
    tile_count,
    stride_outer,
    stride_c,
    stride_p,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """[split, tile, CHANNELS, CHANNELS] and, from the tiles on the diagonal, [split, channel] sums."""
    i_program = tl.program_id(0).to(tl.int64)
    i_split = i_program // tile_count
    i_tile = i_program % tile_count
    i_first = tl.load(tiles + i_tile)
    i_second = tl.load(tiles + tile_count + i_tile)
    o_tile = tl.arange(0, CHANNELS)
    o_first = i_first * CHANNELS + o_tile
    o_second = i_second * CHANNELS + o_tile
    m_first = (o_first < channels)[:, None]
    m_second = (o_second < channels)[:, None]
    b_gram = tl.zeros([CHANNELS, CHANNELS], tl.float32)
    b_total = tl.zeros([CHANNELS], tl.float32)
    first_block = i_split * blocks_per_split
    i_outer = first_block // position_blocks
    first_position = (first_block % position_blocks) * POSITIONS
    for _ in range(first_block, tl.minimum(first_block + blocks_per_split, blocks)):
        o_position = first_position + tl.arange(0, POSITIONS)
        m_position = (o_position < positions)[None, :]
        p_x = x + i_outer * stride_outer + (o_position * stride_p)[None, :]
        b_first = tl.load(p_x + (o_first * stride_c)[:, None], mask=m_first & m_position, other=0.0)
        b_second = tl.load(p_x + (o_second * stride_c)[:, None], mask=m_second & m_position, other=0.0)
        if WIDEN:
            b_first, b_second = b_first.to(tl.float32), b_second.to(tl.float32)
        b_gram = tl.dot(b_first, tl.trans(b_second), b_gram, input_precision="ieee")
        b_total += tl.sum(b_first.to(tl.float32), axis=1)
        first_position += POSITIONS
        i_outer += (first_position >= positions).to(tl.int64)
        first_position = tl.where(first_position >= positions, 0, first_position)
    p_partial = partials + i_program * CHANNELS * CHANNELS + o_tile[:, None] * CHANNELS + o_tile[None, :]
    tl.store(p_partial, b_gram)
    tl.store(totals + i_split * channels + o_first, b_total, mask=(o_first < channels) & (o_first == o_second))


@triton.jit
def _gram_total_kernel(out, partials, tiles, channels, tile_count, split_count, CHANNELS: tl.constexpr):
    """One tile and its mirror image; on the diagonal the upper half decides."""
    i_tile = tl.program_id(0).to(tl.int64)
    i_first = tl.load(tiles + i_tile)
    i_second = tl.load(tiles + tile_count + i_tile)
    o_tile = tl.arange(0, CHANNELS)
    o_row = i_first * CHANNELS + o_tile
    o_column = i_second * CHANNELS + o_tile
    p_partial = partials + i_tile * CHANNELS * CHANNELS + o_tile[:, None] * CHANNELS + o_tile[None, :]
    b_gram = tl.zeros([CHANNELS, CHANNELS], tl.float32)
    for _ in range(split_count):
        b_gram += tl.load(p_partial)
        p_partial += tile_count * CHANNELS * CHANNELS
    m_row = (o_row < channels)[:, None]
    m_column = (o_column < channels)[None, :]
    m_upper = o_row[:, None] <= o_column[None, :]
    tl.store(out + (o_row * channels)[:, None] + o_column[None, :], b_gram, mask=m_row & m_column & m_upper)
    m_lower = m_row & m_column & (o_row[:, None] < o_column[None, :])
    tl.store(out + (o_column * channels)[None, :] + o_row[:, None], b_gram, mask=m_lower)


def gram(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Float32, bfloat16 or float16 of any shape and strides → float32 [C, C] and [C]."""
    others = [d for d in range(x.ndim) if d != dim]
    loops = merged(x, others)
    if len(loops) > 2 or not any((innermost(x.stride(dim), x.shape[dim]), *(stride == 1 for _, stride in loops))):
        x = x.contiguous()
        loops = merged(x, others)
    (outer, stride_outer), (positions, stride_p) = padded(loops, 2)
    channels = x.shape[dim]
    chosen = tile(channels, x.device)
    side = -(-channels // chosen.channels)
    tiles = torch.triu_indices(side, side, device=x.device)
    position_blocks = -(-positions // chosen.positions)
    blocks = outer * position_blocks
    count = splits(tiles.shape[1], blocks)
    per_split = -(-blocks // count)
    count = -(-blocks // per_split)
    shape = (count, tiles.shape[1], chosen.channels, chosen.channels)
    partials = torch.empty(shape, dtype=torch.float32, device=x.device)
    totals = torch.empty(count, channels, dtype=torch.float32, device=x.device)
    out = torch.empty(channels, channels, dtype=torch.float32, device=x.device)
    arguments = {
        "partials": partials,
        "totals": totals,
        "x": x,
        "tiles": tiles,
        "channels": channels,
        "positions": positions,
        "position_blocks": position_blocks,
        "blocks": blocks,
        "blocks_per_split": per_split,
        "tile_count": tiles.shape[1],
        "stride_outer": stride_outer,
        "stride_c": x.stride(dim),
        "stride_p": stride_p,
        "CHANNELS": chosen.channels,
        "POSITIONS": chosen.positions,
        "WIDEN": env.triton_interpreted(),  # which multiplies the bits of bfloat16
    }
    _triton.launch(_gram_partial_kernel, count * tiles.shape[1], x.device, arguments, chosen.warps)
    arguments = {
        "out": out,
        "partials": partials,
        "tiles": tiles,
        "channels": channels,
        "tile_count": tiles.shape[1],
        "split_count": count,
        "CHANNELS": chosen.channels,
    }
    _triton.launch(_gram_total_kernel, tiles.shape[1], x.device, arguments, chosen.warps)
    return out, totals.sum(0)
