"""Random models of everything that a network is made of, and what must hold for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bench.graphs.check import Row, examine, figures, one_thread
from bench.graphs.grow import drawn

__all__ = ["Row", "figures", "run"]


def run(seeds: Iterable[int], *, most: int = 9, scored_every: int = 3) -> Iterator[Row]:
    """A row for every seed, on one thread; a model in so many is scored as well. Deterministic but for the seconds.

    `most`: how many pieces a model has besides stems and ends.
    """
    with one_thread():
        for seed in seeds:
            yield examine(drawn(seed, most), scored=seed % scored_every == 0)
