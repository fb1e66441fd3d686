"""Solving and factoring of batches of matrices: the matrices stay as large as they are, the batch goes along."""

from __future__ import annotations

from fairkern.axes.dims import CONSTANT, Dim, Track
from fairkern.axes.rules._call import Call
from fairkern.axes.rules.elementwise import broadcast
from fairkern.axes.rules.registry import rule


def _stay(call: Call, dims: tuple[Dim, ...]) -> None:
    for dim in dims:
        call.graph.freeze(dim, f"{call.where} runs over it")


def _batch(track: Track, inner: int) -> Track:
    """A tensor without its last dimensions."""
    n = len(track.dims) - inner
    return Track(track.sizes[:n], track.dims[:n])


@rule("linalg_solve_triangular")
def solve_triangular(call: Call) -> list[Track]:
    """`X` with `A X = B` (or `X A = B`): [.., n, n] and [.., n, k] → [.., n, k]; every column is solved alone."""
    a, b = call.track("self"), call.track("B")
    column = -1 if call.args["left"] else -2
    _stay(call, (*a.dims[-2:], b.dims[-3 - column]))
    lead = broadcast(call, [_batch(a, 2), _batch(b, 2)], len(call.sizes) - 2)
    matrix: list[Dim] = [CONSTANT, CONSTANT]
    matrix[column] = b.dims[column]
    return call.out([*lead, *matrix])


@rule("linalg_inv_ex", "linalg_cholesky_ex", "linalg_matrix_exp")
def of_matrices(call: Call) -> list[Track]:
    """One matrix from each; further results hold a number for each."""
    x = call.track(call.tensors[0])
    _stay(call, x.dims[-2:])
    lead = _batch(x, 2).dims
    rest = [Track(tuple(o.shape), (*lead, *[CONSTANT] * (o.ndim - len(lead)))) for o in call.outputs[1:]]
    return [*call.out([*lead, CONSTANT, CONSTANT]), *rest]


@rule("_linalg_check_errors")
def checked(call: Call) -> list[Track]:
    """Raises where a matrix could not be factored: it is asked of each alone."""
    return []
