"""The Taylor sums of any number of layers in two launches per kind of layout.

A layer is samples × (outer) × channels × positions with a stride each, for both tensors, so every layout is read in
place: a row of the descriptor table. A program looks its layer up, takes a block of channels of some samples and
positions, and keeps Σ a·g, Σ|Σ_positions a·g| and Σ a in float32 registers from the same read. Each program writes
its own partial sums; the second stage adds them in a fixed order. Where one sample is spread over several programs,
that stage takes the absolute value, after it has added their parts, and adds the totals to running sums where there are
some. No atomics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairkern.ops import _triton
from fairkern.ops._strides import innermost, merged, padded
from fairkern.ops.taylor.config import SUM_TILE, Split, Tile, split, tile

_ELEMENTS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_SUMS = {torch.float32: tl.float32, torch.float64: tl.float64}
_FIELDS: tl.constexpr = tl.constexpr(26)  # of a row of the table
(
    _AT_PROGRAM,  # the first program of the layer, in the first stage
    _AT_SUM_PROGRAM,  # and in the second
    _AT_ACT,  # addresses
    _AT_GRAD,
    _AT_SIGNED,
    _AT_PER_SAMPLE,
    _AT_ACTIVATION,
    _AT_PARTIAL,  # where its partial sums begin, in elements
    _AT_SAMPLES,  # sizes
    _AT_OUTER,
    _AT_CHANNELS,
    _AT_POSITIONS,
    _AT_SPREAD,  # whether a sample is spread over several programs
    _AT_CHUNK,  # samples of a program
    _AT_BLOCKS,  # blocks of positions of a program
    _AT_SPLITS,  # programs that share a sample
    _AT_GROUPS,  # of rows of partial sums, and the rows of a group
    _AT_ROWS,
    _AT_ACT_SAMPLE,  # strides
    _AT_ACT_OUTER,
    _AT_ACT_CHANNEL,
    _AT_ACT_POSITION,
    _AT_GRAD_SAMPLE,
    _AT_GRAD_OUTER,
    _AT_GRAD_CHANNEL,
    _AT_GRAD_POSITION,
) = map(tl.constexpr, range(_FIELDS.value))


@triton.jit
def _layer(table, column: tl.constexpr, i_program, layers, LAYERS: tl.constexpr):
    """The layer of a program: the last whose first program is not after it."""
    o_layer = tl.arange(0, LAYERS)
    first = tl.load(table + o_layer * _FIELDS + column, mask=o_layer < layers, other=0x7FFFFFFFFFFFFFFF)
    return tl.sum((first <= i_program).to(tl.int32), axis=0) - 1


@triton.jit
def _field(p_row, column: tl.constexpr, multiple: tl.constexpr):
    return tl.multiple_of(tl.load(p_row + column), multiple)


@triton.jit
def _taylor_partial_kernel(
    partials,
    table,
    layers,
    ELEMENT: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    SINGLE: tl.constexpr,
    VECTOR: tl.constexpr,
    LAYERS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """[chunk, split, 3, channel] sums. `SINGLE`: one position per sample, and "positions" are the samples."""
    i_program = tl.program_id(0).to(tl.int64)
    p_row = table + _layer(table, _AT_PROGRAM, i_program, layers, LAYERS) * _FIELDS
    i_local = i_program - tl.load(p_row + _AT_PROGRAM)
    ALIGNED: tl.constexpr = 16 if VECTOR > 1 else 1
    act = tl.multiple_of(tl.load(p_row + _AT_ACT).to(tl.pointer_type(ELEMENT)), ALIGNED)
    grad = tl.multiple_of(tl.load(p_row + _AT_GRAD).to(tl.pointer_type(ELEMENT)), ALIGNED)
    partial_offset = tl.load(p_row + _AT_PARTIAL)
    samples = tl.load(p_row + _AT_SAMPLES)
    chunk = tl.load(p_row + _AT_CHUNK)
    blocks = tl.load(p_row + _AT_BLOCKS)
    splits = tl.load(p_row + _AT_SPLITS)
    act_n = _field(p_row, _AT_ACT_SAMPLE, VECTOR)
    act_outer = _field(p_row, _AT_ACT_OUTER, VECTOR)
    grad_n = _field(p_row, _AT_GRAD_SAMPLE, VECTOR)
    grad_outer = _field(p_row, _AT_GRAD_OUTER, VECTOR)
    outer = tl.load(p_row + _AT_OUTER)
    if CHANNELS_INNERMOST:
        channels = _field(p_row, _AT_CHANNELS, VECTOR)
        positions = tl.load(p_row + _AT_POSITIONS)
        act_p = _field(p_row, _AT_ACT_POSITION, VECTOR)
        grad_p = _field(p_row, _AT_GRAD_POSITION, VECTOR)
    else:
        channels = tl.load(p_row + _AT_CHANNELS)
        positions = _field(p_row, _AT_POSITIONS, VECTOR)
        act_c = _field(p_row, _AT_ACT_CHANNEL, VECTOR)
        grad_c = _field(p_row, _AT_GRAD_CHANNEL, VECTOR)
    channel_blocks = tl.cdiv(channels, CHANNELS)
    i_row = i_local // channel_blocks
    i_chunk = i_row // splits
    first_block = (i_row % splits) * blocks
    position_blocks = tl.cdiv(positions, POSITIONS)
    last_block = tl.minimum(first_block + blocks, outer * position_blocks)
    o_channel = (i_local % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    m_channel = o_channel < channels
    b_signed = tl.zeros([CHANNELS], tl.float32)
    b_absolute = tl.zeros([CHANNELS], tl.float32)
    b_activation = tl.zeros([CHANNELS, POSITIONS], tl.float32)
    b_single = tl.zeros([CHANNELS, POSITIONS], tl.float32)
    outer_begin = first_block // position_blocks
    position_begin = (first_block % position_blocks) * POSITIONS
    for i_sample in range(i_chunk * chunk, tl.minimum((i_chunk + 1) * chunk, samples)):
        b_term = tl.zeros([CHANNELS, POSITIONS], tl.float32)
        i_outer = outer_begin
        first_position = position_begin
        for _ in range(first_block, last_block):
            o_position = first_position + tl.arange(0, POSITIONS)
            mask = m_channel[:, None] & (o_position < positions)[None, :]
            p_act = act + i_sample * act_n + i_outer * act_outer
            p_grad = grad + i_sample * grad_n + i_outer * grad_outer
            if CHANNELS_INNERMOST:  # a run's address first: what is added along it then takes no registers of its own
                p_act = (p_act + o_position * act_p)[None, :] + o_channel[:, None]
                p_grad = (p_grad + o_position * grad_p)[None, :] + o_channel[:, None]
            else:
                p_act = (p_act + o_channel * act_c)[:, None] + o_position[None, :]
                p_grad = (p_grad + o_channel * grad_c)[:, None] + o_position[None, :]
            b_a = tl.load(p_act, mask=mask, other=0.0).to(tl.float32)
            b_g = tl.load(p_grad, mask=mask, other=0.0).to(tl.float32)
            b_activation += b_a
            b_term += b_a * b_g
            if SINGLE:
                b_single += tl.abs(b_a * b_g)
            first_position += POSITIONS
            i_outer += (first_position >= positions).to(tl.int64)
            first_position = tl.where(first_position >= positions, 0, first_position)
        b_sample = tl.sum(b_term, axis=1)
        b_signed += b_sample
        b_absolute += tl.abs(b_sample)
    if SINGLE:
        b_absolute = tl.sum(b_single, axis=1)
    p_partial = partials + partial_offset + i_row * 3 * channels + o_channel
    tl.store(p_partial, b_signed, mask=m_channel)
    tl.store(p_partial + channels, b_absolute, mask=m_channel)
    tl.store(p_partial + 2 * channels, tl.sum(b_activation, axis=1), mask=m_channel)


@triton.jit
def _give(address, b_sum, o_channel, m_channel, SUM: tl.constexpr, ACCUMULATE: tl.constexpr):
    """Sums of some channels to where the table says."""
    p_sum = address.to(tl.pointer_type(SUM)) + o_channel
    b_total = b_sum.to(SUM)
    if ACCUMULATE:
        b_total += tl.load(p_sum, mask=m_channel, other=0.0)
    tl.store(p_sum, b_total, mask=m_channel)


@triton.jit
def _taylor_total_kernel(
    partials,
    table,
    layers,
    scale,
    SUM: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    LAYERS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Sums of a layer over its groups of rows; with several groups, each is one sample."""
    i_program = tl.program_id(0).to(tl.int64)
    p_row = table + _layer(table, _AT_SUM_PROGRAM, i_program, layers, LAYERS) * _FIELDS
    i_local = i_program - tl.load(p_row + _AT_SUM_PROGRAM)
    p_partial = partials + tl.load(p_row + _AT_PARTIAL)
    channels = tl.load(p_row + _AT_CHANNELS)
    spread = tl.load(p_row + _AT_SPREAD) != 0
    groups = tl.load(p_row + _AT_GROUPS)
    rows = tl.load(p_row + _AT_ROWS)
    o_channel = i_local * CHANNELS + tl.arange(0, CHANNELS)
    m_channel = o_channel < channels
    b_signed = tl.zeros([CHANNELS], tl.float32)
    b_absolute = tl.zeros([CHANNELS], tl.float32)
    b_activation = tl.zeros([CHANNELS], tl.float32)
    for i_group in range(groups):
        b_group = tl.zeros([CHANNELS], tl.float32)
        for i_first in range(0, rows, ROWS):
            o_row = i_first + tl.arange(0, ROWS)
            mask = (o_row < rows)[:, None] & m_channel[None, :]
            p_tile = p_partial + ((i_group * rows + o_row) * 3 * channels)[:, None] + o_channel[None, :]
            b_group += tl.sum(tl.load(p_tile, mask=mask, other=0.0), axis=0)
            b_absolute += tl.where(spread, 0.0, tl.sum(tl.load(p_tile + channels, mask=mask, other=0.0), axis=0))
            b_activation += tl.sum(tl.load(p_tile + 2 * channels, mask=mask, other=0.0), axis=0)
        b_signed += b_group
        b_absolute += tl.where(spread, tl.abs(b_group), 0.0)
    _give(tl.load(p_row + _AT_SIGNED), b_signed * scale, o_channel, m_channel, SUM, ACCUMULATE)
    _give(tl.load(p_row + _AT_PER_SAMPLE), b_absolute * scale, o_channel, m_channel, SUM, ACCUMULATE)
    _give(tl.load(p_row + _AT_ACTIVATION), b_activation, o_channel, m_channel, SUM, ACCUMULATE)


@dataclass(frozen=True)
class _Layer:
    """One layer as it is read: in place, or as contiguous copies where neither kind of run fits."""

    act: Tensor
    grad: Tensor
    samples: int
    outer: int
    channels: int
    positions: int
    strides: tuple[int, ...]  # of act, then of grad: sample, outer, channel, position
    single: bool
    channels_innermost: bool

    @classmethod
    def of(cls, act: Tensor, grad: Tensor, dim: int) -> _Layer:
        fitting = cls._fitting(act, grad, dim) or cls._fitting(act.contiguous(), grad.contiguous(), dim)
        assert fitting is not None  # contiguous tensors always fit
        return fitting

    @classmethod
    def _fitting(cls, act: Tensor, grad: Tensor, dim: int) -> _Layer | None:
        others = [d for d in range(1, act.ndim) if d != dim]
        loops = [merged(tensor, others) for tensor in (act, grad)]
        if len(loops[0]) != len(loops[1]) or len(loops[0]) > 2:
            return None
        if any(one[0] != other[0] for one, other in zip(*loops, strict=True)):
            return None
        samples, channels = act.shape[0], act.shape[dim]
        single = not loops[0]
        outer, positions = 1, samples
        strides: list[int] = []
        for tensor, own in zip((act, grad), loops, strict=True):
            walk = padded(own, 2)
            strides += [0, 0, tensor.stride(dim), tensor.stride(0)]
            if not single:
                outer, positions = walk[0][0], walk[1][0]
                strides[-4:] = [tensor.stride(0), walk[0][1], tensor.stride(dim), walk[1][1]]
        positions_run = positions > 1 and strides[3] == strides[7] == 1
        if not positions_run and not all(innermost(strides[i], channels) for i in (2, 6)):
            return None
        return cls(
            act, grad, 1 if single else samples, outer, channels, positions, tuple(strides), single, not positions_run
        )

    @property
    def tile(self) -> Tile:
        return tile(self.positions, self.channels_innermost, self.act.device)

    @property
    def split(self) -> Split:
        return split(self.samples, self.outer * -(-self.positions // self.tile.positions), self.tile)

    @property
    def rows(self) -> int:
        """Of partial sums."""
        return self.split.chunks * self.split.splits

    @property
    def vector(self) -> int:
        """Elements that 16 bytes hold if every run starts at a multiple of 16 bytes, else 1."""
        elements = 16 // self.act.element_size()
        inner = (2, 6) if self.channels_innermost else (3, 7)
        steps = [stride for i, stride in enumerate(self.strides) if i not in inner]
        run = self.channels if self.channels_innermost else self.positions
        aligned = all(tensor.data_ptr() % 16 == 0 for tensor in (self.act, self.grad))
        return elements if aligned and all(step % elements == 0 for step in (*steps, run)) else 1

    @property
    def kind(self) -> tuple[object, ...]:
        """Layers of one kind share a launch."""
        return self.act.device, self.act.dtype, self.channels_innermost, self.single, self.vector, self.tile

    @property
    def columns(self) -> dict[int, int]:
        """What a row of the table says of the layer alone."""
        dealt = self.split
        spread = dealt.splits > 1 and not self.single
        groups, rows = (dealt.chunks, dealt.splits) if spread else (1, self.rows)
        act, grad = self.strides[:4], self.strides[4:]
        return {
            _AT_ACT.value: self.act.data_ptr(),
            _AT_GRAD.value: self.grad.data_ptr(),
            _AT_SAMPLES.value: self.samples,
            _AT_OUTER.value: self.outer,
            _AT_CHANNELS.value: self.channels,
            _AT_POSITIONS.value: self.positions,
            _AT_SPREAD.value: int(spread),
            _AT_CHUNK.value: dealt.chunk,
            _AT_BLOCKS.value: dealt.blocks,
            _AT_SPLITS.value: dealt.splits,
            _AT_GROUPS.value: groups,
            _AT_ROWS.value: rows,
            _AT_ACT_SAMPLE.value: act[0],
            _AT_ACT_OUTER.value: act[1],
            _AT_ACT_CHANNEL.value: act[2],
            _AT_ACT_POSITION.value: act[3],
            _AT_GRAD_SAMPLE.value: grad[0],
            _AT_GRAD_OUTER.value: grad[1],
            _AT_GRAD_CHANNEL.value: grad[2],
            _AT_GRAD_POSITION.value: grad[3],
        }


Sums = tuple[Tensor, Tensor, Tensor]  # signed, per sample, activation


def taylor_many(jobs: Sequence[tuple[Tensor, Tensor, int, Sums | None]], scale: float) -> list[Sums]:
    """(act, grad, dim ≥ 1, running sums or None) of float32, bfloat16 or float16 → sums per job.

    The first two sums times `scale`, added to the running ones (contiguous, float64 or float32) where there are some.
    """
    layers = [_Layer.of(act, grad, dim) for act, grad, dim, _ in jobs]
    outs = [out for *_, out in jobs]
    kinds: dict[tuple[object, ...], list[int]] = {}
    for number, (layer, out) in enumerate(zip(layers, outs, strict=True)):
        kinds.setdefault((layer.kind, None if out is None else out[0].dtype), []).append(number)
    totals: dict[int, Sums] = {}
    for members in kinds.values():
        made = _launch([layers[number] for number in members], [outs[number] for number in members], scale)
        totals.update(zip(members, made, strict=True))
    return [totals[number] for number in range(len(layers))]


def _launch(layers: Sequence[_Layer], outs: Sequence[Sums | None], scale: float) -> list[Sums]:
    """Layers of one kind, all with running sums of one dtype or all without; then new sums share a tensor."""
    one, device = layers[0], layers[0].act.device
    accumulate = outs[0] is not None
    lengths = [layer.channels for layer, out in zip(layers, outs, strict=True) if out is None for _ in range(3)]
    parts = iter(torch.empty(sum(lengths), dtype=torch.float32, device=device).split(lengths))
    totals = [out or (next(parts), next(parts), next(parts)) for out in outs]
    table: list[list[int]] = []
    programs = sum_programs = partial_size = 0
    for layer, total in zip(layers, totals, strict=True):
        signed, per_sample, activation = (part.data_ptr() for part in total)
        columns = {
            **layer.columns,
            _AT_PROGRAM.value: programs,
            _AT_SUM_PROGRAM.value: sum_programs,
            _AT_SIGNED.value: signed,
            _AT_PER_SAMPLE.value: per_sample,
            _AT_ACTIVATION.value: activation,
            _AT_PARTIAL.value: partial_size,
        }
        table.append([columns[column] for column in range(_FIELDS.value)])
        programs += layer.rows * -(-layer.channels // layer.tile.channels)
        sum_programs += -(-layer.channels // SUM_TILE.channels)
        partial_size += layer.rows * 3 * layer.channels
    packed = torch.tensor(table, dtype=torch.int64, device="cpu").to(device)
    partials = torch.empty(partial_size, dtype=torch.float32, device=device)
    shared = {
        "partials": partials,
        "table": packed,
        "layers": len(layers),
        "LAYERS": triton.next_power_of_2(len(layers)),
    }
    chosen: Tile = one.tile
    first = {
        "ELEMENT": _ELEMENTS[one.act.dtype],
        "CHANNELS_INNERMOST": one.channels_innermost,
        "SINGLE": one.single,
        "VECTOR": one.vector,
        "CHANNELS": chosen.channels,
        "POSITIONS": chosen.positions,
    }
    _triton.launch(_taylor_partial_kernel, programs, device, {**shared, **first}, chosen.warps)
    second = {
        "scale": float(scale),
        "SUM": _SUMS[totals[0][0].dtype],
        "ACCUMULATE": accumulate,
        "CHANNELS": SUM_TILE.channels,
        "ROWS": SUM_TILE.positions,
    }
    _triton.launch(_taylor_total_kernel, sum_programs, device, {**shared, **second}, SUM_TILE.warps)
    return totals
