"""Experts that are modules of a list, and the router that they belong to: a guess by structure, which a proof tests."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from fairkern.axes.tracing import Tracing
from fairkern.model.tensors import LISTS, runner
from fairkern.types import Axis, Entries

_COUNT = re.compile(r"expert", re.IGNORECASE)
_OTHER_COUNT = re.compile(r"per_tok|top|shared|group|capacity", re.IGNORECASE)


@dataclass(frozen=True)
class RoutedList:
    """A list of as many modules as a router has logits, of which the k largest are looked for."""

    path: str
    entries: Entries
    logits: np.ndarray  # nodes, one per module
    routers: frozenset[Axis]


def routed_lists(
    model: nn.Module, tracing: Tracing, routers: Collection[tuple[frozenset[Axis], np.ndarray]]
) -> Iterator[RoutedList]:
    """The list that belongs to each of `routers` (axes of its matrices, nodes of its logits), where that is clear.

    It is the list of as many modules that shares the innermost surrounding module with the router, which is not in
    one of them. Every module of it is there once and shares no tensor with what is outside; what holds the list runs
    once.
    """
    candidates = dict(_lists(model, tracing))
    found: list[RoutedList] = []
    for axes, logits in routers:
        near: dict[str, int] = {}
        for path, entries in candidates.items():
            depth = min(_shared(path, a.module) for a in axes)
            inside = any(f"{a.module}.".startswith(f"{path}.{name}.") for a in axes for name in entries.names)
            if len(entries.names) == len(logits) and not inside:
                near[path] = depth
        best = [path for path, depth in near.items() if depth == max(near.values())]
        if len(best) == 1:
            found.append(RoutedList(best[0], candidates[best[0]], logits, axes))
    claims = Counter(made.path for made in found)
    yield from (made for made in found if claims[made.path] == 1)


def _shared(a: str, b: str) -> int:
    """How many names two paths have in common, from the outermost."""
    pairs = zip(a.split("."), b.split("."), strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(a.count("."), b.count(".")) + 1)


def _lists(model: nn.Module, tracing: Tracing) -> Iterator[tuple[str, Entries]]:
    places = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    holders: dict[int, list[str]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        holders.setdefault(id(tensor), []).append(name)
    for path, module in model.named_modules():
        listed = isinstance(module, LISTS) and len(module) > 1
        if not path or not listed or tracing.calls[runner(model, path)] != 1:
            continue
        if None in module._modules.values():  # an empty place, which is no expert
            continue
        prefix = f"{path}."
        names = tuple(module._modules)
        entries = [module.get_submodule(name) for name in names]
        once = all(places[id(entry)] == 1 for entry in entries)
        own = all(
            all(place.startswith(f"{prefix}{name}.") for place in holders[id(t)])
            for name, entry in zip(names, entries, strict=True)
            for t in (*entry.parameters(), *entry.buffers())
        )
        widths = {tracing.widths[prefix + n] for n in names if prefix + n in tracing.widths}
        single = all(tracing.calls[prefix + n] <= 1 for n in names)
        if once and own and single and len(widths) == 1 and all(any(True for _ in e.parameters()) for e in entries):
            yield path, Entries(names, widths.pop())


def counts(model: nn.Module, made: RoutedList) -> Iterator[tuple[str, str]]:
    """(module path, attribute) of whole numbers that say how many experts there are, by name and value.

    On the list, the router's modules, and what holds them up to the innermost module around both.
    """
    places = [made.path, *sorted(a.module for a in made.routers)]
    depth = min(_shared(made.path, a.module) for a in made.routers)
    around = []
    for place in places:
        parts = place.split(".") if place else []
        around += [".".join(parts[:n]) for n in range(len(parts), depth - 1, -1)]
    for path in dict.fromkeys(around):
        for name, value in vars(model.get_submodule(path)).items():
            said = _COUNT.search(name) and not _OTHER_COUNT.search(name)
            if said and type(value) is int and value == len(made.logits):
                yield path, name
