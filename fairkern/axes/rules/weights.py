"""What a weight does with units: it contracts those of an activation, or makes those of its output."""

from __future__ import annotations

import math

import numpy as np
import torch

from fairkern.axes.dims import Dim, Track, Uniform
from fairkern.axes.facts import Computed, Contraction, Production
from fairkern.axes.rules._call import Call
from fairkern.model.recurrent import reads_hidden
from fairkern.types import Axis, CallSite, Side


def consume(
    call: Call,
    x: Dim,
    weight: Track,
    w_dim: int,
    positions: np.ndarray | None = None,
    whole: np.ndarray | None = None,
) -> None:
    """`weight` contracts dimension `x` of an activation along its own dimension `w_dim`.

    `positions`: what the activation's dimension holds, where it is not the weight's axis one to one. `whole`: groups
    of a convolution, within which it does so unless they go as a whole.
    """
    w = weight.dims[w_dim]
    source = weight.source or weight.factor
    axis = source.axes[w_dim] if source else None
    if axis is not None and (weight.source is None or not weight.source.same):
        call.graph.computed.append(Computed((axis[0] if isinstance(axis, tuple) else axis).tensor))
    if isinstance(x, np.ndarray) and isinstance(w, np.ndarray):
        if source is None or axis is None or not source.silent:
            how = "and not zero where a parameter is" if axis is not None else "not a parameter"
            if whole is None:
                call.graph.freeze(x, f"the weight of {call.where} is computed, {how}")
            call.graph.freeze(w, f"the weight of {call.where} is computed, {how}")
            return
        if positions is None:
            call.graph.join(x, w)
        if isinstance(axis, tuple):
            _consume_several(call, axis, x, w)
            return
        if reads_hidden(call.inside.module, axis.tensor.rpartition(".")[2]):
            activation, dim, site, side = None, -1, call.inside.site, Side.HIDDEN
        else:
            activation, dim, site = _tap(call, axis.tensor, x)
            side = Side.INPUT
            if source.part and not _all_places(call, activation):
                call.graph.freeze(x, f"{call.where} reads some of its samples with a part of {axis.tensor}")
            if dim < 0 and weight.factor is not None:
                activation, dim, site, x = _entry(call, x)
        if call.inside.slots is not None and (site.weight or dim < 0):  # what an expert made for its own second weight
            activation, dim, site, side = call.inside.input, 2, call.inside.site, Side.INNER
        inner = dim < 0 and isinstance(call.inside.module, torch.nn.RNNBase)
        call.graph.contractions.append(
            Contraction(axis, x, activation, dim, site, call.where, call.training, inner, side, whole=whole)
        )
        return
    if isinstance(x, Uniform) and x.zero:  # the first state of a recurrent layer
        call.graph.meet(x, w, "")
        return
    call.graph.freeze(x, f"is contracted with a tensor of fixed size in {call.where}")
    call.graph.freeze(w, f"contracts an input of fixed size in {call.where}")


def _consume_several(call: Call, axes: tuple[Axis, ...], x: np.ndarray, w: np.ndarray) -> None:
    """A weight that contracts several of its dimensions at once, as `einsum` does over heads and what is in them.

    Each is a consumer of the same dimension of the activation; which of them carries the unit is decided later.
    """
    given, own = call.graph.factors_of(x), call.graph.factors_of(w)
    if given is None or own is None or [len(d) for d in given] != [len(d) for d in own]:
        reason = f"{call.where} contracts {len(axes)} dimensions of {axes[0].tensor} that its input has in one"
        call.graph.freeze(x, reason)
        return
    for axis, nodes in zip(axes, given, strict=True):
        activation, dim, site = _tap(call, axis.tensor, nodes)
        call.graph.contractions.append(Contraction(axis, nodes, activation, dim, site, call.where, call.training))


def _tap(call: Call, weight: str, nodes: np.ndarray) -> tuple[Track | None, int, CallSite]:
    """Where these nodes can be heard on their way into `weight`: an activation, its dimension, and who reads it.

    The input of the module, if it does nothing else with it; else the argument of the function that the weight is
    given to. The dimension is -1 where there is neither.
    """
    inside, function = call.inside, call.function
    if inside.input is not None and (dim := _tap_dim(inside.input, nodes)) >= 0:
        return inside.input, dim, inside.site
    if function is not None and weight in function.numbers:
        heard = [(i, t, _tap_dim(t, nodes)) for i, t in enumerate(function.given) if t.source is None]
        heard = [(i, t, dim) for i, t, dim in heard if dim >= 0]
        if len(heard) == 1:
            argument, track, dim = heard[0]
            return track, dim, CallSite(inside.site.module, function.numbers[weight], weight, argument)
    return None, -1, inside.site


def _all_places(call: Call, activation: Track | None) -> bool:
    """Whether an activation has as many places as what the module was given, and not those of one of its experts."""
    entry = call.inside.entry
    if activation is None or entry is None:
        return False
    return math.prod(activation.sizes[:-1]) == math.prod(entry.sizes[:-1])


def _entry(call: Call, nodes: np.ndarray) -> tuple[Track | None, int, CallSite, np.ndarray]:
    """Where what a weight that is modulated for each sample contracts comes into the module, and its nodes there.

    The samples may since have become groups of channels. The dimension is -1 where that is not seen.
    """
    entry, site = call.inside.entry, call.inside.site
    if entry is not None and len(entry.sizes) > 1:
        for i, dim in enumerate(entry.dims):
            if isinstance(dim, np.ndarray) and np.array_equal(np.resize(dim, len(nodes)), nodes):
                return entry, i, site, dim
    return None, -1, site, nodes


def _tap_dim(entry: Track, nodes: np.ndarray) -> int:
    """The dimension of an activation that holds exactly these nodes; -1 if none or several do."""
    hits = [i for i, d in enumerate(entry.dims) if isinstance(d, np.ndarray) and np.array_equal(d, nodes)]
    return hits[0] if len(hits) == 1 else -1


def produce(call: Call, weight: Track, w_dim: int, dim: int) -> None:
    """Dimension `w_dim` of `weight` becomes dimension `dim` (from the end if negative) of what is returned by the
    module, if it does nothing else, or else by the function that the weight is given to.

    Only what eval mode computes. Whether a function returns that dimension there is seen when it returns.
    """
    source, nodes = weight.source, weight.dims[w_dim]
    axis = source.axes[w_dim] if source else None
    if call.training or not isinstance(axis, Axis) or not isinstance(nodes, np.ndarray):
        return
    if call.inside.slots is not None:  # an expert's weight, not the module's
        return
    site = call.inside.site
    if call.inside.input is None:
        if call.function is None or axis.tensor not in call.function.numbers:
            return
        site = CallSite(site.module, call.function.numbers[axis.tensor], axis.tensor)
    call.graph.productions.append(Production(axis, nodes, dim, site))
