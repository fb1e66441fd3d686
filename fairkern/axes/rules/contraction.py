"""Operators that sum over positions against a weight: convolution, matrix products, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from fairkern.axes.dims import CONSTANT, Dim, Fixed, Track, Uniform
from fairkern.axes.facts import Computed, Contraction, Flops, GroupedConvolution, Product, Production
from fairkern.axes.rules._call import Call
from fairkern.axes.rules.elementwise import broadcast
from fairkern.axes.rules.registry import rule
from fairkern.model.recurrent import reads_hidden
from fairkern.types import Axis, CallSite, Side


def consume(call: Call, x: Dim, weight: Track, w_dim: int, positions: np.ndarray | None = None) -> None:
    """`weight` contracts dimension `x` of an activation along its own dimension `w_dim`.

    `positions`: what the activation's dimension holds, where it is not the weight's axis one to one.
    """
    w = weight.dims[w_dim]
    source = weight.source or weight.factor
    axis = source.axes[w_dim] if source else None
    if axis is not None and (weight.source is None or not weight.source.same):
        call.graph.computed.append(Computed((axis[0] if isinstance(axis, tuple) else axis).tensor))
    if isinstance(x, np.ndarray) and isinstance(w, np.ndarray):
        if source is None or axis is None or not source.silent:
            how = "and not zero where a parameter is" if axis is not None else "not a parameter"
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
            Contraction(axis, x, activation, dim, site, call.where, call.training, inner, side)
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


def flops(call: Call, constant: float, *dims: Dim | int) -> None:
    """Record `2 · constant · Π dims`; a dimension without nodes counts with its size."""
    if not call.count_flops:
        return
    factor, tracked = 2.0 * constant, []
    for d in dims:
        if isinstance(d, np.ndarray):
            tracked.append(d)
        else:
            assert isinstance(d, int)
            factor *= d
    call.graph.flops.append(Flops(factor, tuple(tracked)))


def _sized(dim: Dim, n: int) -> Dim | int:
    return dim if isinstance(dim, np.ndarray) else n


@rule("convolution")
def convolution(call: Call) -> list[Track]:
    x, w = call.track("input"), call.track("weight")
    graph = call.graph
    groups, transposed = int(call.args["groups"]), bool(call.args["transposed"])
    for d in w.dims[2:]:
        graph.freeze(d, "is the extent of a convolution kernel")
    for d in x.dims[2:]:
        graph.freeze(d, f"is slid over by {call.where}")
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    channels = x.dims[1]
    made: Dim
    if groups == 1:
        consume(call, channels, w, in_dim)
        made = w.dims[out_dim]
        produce(call, w, out_dim, 1)
    else:
        made = (_grouped_transposed if transposed else _grouped)(call, x, w, groups)
    if call.given("bias"):
        made = graph.meet(made, call.track("bias").dims[0], f"meets a fixed size in {call.where}")
    steps = float(np.prod((x.sizes if transposed else call.sizes)[2:])) * float(np.prod(w.sizes[2:]))
    ends = (made, w.dims[1]) if isinstance(w.dims[0], Fixed) and not transposed else w.dims[:2]
    flops(call, steps, *(_sized(d, n) for d, n in ((x.dims[0], x.sizes[0]), *zip(ends, w.sizes[:2], strict=True))))
    return call.out([x.dims[0], made, *[CONSTANT] * (len(call.sizes) - 2)])


@rule("torchvision::deform_conv2d")
def deformable(call: Call) -> list[Track]:
    """A convolution that reads where offsets say, which are the same for all channels or for equal parts of them."""
    x, w = call.track("input"), call.track("weight")
    graph, groups, parts = call.graph, x.sizes[1] // w.sizes[1], int(call.args["offset_groups"])
    for d in (*w.dims[2:], *x.dims[2:], *(d for name in ("offset", "mask") for d in call.track(name).dims[1:])):
        graph.freeze(d, f"places are read by it in {call.where}")
    channels = x.dims[1]
    if parts > 1 and isinstance(channels, np.ndarray):
        graph.join(np.tile(graph.new(len(channels) // parts), parts), channels)
    made: Dim
    if groups == 1:
        consume(call, channels, w, 1)
        made = w.dims[0]
        produce(call, w, 0, 1)
    else:
        made = _grouped(call, x, w, groups)
    made = graph.meet(made, call.track("bias").dims[0], f"meets a fixed size in {call.where}")
    steps = float(np.prod(call.sizes[2:])) * float(np.prod(w.sizes[2:]))
    flops(call, steps, *(_sized(d, n) for d, n in zip((x.dims[0], *w.dims[:2]), (x.sizes[0], *w.sizes), strict=False)))
    return call.out([x.dims[0], made, CONSTANT, CONSTANT])


def _name(weight: Track) -> str | None:
    """The parameter that a weight is, or is computed from."""
    source = weight.source or weight.factor
    return source.name if source is not None else None


def _grouped(call: Call, x: Track, w: Track, groups: int) -> Dim:
    """Whole groups go where there are at least as many groups as inputs in each, else one position of every group."""
    graph, channels, made = call.graph, x.dims[1], w.dims[0]
    per_in, per_out = x.sizes[1] // groups, w.sizes[0] // groups
    reason = f"meets a fixed size in {call.where}"
    call.note_sizes([channels])
    if isinstance(made, Uniform) and per_in == per_out == 1:
        return channels  # one kernel for every channel
    if not isinstance(channels, np.ndarray) or not isinstance(made, np.ndarray):
        for d in (channels, *w.dims[:2]):
            graph.freeze(d, reason)
        return made
    name = _name(w)
    if name is None:
        for d in (channels, *w.dims[:2]):
            graph.freeze(d, f"the weight of {call.where} is computed, not a parameter")
        return made
    produce(call, w, 0, 1)
    if groups >= per_in:
        whole = graph.new(groups)
        graph.join(np.repeat(whole, per_in), channels)
        graph.join(np.repeat(whole, per_out), made)
        graph.freeze(w.dims[1], f"whole groups of {call.where} are cut, not their inputs")
        graph.grouped_convolutions.append(GroupedConvolution(name, channels, whole, made))
    else:
        inner = w.dims[1]
        assert isinstance(inner, np.ndarray)
        graph.join(np.tile(inner, groups), channels)
        graph.join(np.tile(made[:per_out], groups), made)
        consume(call, channels, w, 1, positions=channels)
        graph.grouped_convolutions.append(GroupedConvolution(name, channels, None, made))
    return made


def _grouped_transposed(call: Call, x: Track, w: Track, groups: int) -> Dim:
    """[C_in, C_out / groups, ..]: whole groups go, or one position of every group, as in `_grouped`."""
    graph, channels, given, shared = call.graph, x.dims[1], w.dims[0], w.dims[1]
    per_in, per_out = w.sizes[0] // groups, w.sizes[1]
    name = _name(w)
    if name is None or not isinstance(channels, np.ndarray) or not isinstance(given, np.ndarray):
        reason = f"meets a fixed size in {call.where}"
        for d in (channels, given, shared):
            graph.freeze(d, reason)
        return graph.frozen(call.sizes[1], reason)
    made: np.ndarray
    if groups >= per_in:
        whole = graph.new(groups)
        graph.join(np.repeat(whole, per_in), channels)
        graph.join(channels, given)
        graph.freeze(shared, f"whole groups of {call.where} are cut, not their outputs")
        made = np.repeat(whole, per_out)
        graph.grouped_convolutions.append(GroupedConvolution(name, channels, whole, made))
    else:
        graph.join(np.tile(channels[:per_in], groups), channels)
        consume(call, channels, w, 0)
        if isinstance(shared, np.ndarray):
            made = np.tile(shared, groups)
        else:
            made = graph.frozen(call.sizes[1], f"every group of {call.where} makes one channel")
        graph.grouped_convolutions.append(GroupedConvolution(name, channels, None, made))
    return made


def _weight(call: Call, names: Sequence[str], made: Sequence[int], over: Sequence[int]) -> Track | None:
    """Which of two factors is the weight of a matrix product; `made`, `over`: the dimensions that come out of each and
    are summed over.

    That is a parameter, or what is computed from some; of two the module's own, or the one that is not computed; else a
    matrix that is modulated for each sample, or what no input changes. None: neither, or no telling.
    """
    tracks = [call.track(name) for name in names]
    sources = [(t, t.source) for t in tracks if t.source is not None]
    module = call.inside.site.module
    factors = [(t, t.factor, i, k) for t, i, k in zip(tracks, made, over, strict=True) if t.factor is not None]
    for found in (
        [t for t, _ in sources],
        [t for t, source in sources if source.name.rpartition(".")[0] == module],
        [t for t, source in sources if source.same],
        [t for t, factor, i, k in factors if factor.axes[i] is not None and factor.axes[k] is not None],
        [t for t, name in zip(tracks, names, strict=True) if call.still([call.args[name]])],
    ):
        if len(found) == 1:
            return found[0]
    return None


@rule("mm", "addmm", "bmm", "baddbmm")
def matrix_product(call: Call) -> list[Track]:
    """`mm`, `addmm`, `bmm`, `baddbmm`: [.., n, k] × [.., k, m] → [.., n, m]."""
    names = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2")}.get(call.name, ("self", "mat2"))
    a, b = map(call.track, names)
    graph = call.graph
    n, k, m = len(a.dims) - 2, len(a.dims) - 1, len(b.dims) - 1
    left, right = a.dims[k], b.dims[m - 1]
    weight = _weight(call, names, (n, m), (k, m - 1))
    if weight is b:
        consume(call, left, b, m - 1)
        produce(call, b, m, -1)
    elif weight is a:
        consume(call, right, a, k)
        produce(call, a, n, -2)
    else:
        for d in (left, right):
            graph.freeze(d, f"two activations are contracted over it in {call.where}")
    batch = [
        graph.meet(p, q, f"meets a fixed size in {call.where}") for p, q in zip(a.dims[:n], b.dims[:n], strict=True)
    ]
    if a.source is None and b.source is None:
        _apart(call, batch)
    dims: list[Dim] = [*batch, a.dims[n], b.dims[m]]
    if call.name in ("addmm", "baddbmm"):
        added = Track(call.sizes, tuple(dims))
        dims = broadcast(call, [added, call.track("self")], len(call.sizes))
    summed = left if isinstance(left, np.ndarray) else right  # of a first state of zeros the weight's tells
    extents = [
        _sized(d, s) for d, s in zip((*batch, a.dims[n], summed, b.dims[m]), (*a.sizes, b.sizes[m]), strict=True)
    ]
    if call.inside.slots is not None:  # the trace runs every expert on every token
        extents[0] = call.inside.slots
    flops(call, 1.0, *extents)
    return call.out(dims)


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
def attention(call: Call) -> list[Track]:
    """Fused attention on [.., H, N, D]: heads and batch go along, D of q and k is contracted, D of v comes out."""
    q, k, v = call.track("query"), call.track("key"), call.track("value")
    graph = call.graph
    last = len(q.dims) - 1
    for d in (q.dims[last], k.dims[last]):
        graph.freeze(d, f"two activations are contracted over it in {call.where}")
    for t in (q, k, v):
        graph.freeze(t.dims[last - 1], f"softmax runs over it in {call.where}")
    lead: list[Dim] = list(q.dims[: last - 1])
    for t in (k, v):
        lead = [
            _shared(call, a, n, b, m) for a, n, b, m in zip(lead, q.sizes, t.dims[: last - 1], t.sizes, strict=False)
        ]
    for name in ("attn_mask", "attn_bias"):
        if call.given(name):
            mask = call.track(name)
            for d in mask.dims[-2:]:
                graph.freeze(d, f"masks attention in {call.where}")
            if len(mask.dims) > 2:
                inner = Track(mask.sizes[:-2], mask.dims[:-2])
                lead = broadcast(call, [Track(q.sizes[: last - 1], tuple(lead)), inner], last - 1)
    _apart(call, lead)
    sizes = q.sizes[: last - 1]
    heads = [_sized(d, s) for d, s in zip(lead, sizes, strict=True)]
    rows, columns = q.sizes[last - 1], k.sizes[last - 1]
    flops(call, float(rows * columns * q.sizes[last]), *heads)
    flops(call, float(rows * columns), *heads, _sized(v.dims[last], v.sizes[last]))
    out = call.out([*lead, CONSTANT, v.dims[last]])[0]
    return [out] + [Track.constant(o.shape) for o in call.outputs[1:]]


def _apart(call: Call, dims: list[Dim]) -> None:
    """Two activations are multiplied for each position of these dimensions alone."""
    module = call.inside.site.module
    call.graph.products.extend(Product(module, d) for d in dims if isinstance(d, np.ndarray))


def _shared(call: Call, query: Dim, n: int, key: Dim, m: int) -> Dim:
    """`n` query heads that share `m` key or value heads, consecutive ones the same: whole sharing groups go.

    A single key head asks nothing of the query heads, which go one by one.
    """
    if m == 1:
        return query
    if n == m:
        return call.graph.meet(query, key, f"meets a fixed size in {call.where}")
    if n % m == 0 and isinstance(query, np.ndarray) and isinstance(key, np.ndarray):
        call.graph.join(query, np.repeat(key, n // m))
        return query
    for d in (query, key):
        call.graph.freeze(d, f"{n} query heads share {m} in {call.where}")
    return query
