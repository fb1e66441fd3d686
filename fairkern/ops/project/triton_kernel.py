"""Projection on a GPU: one matrix product per sample, `x[n]` [C, D] times `directions` [D, P], read in place.

Channels and positions have a stride each, so contiguous and channels-last activations are read as they lie, and only
the rows that are asked for. Products and sums are float32 (`input_precision="ieee"`), whatever the dtype of `x`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fairkern.ops import _triton
from fairkern.ops._strides import merged
from fairkern.ops.project.config import tile


@triton.jit
def _project_kernel(
    out,
    x,
    directions,
    rows,
    channels,
    positions,
    projections,
    channel_blocks,
    projection_blocks,
    stride_n,
    stride_c,
    stride_d,
    stride_direction_d,
    stride_direction_p,
    HAS_ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """A tile of channels × directions of one row."""
    i_program = tl.program_id(0).to(tl.int64)
    i_tile = i_program // projection_blocks
    i_row = i_tile // channel_blocks
    i_sample = i_row
    if HAS_ROWS:
        i_sample = tl.load(rows + i_row)
    o_channel = (i_tile % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    o_projection = (i_program % projection_blocks) * DIRECTIONS + tl.arange(0, DIRECTIONS)
    m_channel = (o_channel < channels)[:, None]
    m_projection = (o_projection < projections)[None, :]
    p_x = x + i_sample * stride_n + (o_channel * stride_c)[:, None]
    p_directions = directions + (o_projection * stride_direction_p)[None, :]
    b_out = tl.zeros([CHANNELS, DIRECTIONS], tl.float32)
    for first in range(0, positions, POSITIONS):
        o_position = (i_program * 0 + first) + tl.arange(0, POSITIONS)
        m_position = o_position < positions
        b_x = tl.load(p_x + (o_position * stride_d)[None, :], mask=m_channel & m_position[None, :], other=0.0)
        o_direction = (o_position * stride_direction_d)[:, None]
        b_d = tl.load(p_directions + o_direction, mask=m_position[:, None] & m_projection, other=0.0)
        b_out = tl.dot(b_x.to(tl.float32), b_d.to(tl.float32), b_out, input_precision="ieee")
    p_out = out + ((i_row * channels + o_channel) * projections)[:, None] + o_projection[None, :]
    tl.store(p_out, b_out, mask=m_channel & m_projection)


def project(x: Tensor, directions: Tensor, rows: Tensor | None, out: Tensor) -> Tensor:
    """[N, C, D…] float32, bfloat16 or float16, [D, P], rows [R] or None → `out` [R or N, C, P] float32."""
    if not out.numel():
        return out
    loops = merged(x, range(2, x.ndim))
    if len(loops) > 1:
        x = (x if rows is None else x[rows]).contiguous()
        loops, rows = merged(x, range(2, x.ndim)), None
    positions, stride_d = loops[0] if loops else (directions.shape[0], 1)
    taken, channels, projections = out.shape
    chosen = tile(channels, projections, x.device)
    channel_blocks, projection_blocks = -(-channels // chosen.channels), -(-projections // chosen.directions)
    arguments = {
        "out": out,
        "x": x,
        "directions": directions,
        "rows": rows,
        "channels": channels,
        "positions": positions,
        "projections": projections,
        "channel_blocks": channel_blocks,
        "projection_blocks": projection_blocks,
        "stride_n": x.stride(0),
        "stride_c": x.stride(1),
        "stride_d": stride_d,
        "stride_direction_d": directions.stride(0),
        "stride_direction_p": directions.stride(1),
        "HAS_ROWS": rows is not None,
        "CHANNELS": chosen.channels,
        "DIRECTIONS": chosen.directions,
        "POSITIONS": chosen.positions,
    }
    _triton.launch(_project_kernel, taken * channel_blocks * projection_blocks, x.device, arguments, chosen.warps)
    return out
