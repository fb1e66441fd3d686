"""Components against scipy's, over runs that lie apart, overlap or are repeated, and single nodes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fairkern.axes.connected import connected


def definition(pairs: list[tuple[np.ndarray, np.ndarray]], count: int) -> tuple[int, np.ndarray]:
    none = np.zeros(0, dtype=np.int32)  # of numbers of 64 bits older versions of SciPy find nothing
    a, b = (np.concatenate([none, *(pair[k] for pair in pairs)]) for k in (0, 1))
    matrix = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
    found: tuple[int, np.ndarray] = connected_components(matrix, directed=False)
    return found


@pytest.mark.parametrize("seed", range(60))
def test_as_scipy_finds_them(seed: int) -> None:
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 80))
    nodes = np.arange(count, dtype=np.int32)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(int(draw.integers(0, 12))):
        n = int(draw.integers(0, count // 4 + 1))
        if draw.random() < 0.7:  # runs, of which a grid of places makes many meet as wholes
            step = 1 if draw.random() < 0.3 else max(n, 1)
            a, b = (step * int(draw.integers(0, (count - n) // step + 1)) for _ in range(2))
            pairs.append((nodes[a : a + n], nodes[b : b + n]))
        else:
            pairs.append((draw.integers(0, count, n).astype(np.int32), draw.integers(0, count, n).astype(np.int32)))
        if pairs and draw.random() < 0.3:
            pairs.append((pairs[0][0], pairs[-1][1]) if len(pairs[0][0]) == len(pairs[-1][1]) else pairs[0])
    found, labels = connected(pairs, count)
    expected, theirs = definition(pairs, count)
    assert found == expected
    assert labels.tolist() == theirs.tolist()


def test_no_nodes() -> None:
    assert connected([], 0)[0] == 0


def test_long_runs_cross_what_is_looked_at_in_one_go() -> None:
    n = 3 * 2**19
    nodes = np.arange(2 * n, dtype=np.int32)
    found, labels = connected([(nodes[n:], nodes[:n]), (nodes[:1], nodes[n - 1 : n])], 2 * n)
    assert found == n - 1
    assert (labels[:n] == labels[n:]).all()
    assert labels[n - 1] == labels[0] == 0
