"""Branches as units: which of them make a group, and the lists whose modules go once all their branches do."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from fairkern.axes.blocks import blocks_of, kinds_of, numbers_of
from fairkern.axes.branches import Found, FoundBranch, FoundPart, branches
from fairkern.axes.extents import Extents
from fairkern.axes.tracing import Tracing
from fairkern.model.tensors import LISTS
from fairkern.types import (
    Axis,
    AxisGroup,
    Blocks,
    Branch,
    BranchPart,
    CallSite,
    GroupAxis,
    KeptUnits,
    Numbers,
    Side,
    Silence,
    Tap,
    UnitMap,
)

ALONE = "no other branch has its place in another block"
_HOLDERS = (*LISTS, nn.Sequential)


@dataclass(frozen=True)
class _Group:
    name: str
    branches: tuple[FoundBranch, ...]


@dataclass
class Depth:
    """The branches of a model. `first`: the number of their first group."""

    model: nn.Module
    found: Found = field(default_factory=Found)
    groups: list[_Group] = field(default_factory=list)
    blocks: dict[str, Blocks] = field(default_factory=dict)
    first: int = 0

    @classmethod
    def of(cls, model: nn.Module, tracing: Tracing) -> Depth:
        if not tracing.depth:
            return cls(model)
        made = cls(model, branches(model, tracing.flows))
        lists = _lists(model)
        kinds = {path: kinds_of(model, path) for path in lists}
        numbers = {path: tuple(numbers_of(model, path, names, kinds[path])) for path, names in lists.items()}
        made.groups = list(_grouped(model, made.found.branches, lists, kinds, numbers))
        units = {id(b): (g.name, u) for g in made.groups if len(g.branches) > 1 for u, b in enumerate(g.branches)}
        found = made.found.branches
        made.blocks = dict(blocks_of(model, tracing.flows[0], lists, kinds, numbers, found, units))
        return made

    def living(self) -> Iterator[tuple[str, int, int]]:
        """(path of a module, group, unit with which it goes)."""
        for g, group in enumerate(self.groups):
            for unit, branch in enumerate(group.branches):
                yield from ((path, self.first + g, unit) for path in branch.paths)

    def lives(self, tensor: str) -> list[tuple[int, int]]:
        """Groups and units with which a tensor goes."""
        return [(g, unit) for path, g, unit in self.living() if tensor.startswith(f"{path}.")]

    def operations(self, tracing: Tracing) -> Mapping[int, list[tuple[int, int]]]:
        """Per fact on FLOPs, groups and units with which the operation goes."""
        found: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for g, group in enumerate(self.groups):
            for unit, branch in enumerate(group.branches):
                for number in sorted(branch.gone):
                    for fact in range(*tracing.flows[0].operations[number].flops):
                        found[fact].append((self.first + g, unit))
        return found

    def described(self, units: UnitMap, sizes: Extents) -> UnitMap:
        """The map with the groups of branches behind its own."""
        if not self.found.branches and not self.found.kept:
            return units
        more, held = [], {}
        for group in self.groups:
            n = len(group.branches)
            every = np.arange(n, dtype=np.int64)[:, None]
            sites = tuple(CallSite(branch.last.run.path) for branch in group.branches)
            more.append(
                AxisGroup(
                    group.name,
                    "branch",
                    n,
                    (GroupAxis(Axis(group.name, 0), n, every, Silence.NOTHING_ADDED),),
                    (Tap(sites, Side.BRANCH, 0, n, every, ()),),
                    frozen=None if n > 1 else ALONE,
                )
            )
            held[group.name] = tuple(_branch(branch, sizes) for branch in group.branches)
        kept = (KeptUnits("branch", path, reason) for path, reason in self.found.kept.items())
        return replace(
            units,
            groups=(*units.groups, *more),
            branches=held,
            blocks=self.blocks,
            kept=(*units.kept, *kept),
            depth=True,
        )


def _branch(found: FoundBranch, sizes: Extents) -> Branch:
    last = found.last
    channels = [d for d, dim in enumerate(last.made.dims) if isinstance(dim, np.ndarray)]
    d = (channels[-1] if channels else len(last.made.size) - 1) - len(last.made.size)
    return Branch(tuple(_part(part, sizes) for part in found.parts), d, last.made.size[d])


def _part(part: FoundPart, sizes: Extents) -> BranchPart:
    before, after = (sizes.of(dim) if isinstance(dim, np.ndarray) else None for dim in part.nodes)
    other = part.size != part.given.size[part.dim] or before != after
    return BranchPart(
        part.run.path,
        part.given.place,
        part.dim,
        part.size if other else None,
        part.passes and not other,
        part.run.entries,
        part.made.place,
        after if other else None,
    )


def _lists(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Lists of modules by path, and the names of those."""
    found = {}
    for path, module in model.named_modules():
        if path and isinstance(module, _HOLDERS) and None not in module._modules.values():
            found[path] = tuple(module._modules)
    return found


def _within(path: str, lists: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """The lists that a module lies in, inner ones first, and the name there of what holds it."""
    parts = path.split(".")
    for n in range(len(parts) - 1, 0, -1):
        if ".".join(parts[:n]) in lists:
            yield ".".join(parts[:n]), parts[n]


def _grouped(
    model: nn.Module,
    found: Sequence[FoundBranch],
    lists: Mapping[str, Sequence[str]],
    kinds: Mapping[str, Mapping[str, str]],
    numbers: Mapping[str, Sequence[Numbers]],
) -> Iterator[_Group]:
    """Those at one place in several modules of a list, else those of modules that are alike.

    Of branches with a number (a cache's) those of one kind, since one of each kind has to stay."""

    def key(branch: FoundBranch, path: str, entry: str) -> tuple[Any, ...] | None:
        inside = f"{path}.{entry}"
        if not all(p == inside or p.startswith(f"{inside}.") for p in branch.paths):
            return None
        rest = tuple(p.removeprefix(inside) for p in branch.paths)
        counted = [f"{inside}.{held.within}." for held in numbers.get(path, ())]
        numbered = any(n.startswith(f"{p}.") for n in counted for p in branch.paths)
        return path, rest, _types(model, branch), kinds[path].get(entry, "") if numbered else ""

    keys = [[k for at in _within(b.paths[0], lists) if (k := key(b, *at)) is not None] for b in found]
    count = Counter(k for own in keys for k in own)
    first = [next((k for k in own if count[k] > 1), None) for own in keys]  # of the innermost list
    count = Counter(k for k in first if k is not None)
    chosen: dict[tuple[Any, ...], list[FoundBranch]] = defaultdict(list)
    for branch, best, own in zip(found, first, keys, strict=True):
        if best is None or count[best] == 1:
            rest = tuple(p.removeprefix(branch.module) for p in branch.paths)
            kind = own[0][-1] if own else ""
            best = ("", type(model.get_submodule(branch.module)), rest, _types(model, branch), kind)
        chosen[best].append(branch)
    names: Counter[str] = Counter()
    for (*_, kind), members in chosen.items():
        name = _name(model, members) + (f"[{kind}]" if kind else "")
        names[name] += 1
        yield _Group(f"{name}[{names[name] - 1}]" if names[name] > 1 else name, tuple(members))


def _types(model: nn.Module, branch: FoundBranch) -> tuple[type, ...]:
    return tuple(type(module) for path in branch.paths for module in model.get_submodule(path).modules())


def _name(model: nn.Module, members: Sequence[FoundBranch]) -> str:
    """The module that does its work, with a star where those of several branches differ."""
    paths = [_worker(model, branch).split(".") for branch in members]
    if len({len(path) for path in paths}) > 1:
        return ".".join(paths[0])
    return ".".join(names[0] if len(set(names)) == 1 else _starred(names) for names in zip(*paths, strict=True))


def _starred(names: Sequence[str]) -> str:
    """What several names begin with, and a star."""
    first, last = min(names), max(names)
    alike = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return f"{first[:alike]}*"


def _worker(model: nn.Module, branch: FoundBranch) -> str:
    """The last module with a matrix; what is around all of those within the block, if anything is."""
    working = [p for p in branch.paths if any(t.ndim > 1 for t in model.get_submodule(p).parameters())]
    working = working or list(branch.paths)
    common = []
    for names in zip(*(path.split(".") for path in working), strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    around = ".".join(common)
    block = isinstance(model.get_submodule(around.rpartition(".")[0]), _HOLDERS) if "." in around else not around
    return working[-1] if len(working) > 1 and block else around
