"""Where the units of a group are heard: at the inputs of its consumers and at the outputs of its producers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fairkern.axes.facts import Contraction, Production
from fairkern.model.recurrent import reading
from fairkern.types import CallSite, Side, Tap


def input_taps(contractions: Iterable[tuple[Contraction, np.ndarray]]) -> tuple[Tap, ...]:
    """One per activation that is contracted; given with each contraction are its `[units, per unit]` positions."""
    taps: dict[object, Tap] = {}
    heard: set[tuple[Side, CallSite]] = set()  # further runs reach the same sites again
    for c, positions in contractions:
        hidden = c.side is Side.HIDDEN
        key = (c.site, reading(c.weight.tensor.rpartition(".")[2])) if hidden else (c.activation, c.dim)
        known = taps.get(key)
        if c.untapped or (known is None and (c.side, c.site) in heard):
            continue
        if not hidden:
            heard.add((c.side, c.site))
        sites, weights = (known.sites, known.weights) if known else ((), ())
        sites = sites if c.site in sites else (*sites, c.site)
        weights = weights if c.weight in weights else (*weights, c.weight)
        taps[key] = Tap(sites, c.side, c.dim, len(c.nodes), positions, weights)
    return tuple(taps.values())


def output_taps(productions: Iterable[tuple[Production, np.ndarray]]) -> tuple[Tap, ...]:
    """One per call that returns units; further runs reach the same calls again."""
    taps: dict[CallSite, Tap] = {}
    for p, positions in productions:
        if p.site not in taps:
            taps[p.site] = Tap((p.site,), Side.OUTPUT, p.dim, len(p.nodes), positions, (p.weight,))
    return tuple(taps.values())
