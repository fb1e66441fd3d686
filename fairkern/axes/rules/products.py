"""Products of fewer or more factors than two matrices: with vectors, of three tensors, and distances."""

from __future__ import annotations

from fairkern.axes.dims import Dim, Track
from fairkern.axes.rules._call import Call
from fairkern.axes.rules.elementwise import broadcast
from fairkern.axes.rules.registry import rule
from fairkern.axes.rules.weights import consume, produce


@rule("mv", "addmv", "dot")
def vector_product(call: Call) -> list[Track]:
    """[n, k] × [k] → [n], and [k] × [k] → []."""
    names = {"mv": ("self", "vec"), "addmv": ("mat", "vec"), "dot": ("self", "tensor")}[call.name]
    a, v = map(call.track, names)
    weights = [t for t in (a, v) if t.source is not None] or [
        t for t, name in zip((a, v), names, strict=True) if call.still([call.args[name]])
    ]
    last = len(a.dims) - 1
    if weights == [v]:
        consume(call, a.dims[last], v, 0)
    elif weights == [a]:
        consume(call, v.dims[0], a, last)
        if last:
            produce(call, a, 0, -1)
    else:
        for d in (a.dims[last], v.dims[0]):
            call.graph.freeze(d, f"two activations are contracted over it in {call.where}")
    dims: list[Dim] = list(a.dims[:last])
    if call.name == "addmv":
        dims = broadcast(call, [Track(call.sizes, tuple(dims)), call.track("self")], len(call.sizes))
    return call.out(dims)


@rule("_trilinear")
def bilinear(call: Call) -> list[Track]:
    """`x[n, i] · w[o, i, j] · y[n, j]` → [n, o], as of `nn.Bilinear`."""
    x, w, y = (call.track(name) for name in ("i1", "i2", "i3"))
    if [list(call.args[name]) for name in ("expand1", "expand2", "expand3", "sumdim")] != [[1, 3], [0], [1, 2], [2, 3]]:
        call.freeze_all(f"is multiplied along other dimensions by {call.where}")
        return [Track.constant(call.sizes)]
    consume(call, x.dims[1], w, 1)
    consume(call, y.dims[1], w, 2)
    produce(call, w, 0, -1)
    return call.out([call.graph.meet(x.dims[0], y.dims[0], f"meets a fixed size in {call.where}"), w.dims[0]])


@rule("_cdist_forward")
def distances(call: Call) -> list[Track]:
    """[.., n, k] and [.., m, k] → [.., n, m]."""
    a, b = call.track("x1"), call.track("x2")
    for d in (a.dims[-1], b.dims[-1]):
        call.graph.freeze(d, f"distances are taken over it in {call.where}")
    lead = [Track(t.sizes[:-2], t.dims[:-2]) for t in (a, b)]
    return call.out([*broadcast(call, lead, len(call.sizes) - 2), a.dims[-2], b.dims[-2]])
