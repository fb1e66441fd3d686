"""Fourier transforms, patches, sampling grids and complex views: along some dimensions, past the others."""

from __future__ import annotations

import numpy as np

from fairkern.axes.dims import CONSTANT, Dim, Track
from fairkern.axes.rules._call import Call, wrap
from fairkern.axes.rules.registry import rule


def _stay(call: Call, dims: tuple[Dim, ...], how: str) -> None:
    for dim in dims:
        call.graph.freeze(dim, f"{how} by {call.where}")


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(call: Call) -> list[Track]:
    track = call.track("self")
    over = {wrap(d, len(track.sizes)) for d in call.args["dim"]}
    _stay(call, tuple(track.dims[i] for i in over), "is transformed")
    return call.out([CONSTANT if i in over else d for i, d in enumerate(track.dims)])


@rule("im2col")
def patches(call: Call) -> list[Track]:
    """`im2col`: [.., C, H, W] → [.., C·k, L]; a channel goes with all places of its kernel."""
    track = call.track("self")
    *lead, channels, high, wide = track.dims
    _stay(call, (high, wide), "is slid over")
    places = int(np.prod(call.args["kernel_size"]))
    if isinstance(channels, np.ndarray):
        channels = np.repeat(channels, places)
    return call.out([*lead, channels, CONSTANT])


@rule("col2im")
def from_patches(call: Call) -> list[Track]:
    """`col2im`: [.., C·k, L] → [.., C, H, W]; the k rows that are summed into a channel go together."""
    track = call.track("self")
    *lead, rows, positions = track.dims
    _stay(call, (positions,), "is slid over")
    if isinstance(rows, np.ndarray):
        cube = rows.reshape(call.sizes[-3], -1)
        for k in range(1, cube.shape[1]):
            call.graph.join(cube[:, 0], cube[:, k])
        rows = cube[:, 0].copy()
    return call.out([*lead, rows, CONSTANT, CONSTANT])


@rule("unfold")
def windows(call: Call) -> list[Track]:
    """`Tensor.unfold`: overlapping windows of one dimension become a new last one."""
    track = call.track("self")
    dim = wrap(call.args["dimension"], len(track.sizes))
    _stay(call, (track.dims[dim],), "is cut into windows")
    return call.out([*(CONSTANT if i == dim else d for i, d in enumerate(track.dims)), CONSTANT])


@rule("grid_sampler_2d", "grid_sampler_3d", "_grid_sampler_2d_cpu_fallback")
def sampled(call: Call) -> list[Track]:
    """`grid_sampler`: channels pass, space is read where the grid says."""
    track, grid = call.track("input"), call.track("grid")
    batch = call.graph.meet(track.dims[0], grid.dims[0], f"meets a fixed size in {call.where}")
    _stay(call, (*track.dims[2:], *grid.dims[1:]), "is sampled")
    return call.out([batch, track.dims[1], *[CONSTANT] * (len(call.sizes) - 2)])


@rule("max_unpool2d", "max_unpool3d")
def unpooled(call: Call) -> list[Track]:
    track, indices = call.track("self"), call.track("indices")
    n = 3 if call.name.endswith("3d") else 2
    lead = len(track.sizes) - n
    _stay(call, (*track.dims[lead:], *indices.dims[lead:]), "is slid over")
    met = [
        call.graph.meet(a, b, f"meets a fixed size in {call.where}")
        for a, b in zip(track.dims[:lead], indices.dims[:lead], strict=True)
    ]
    return call.out([*met, *[CONSTANT] * n])


@rule("view_as_complex", "view_as_complex_copy")
def as_complex(call: Call) -> list[Track]:
    track = call.track("self")
    _stay(call, track.dims[-1:], "is read as real and imaginary part")
    return call.out(track.dims[:-1])


@rule("view_as_real", "view_as_real_copy")
def as_real(call: Call) -> list[Track]:
    return call.out([*call.track("self").dims, CONSTANT])


@rule("_conj", "_neg_view", "_conj_physical")
def conjugate(call: Call) -> list[Track]:
    return call.out(call.track("self").dims)
