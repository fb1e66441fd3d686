"""Connected components of axis positions, most of which are connected run by run: all of one dimension to all of
another."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

_AT_ONCE = 2**20  # nodes that are looked at in one go

Pair = tuple[np.ndarray, np.ndarray]  # `a[i]` and `b[i]` are connected
Run = tuple[int, int]  # nodes one after the other: the first, and how many


def connected(pairs: Sequence[Pair], count: int) -> tuple[int, np.ndarray]:
    """How many components `count` nodes have that are connected so, and the number of each node's, in the order of the
    components' first nodes.

    Runs of nodes that are connected to runs are joined as such; only what is left is looked at node by node. Memory:
    two numbers of 32 bits per node, beside what is left.
    """
    pairs = [(a, b) for a, b in pairs if a is not b and len(a)]
    runs: dict[int, Run | None] = {}
    for nodes in (nodes for pair in pairs for nodes in pair):
        if id(nodes) not in runs:
            runs[id(nodes)] = _run(nodes)
    lone = _lone({run for run in runs.values() if run is not None})
    roots: dict[int, int] = {}
    rest: list[Pair] = []
    for a, b in pairs:
        one, other = runs[id(a)], runs[id(b)]
        if one is not None and other is not None and one in lone and other in lone:
            low, high = sorted((_root(roots, one[0]), _root(roots, other[0])))
            roots[high] = low
        else:
            rest.append((a, b))
    first = np.arange(count, dtype=np.int32)  # the first of the nodes that each is known to be connected to
    for start, length in lone:
        root = _root(roots, start)
        first[start : start + length] = np.arange(root, root + length, dtype=np.int32)
    if rest:
        _join(first, rest)
    return _numbered(first)


def _run(nodes: np.ndarray) -> Run | None:
    low, n = int(nodes[0]), len(nodes)
    if int(nodes[-1]) - low != n - 1 or not (nodes[1:] - nodes[:-1] == 1).all():
        return None
    return low, n


def _lone(runs: Collection[Run]) -> set[Run]:
    """Those that no other overlaps."""
    overlapped: set[Run] = set()
    furthest = (-1, 0)
    for run in sorted(runs):
        if run[0] < sum(furthest):
            overlapped |= {run, furthest}
        if sum(run) > sum(furthest):
            furthest = run
    return set(runs) - overlapped


def _root(roots: dict[int, int], start: int) -> int:
    found = start
    while (above := roots.get(found, found)) != found:
        found = above
    while start != found:
        roots[start], start = found, roots[start]
    return found


def _join(first: np.ndarray, pairs: Sequence[Pair]) -> None:
    """Joins these, node by node."""
    from scipy.sparse import coo_array  # imported by who traces: it takes as long as all of fairkern
    from scipy.sparse.csgraph import connected_components

    a, b = (first[np.concatenate(ends)] for ends in zip(*pairs, strict=True))
    differ = a != b
    a, b = a[differ], b[differ]
    met = np.zeros(len(first), dtype=bool)
    met[a] = met[b] = True
    nodes = np.flatnonzero(met)
    number = np.cumsum(met, dtype=np.int32)  # of 64-bit ones older versions of SciPy give labels never written
    number -= 1
    ends = (np.ones(len(a), dtype=np.int8), (number[a], number[b]))
    _, labels = connected_components(coo_array(ends, shape=(len(nodes), len(nodes))), directed=False)
    news = np.flatnonzero(np.diff(np.maximum.accumulate(labels), prepend=-1))  # labels come in the order of their nodes
    first[nodes] = nodes[news][labels]
    for start in range(0, len(first), _AT_ONCE):
        part = first[start : start + _AT_ONCE]
        part[:] = first[part]


def _numbered(first: np.ndarray) -> tuple[int, np.ndarray]:
    """Components numbered by their first nodes, in the place of these."""
    leads = np.zeros(len(first), dtype=bool)
    for start in range(0, len(first), _AT_ONCE):
        part = first[start : start + _AT_ONCE]
        leads[start : start + _AT_ONCE] = part == np.arange(start, start + len(part), dtype=np.int32)
    number = np.cumsum(leads, dtype=np.int32)
    number -= 1
    for start in range(0, len(first), _AT_ONCE):
        part = first[start : start + _AT_ONCE]
        part[:] = number[part]
    return int(number[-1]) + 1 if len(number) else 0, first
