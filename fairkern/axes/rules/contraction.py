"""Operators that sum over positions against a weight: convolution, matrix products, attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fairkern.axes.dims import CONSTANT, Dim, Fixed, Track, Uniform
from fairkern.axes.facts import Factors, Flops, GroupedConvolution, Product
from fairkern.axes.rules._call import Call
from fairkern.axes.rules.elementwise import broadcast
from fairkern.axes.rules.registry import rule
from fairkern.axes.rules.weights import consume, produce


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
    """Where there are at least as many groups as inputs in each, whole groups go, if they may, else one input of every
    group, or one output; where there are fewer, one position of every group."""
    graph, channels, made, inner = call.graph, x.dims[1], w.dims[0], w.dims[1]
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
        _of_groups(call, channels, whole, inner)
        _of_groups(call, made, whole, graph.new(per_out))
        if per_in > 1:
            consume(call, channels, w, 1, positions=channels, whole=whole)
        graph.grouped_convolutions.append(GroupedConvolution(name, channels, whole, made))
    else:
        assert isinstance(inner, np.ndarray)
        graph.join(np.tile(inner, groups), channels)
        graph.join(np.tile(made[:per_out], groups), made)
        consume(call, channels, w, 1, positions=channels)
        graph.grouped_convolutions.append(GroupedConvolution(name, channels, None, made))
    return made


def _of_groups(call: Call, flat: np.ndarray, whole: np.ndarray, inner: Dim) -> None:
    """`flat` holds as many channels of every group: whole groups go, where they may, else one channel of each."""
    if isinstance(inner, np.ndarray) and len(inner) > 1:
        first = f"whole groups of {call.where} are cut"
        call.graph.factors.append(Factors(flat.reshape(len(whole), -1), (whole, inner), first))
    else:
        call.graph.join(whole, flat)


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
        whole, made = graph.new(groups), graph.new(groups * per_out)
        graph.join(channels, given)
        _of_groups(call, channels, whole, graph.new(per_in))
        _of_groups(call, made, whole, shared)
        if per_in > 1:
            consume(call, channels, w, 0, whole=whole)
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
