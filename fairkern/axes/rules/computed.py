"""Tensors that are computed from parameters position by position: which axes they have, and whether zeros stay zero.

A weight that is silenced by zeros in its parameter is followed like the parameter itself: one that is scaled, masked,
clipped, rounded, or multiplied by what a sample asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fairkern.axes.dims import Source, Track, Uniform
from fairkern.axes.rules._call import Call
from fairkern.types import Axis

# Operators that give zero where their first argument is zero, whatever the others are.
# fmt: off
_ZERO_AT_ZERO = frozenset((
    "_fake_quantize_learnable_per_channel_affine", "_fake_quantize_learnable_per_tensor_affine",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", "_fused_moving_avg_obs_fq_helper", "_prelu_kernel",
    "abs", "angle", "arcsinh", "asin", "asinh", "atan", "atanh", "ceil", "celu", "copysign", "deg2rad", "div", "elu",
    "erf", "erfinv", "expm1", "fake_quantize_per_channel_affine_cachemask",
    "fake_quantize_per_tensor_affine_cachemask", "fix", "floor", "frac", "gelu", "hardshrink", "hardswish",
    "leaky_relu", "log1p", "mish", "nan_to_num", "native_dropout", "neg", "rad2deg", "relu", "relu6", "round", "selu",
    "sgn", "sign", "silu", "sin", "sinh", "softshrink", "special_bessel_j1", "special_entr", "special_i1",
    "special_i1e", "special_modified_bessel_i1", "sqrt", "square", "tan", "tanh", "trunc",
))
# fmt: on


def _number(call: Call, argument: str, default: float) -> float:
    """A bound that is given as a number; NaN, which compares with nothing, where it is a tensor."""
    value = call.args.get(argument)
    if value is None:
        return default
    return float(value) if isinstance(value, (int, float)) else float("nan")


# Operators that do so for some of their numbers.
_ZERO_IF: Mapping[str, Callable[[Call], bool]] = {
    "clamp": lambda call: _number(call, "min", 0.0) <= 0.0 <= _number(call, "max", 0.0),
    "clamp_min": lambda call: _number(call, "min", 0.0) <= 0.0,
    "clamp_max": lambda call: _number(call, "max", 0.0) >= 0.0,
    "hardtanh": lambda call: _number(call, "min_val", -1.0) <= 0.0 <= _number(call, "max_val", 1.0),
    "masked_fill": lambda call: _number(call, "value", 0.0) == 0.0,
    "pow": lambda call: _number(call, "exponent", 0.0) > 0.0,
    "threshold": lambda call: _number(call, "value", 0.0) == 0.0,
}
# Operators that give zero where all of their arguments (of `where`: both branches) are zero.
_ZERO_AT_ZEROS = frozenset(("add", "sub", "maximum", "minimum", "where", "atan2", "hypot"))


def computed(call: Call) -> tuple[Source | None, Source | None]:
    """The source and the factor (see `Track`) of what a pointwise operator computes."""
    tracks = [call.track(t) for t in call.tensors]
    if all(t.source is None and t.factor is None for t in tracks):
        return None, None
    made = _made(call, tracks)
    if made is None:
        return None, None
    if call.still(call.tensors):
        return replace(made, same=False), None
    return None, replace(made, same=False) if made.silent else None


def _made(call: Call, tracks: Sequence[Track]) -> Source | None:
    ndim = len(call.sizes)
    known = [_aligned(t, ndim) for t in tracks]
    name = call.name.removesuffix("_")
    silent = [source for source in known if source is not None and source.silent]
    if name == "mul" and silent:
        return _first(silent)
    if name == "copy":  # the values of another tensor
        return known[1]
    kept = known[0] is not None and known[0].silent
    if kept and (name in _ZERO_AT_ZERO or (name in _ZERO_IF and _ZERO_IF[name](call))):
        return known[0]
    if name in _ZERO_AT_ZEROS:
        found = _common(call, [*zip(known, tracks, strict=True)][1 if name == "where" else 0 :])
        if found is not None:
            return found
    held = [source for source in known if source is not None]
    return replace(_first(held), silent=False) if held else None


def _aligned(track: Track, ndim: int) -> Source | None:
    """The source, or else the factor, with an axis for each of the result's dimensions."""
    source = track.source or track.factor
    if source is None:
        return None
    lead: list[Axis | None] = [None] * (ndim - len(track.sizes))
    own = (axis if n != 1 else None for n, axis in zip(track.sizes, source.axes, strict=True))
    return replace(source, axes=(*lead, *own)[-ndim:] if ndim else ())


def _first(sources: Sequence[Source]) -> Source:
    """Of several that are multiplied the one with most axes, parameters before buffers; the others fill its gaps."""
    ranked = sorted(sources, key=lambda s: (-sum(a is not None for a in s.axes), not s.learned))
    axes = tuple(next((a for a in axes if a is not None), None) for axes in zip(*(s.axes for s in ranked), strict=True))
    return replace(ranked[0], axes=axes)


def _common(call: Call, operands: Sequence[tuple[Source | None, Track]]) -> Source | None:
    """The axes that silence every operand; None where there are none. A tensor of zeros has nothing to silence."""
    numbers: list[Any] = [value for key, value in call.args.items() if key in ("self", "other")]
    if any(isinstance(value, (int, float)) and value != 0 for value in numbers):
        return None
    sources = [
        source
        for source, track in operands
        if not (track.dims and all(isinstance(d, Uniform) and d.zero for d in track.dims))
    ]
    found = [s for s in sources if s is not None and s.silent]
    if not found or len(found) != len(sources):
        return None
    axes = tuple(same[0] if len(set(same)) == 1 else None for same in zip(*(s.axes for s in found), strict=True))
    return replace(found[0], axes=axes) if any(axes) else None
