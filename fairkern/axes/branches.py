"""Branches of residual blocks: what is computed from a stream, used nowhere else, and added to it; found by values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from fairkern.axes.dims import Dim
from fairkern.axes.flow import Flow, ModuleRun, Passing, single

# operators that give zeros of zeros, beside views
ZEROS = frozenset(
    [
        *(
            "mul",
            "mul_",
            "div",
            "div_",
            "neg",
            "abs",
            "clone",
            "contiguous",
            "_to_copy",
            "_unsafe_view",
            "alias",
            "detach",
        ),
        *(
            "roll",
            "flip",
            "constant_pad_nd",
            "dropout",
            "native_dropout",
            "relu",
            "relu_",
            "gelu",
            "silu",
            "silu_",
            "tanh",
        ),
        *("leaky_relu", "leaky_relu_", "hardswish", "hardswish_", "elu", "mish"),
    ]
)


@dataclass(frozen=True)
class FoundPart:
    """A module of a branch: its call, what it returned, and the argument of that size, but for one dimension.

    `passes`: it may hand on that argument, if it is of the same size after a cut as well."""

    run: ModuleRun
    made: Passing
    given: Passing
    dim: int  # that of another size, or else of channels; from the last
    passes: bool

    @property
    def size(self) -> int:
        return self.made.size[self.dim]

    @property
    def nodes(self) -> tuple[Dim, Dim]:
        """Of the dimension in the argument and in what was returned."""
        return self.given.dims[self.dim], self.made.dims[self.dim]


@dataclass(frozen=True, eq=False)
class FoundBranch:
    """`parts`: in order, the last returns what is added. `gone`: operations that go with them; `own`: all that are
    there for nothing else. `stream`, `made`: the values before and behind the sum, of which `sums` are the operations
    and `terms` what they add up. `module`: in whose code that is done."""

    parts: tuple[FoundPart, ...]
    gone: frozenset[int]
    own: frozenset[int]
    stream: int
    made: int
    terms: tuple[int, ...]
    sums: frozenset[int]
    module: str

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(part.run.path for part in self.parts)

    @property
    def last(self) -> FoundPart:
        return self.parts[-1]


@dataclass
class Found:
    """The branches of a run, by the module that returns what is added; and what looks like one and is none."""

    branches: list[FoundBranch] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)  # module -> reason


class _Run:
    """One run, and what follows from its operations."""

    def __init__(self, model: nn.Module, flow: Flow, alone: Collection[str]) -> None:
        self.flow, self._alone = flow, alone
        self.operations, self.uses, self.makers = flow.operations, flow.uses(), flow.makers()
        self._calls = Counter(run.path for run in flow.runs)
        self._modules = dict(model.named_modules())
        self._weights = set(flow.held.values())
        self._held = {p: [v for name, v in flow.held.items() if name.startswith(f"{p}.")] for p in self._calls}
        self._added = {op.makes[0]: i for i, op in enumerate(self.operations) if self._sum(i)}

    def _sum(self, number: int) -> bool:
        op = self.operations[number]
        full = len(op.reads) == 2 and op.sizes[0] == op.sizes[1] and len(op.sizes[0]) > 1
        return op.name in ("add", "add_") and full and not op.scaled and op.reads[0] != op.reads[1]

    def _inner(self, value: int) -> bool:
        """Whether this is a sum that only another sum reads."""
        read = self.uses.get(value, [])
        single = len(read) == 1 and self.operations[read[0]].makes[0] in self._added
        return value in self._added and single and not self._seen(value)

    def _seen(self, value: int) -> bool:
        return value in self.flow.results or value in self.flow.sinks

    def _terms(self, value: int) -> tuple[list[int], list[int]]:
        """What a sum of sums adds up, and its operations."""
        found: list[int] = []
        sums = [self._added[value]]
        for read in self.operations[self._added[value]].reads:
            terms, more = self._terms(read) if self._inner(read) else ([read], [])
            found, sums = [*found, *terms], [*sums, *more]
        return found, sums

    def _ancestor(self, value: int, of: int) -> bool:
        """Whether one value was made of the other."""
        first = self.makers.get(value, -1)
        waiting, seen = [of], {of}
        while waiting:
            maker = self.makers.get(waiting.pop(), -1)
            if maker < first:
                continue
            for read in self.operations[maker].reads if maker >= 0 else ():
                if read == value:
                    return True
                if read not in seen:
                    seen.add(read)
                    waiting.append(read)
        return False

    def _sums(self) -> Iterator[tuple[int, list[int], list[int]]]:
        """What every sum that is no part of another makes, its terms and its operations."""
        for value in self._added:
            if not self._inner(value):
                yield value, *self._terms(value)

    def found(self) -> Found:
        found = Found()
        for made, terms, sums in self._sums():
            first = min(terms, key=lambda term: self.makers.get(term, -1))
            kept = None if any(self._ancestor(first, term) for term in terms) else self._projected(terms, made)
            if kept is not None:
                found.kept[kept[0]] = kept[1]
            for term in terms:
                if term == first or not self._ancestor(first, term):
                    continue
                branch = self._branch(first, term, made)
                if isinstance(branch, FoundBranch):
                    found.branches.append(replace(branch, terms=tuple(terms), sums=frozenset(sums)))
                elif branch is not None:
                    found.kept[branch[0]] = branch[1]
        return found

    def _branch(self, stream: int, term: int, made: int) -> FoundBranch | tuple[str, str] | None:
        """None where no module is concerned; the module and why it stays, where it is none."""
        if self._seen(term) or len(self.uses[term]) != 1:
            return None
        alone, core = self._only_for(term, self.makers.get(stream, -1))
        runs = list(self._within(alone, core))
        weighty = self._with_weights(runs)
        if not weighty:
            return None
        around = self._around(made)
        where = "" if around is None else around.path
        end = self._last(term, runs, core)
        if end is None:
            return where or weighty[-1].path, "no module returns what is added to the stream"
        run, returned = end
        ends = [(r, back) for r in weighty if r is not run and (back := self._returned(r)) is not None]
        ends.append((run, returned))
        inside = {i for r, _ in ends for i in range(r.start, r.stop)}
        parts = []
        for r, back in ends:
            part = self._part(r, back, r is not run and inside.issuperset(self.uses[back.value]))
            if part is None:
                return r.path, "it returns another size than it is given, along more than one dimension"
            parts.append(part)
        gone = frozenset(i for part in parts for i in range(part.run.start, part.run.stop))
        own = frozenset(np.flatnonzero(core).tolist())
        return FoundBranch(tuple(parts), gone, own, stream, made, (), frozenset(), where)

    def _only_for(self, term: int, after: int) -> tuple[np.ndarray, np.ndarray]:
        """Per operation, whether nothing but a value comes of it (or nothing at all); and whether that does. Those up
        to `after` are not looked at."""
        last = self.makers[term]
        alone, core = (np.zeros(len(self.operations), dtype=bool) for _ in range(2))
        for i in range(last, after, -1):
            makes = self.operations[i].makes
            if not makes or any(self._seen(v) for v in makes):
                continue
            read = [u for v in makes if v != term for u in self.uses.get(v, ())]
            alone[i] = all(alone[u] for u in read)
            core[i] = alone[i] and (i == last or any(core[u] for u in read))
        return alone, core

    def _with_weights(self, runs: Sequence[ModuleRun]) -> list[ModuleRun]:
        return [run for run in runs if any(True for _ in self._modules[run.path].parameters())]

    def _projected(self, terms: Sequence[int], made: int) -> tuple[str, str] | None:
        """A module of a branch that is added to a projection of what it reads, and that this is so."""
        around = self._around(made)
        after = -1 if around is None else around.start - 1
        ends = [term for term in terms if self.makers.get(term, -1) >= 0 and len(self.uses[term]) == 1]
        if len(ends) != 2 or len(terms) != 2:
            return None
        found = []
        for term in ends:
            alone, core = self._only_for(term, after)
            runs = self._with_weights(list(self._within(alone, core)))
            read = {v for i in np.flatnonzero(core) for v in self.operations[i].reads}
            own = {v for i in np.flatnonzero(core) for v in self.operations[i].makes}
            found.append((runs, (read - own - self._weights) & self.makers.keys()))
        (one, first), (other, second) = found
        if not one or not other or not first & second:
            return None
        return max(one, other, key=len)[-1].path, "it is added to a projection of what it reads"

    def _around(self, made: int) -> ModuleRun | None:
        """The call in whose code a sum is made: the innermost that is under way then."""
        number = self._added[made]
        inside = [run for run in self.flow.runs if run.start <= number < run.stop]
        return inside[-1] if inside else None

    def _within(self, alone: np.ndarray, core: np.ndarray) -> Iterator[ModuleRun]:
        """The outermost calls all of whose operations go, of modules that are there and called once, and that return
        one tensor which is read."""
        other, own = np.cumsum(np.append(0, ~alone)), np.cumsum(np.append(0, core))
        until = -1
        for run in self.flow.runs:
            whole = other[run.stop] == other[run.start] and own[run.stop] > own[run.start]
            if run.start < until or not whole:
                continue
            known = run.path in self._alone and self._calls[run.path] == 1 and run.plain
            if known and self._unread(run.path, alone) and self._returned(run) is not None:
                until = run.stop
                yield run

    def _unread(self, path: str, alone: np.ndarray) -> bool:
        """Whether nothing else reads what this module holds."""
        return all(alone[u] for value in self._held[path] for u in self.uses.get(value, ()))

    def _last(self, value: int, runs: Sequence[ModuleRun], core: np.ndarray) -> tuple[ModuleRun, Passing] | None:
        """The call that returned a value, or one of which the value is zero where that is."""
        for run in runs:
            made = self._returned(run)
            if made is not None and made.value == value:
                return run, made
        maker = self.makers.get(value, -1)
        if maker < 0 or not core[maker]:
            return None
        op = self.operations[maker]
        if not (op.view or op.name in ZEROS):
            return None
        reads = op.reads[:1] if op.name.startswith("div") else op.reads
        return next((end for read in reads if (end := self._last(read, runs, core)) is not None), None)

    def _returned(self, run: ModuleRun) -> Passing | None:
        """The one tensor of those that a module returned that anything reads."""
        read = [
            made
            for made in run.returned
            if self._seen(made.value) or any(u >= run.stop for u in self.uses.get(made.value, ()))
        ]
        return read[0] if len({made.value for made in read}) == 1 else None

    def _part(self, run: ModuleRun, made: Passing, passes: bool) -> FoundPart | None:
        """`passes`: whether it may hand on what it is given, where that is of the same size."""
        for given in run.given:
            if given.value in self._weights or len(given.size) != len(made.size):
                continue
            other = [d for d, (a, b) in enumerate(zip(given.size, made.size, strict=True)) if a != b]
            if len(other) <= 1:
                channels = [d for d, dim in enumerate(made.dims) if isinstance(dim, np.ndarray)]
                (d,) = other or channels[-1:] or [len(made.size) - 1]
                return FoundPart(run, made, given, d - len(made.size), passes and not other)
        return None


def branches(model: nn.Module, flows: Sequence[Flow]) -> Found:
    """Those that every run has that calls any of their modules."""
    alone = single(model)
    first, *others = (_Run(model, flow, alone).found() for flow in flows)
    for flow, other in zip(flows[1:], others, strict=True):
        called = {run.path for run in flow.runs}
        same = {branch.paths for branch in other.branches}
        for branch in list(first.branches):
            if branch.paths not in same and called.intersection(branch.paths):
                first.branches.remove(branch)
                first.kept[branch.last.run.path] = "other example inputs take another way through it"
    return first
