"""Routers that choose groups of experts first, and experts within those (DeepSeek's `n_group`).

Scores of all experts are viewed as [groups, experts of a group]. The model's code counts on groups of one size, so
every group loses as many experts as the others, and not the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fairkern.axes.facts import Edge, Factors, Spread
from fairkern.axes.graph import Graph
from fairkern.axes.solver import components


@dataclass(frozen=True, eq=False)
class GroupedChoice:
    """One view of positions as [groups, within], and all that is said of the same two.

    `least`: so many within a group are looked for at once. `chosen`: of so many groups positions are chosen.
    """

    flat: np.ndarray  # [groups, within]
    within: tuple[np.ndarray, ...]  # of every view and spread
    views: tuple[Factors, ...]
    spreads: tuple[Spread, ...]
    least: int
    chosen: int

    @property
    def edges(self) -> list[Edge]:
        """What goes together if the positions are experts: those of every view and spread."""
        others = (*(view.flat for view in self.views[1:]), *(spread.flat for spread in self.spreads))
        return [Edge(self.flat.reshape(-1), flat.reshape(-1)) for flat in others]

    @classmethod
    def of_all(cls, choices: Sequence[GroupedChoice]) -> GroupedChoice | None:
        """What several calls chose among the same positions as one; None if it was among other groups."""
        if len({choice.flat.shape for choice in choices}) != 1:
            return None
        return cls(
            choices[0].flat,
            tuple(within for choice in choices for within in choice.within),
            tuple(view for choice in choices for view in choice.views),
            tuple(spread for choice in choices for spread in choice.spreads),
            max(choice.least for choice in choices),
            min(choice.chosen for choice in choices),
        )


def grouped_choices(graph: Graph) -> list[GroupedChoice]:
    """The views of two factors of which the first is ranked: the best groups are looked for.

    Of a model without such a view nothing is computed.
    """
    split = [f for f in graph.factors if f.flat.ndim == 2 and not f.first]
    ranked = {tuple(ranking.nodes.tolist()) for ranking in graph.rankings}
    if not any(tuple(f.factors[0].tolist()) in ranked for f in split):
        return []
    labels = components(graph.edges, graph.nodes)
    ranks: dict[bytes, list[int]] = {}
    for ranking in graph.rankings:
        ranks.setdefault(labels[ranking.nodes].tobytes(), []).append(ranking.k)
    views: dict[tuple[bytes, bytes], list[Factors]] = {}
    for f in split:
        blocks, within = (labels[nodes].tobytes() for nodes in f.factors)
        if blocks in ranks:
            views.setdefault((blocks, within), []).append(f)
    found = []
    for (blocks, within), same in views.items():
        spreads = [
            s for s in graph.spreads if labels[s.blocks].tobytes() == blocks and s.flat.shape == same[0].flat.shape
        ]
        found.append(
            GroupedChoice(
                same[0].flat,
                (*(f.factors[1] for f in same), *(s.within for s in spreads)),
                tuple(same),
                tuple(spreads),
                max(ranks.get(within, [1])),
                min(ranks[blocks]),
            )
        )
    return found


def ordinary(graph: Graph, choices: Sequence[GroupedChoice]) -> list[Edge]:
    """What goes together by all other spreads: every place of a block with the block."""
    held = {spread for choice in choices for spread in choice.spreads}
    spreads: Iterable[Spread] = (s for s in graph.spreads if s not in held)
    return [Edge(s.flat.reshape(-1), np.repeat(s.blocks, s.flat.shape[1])) for s in spreads]
