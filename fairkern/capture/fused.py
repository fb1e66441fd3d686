"""How fused experts are heard: all rows at once, those of each being what it makes of the tokens routed to it; it is
silent for all others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest

from torch import Tensor, nn

from fairkern.capture.listener import Listener
from fairkern.capture.points import Point
from fairkern.model.fused import Forward, Rows, by_rows, one_by_one
from fairkern.types import Side


def listening(points: Iterable[Point], listener: Listener) -> Mapping[str, Forward]:
    """By path, how a module of fused experts runs while it is listened to."""
    by_site = defaultdict(list)
    for p in points:
        if p.expert is not None:
            for site in p.sites:
                by_site[site, p.side, p.expert].append(p)

    def run(path: str) -> Forward:
        def forward(module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
            if not listener.hears():
                return one_by_one(module, hidden, index, weights)
            site, carrier = listener.next_site(path, Side.EXPERT), hidden.detach()

            def hear(side: Side) -> Callable[[Tensor, Rows], Tensor]:
                def heard(x: Tensor, rows: Rows) -> Tensor:
                    own = (by_site.get((site, side, expert), ()) for expert in range(len(rows.counts)))
                    for turn in zip_longest(*own):  # most often one point for each expert
                        x = listener.hear_rows(turn, x, rows, carrier)
                    return x

                return heard

            return by_rows(module, hidden, index, weights, inner=hear(Side.INNER), output=hear(Side.EXPERT))

        return forward

    return {path: run(path) for path in {site.module for site, _, _ in by_site}}
