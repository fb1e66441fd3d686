"""Which units the sizes follow that a module's own code passes to views, splits and the like.

A call is known by where the module's code makes it, those of submodules left out, as the pruned model knows them
(`compact/sites.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from fairkern.axes.dims import CONSTANT, Dim, Uniform
from fairkern.axes.facts import SizeCall, SizeCallsOfModule
from fairkern.axes.rules._call import ModuleCall
from fairkern.axes.tracks import Tracks, unseen
from fairkern.model.call_places import place_of
from fairkern.model.nested import tensors_in
from fairkern.model.size_calls import BY_NAME, Asked, SizeFunction, Span, Spans, size_function
from fairkern.types import CallSite, Extent, SizeSite


class SizeCalls(TorchFunctionMode):
    """Writes down every size-taking call of a run, under the module call that made it."""

    def __init__(self, current: Callable[[], ModuleCall], tracks: Tracks) -> None:
        super().__init__()
        self._current, self._tracks = current, tracks
        self._calls: dict[CallSite, list[SizeCall]] = defaultdict(list)
        self._filled: list[tuple[CallSite, int, list[Dim]]] = []  # calls that fill a tensor; what is written there
        self._asked = WeakIdKeyDictionary()  # where the sizes of a tensor were asked for
        self._used: set[tuple[CallSite, int]] = set()  # calls that asked for sizes of a tensor that was then viewed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        function = size_function(func)
        if function is None:
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        with unseen():
            self._note(function, args, kwargs, result)
        return result

    def _note(self, function: SizeFunction, args: Any, kwargs: Any, result: Any) -> None:
        site = self._current().site
        numbers = function.numbers(args, kwargs)
        dims = self._dims(function, numbers, args, kwargs, result)
        if function.kind == "filled" and isinstance(result, Tensor) and any(isinstance(d, Uniform) for d in dims):
            self._filled.append((site, len(self._calls[site]), self._tracks.watch(result)))
        elif function.kind == "asked":
            self._asked.setdefault(args[0], []).append((site, len(self._calls[site])))
        elif function.kind in ("shape", "unflatten") and args:
            self._used.update(call for call in self._asked.get(args[0], ()) if call[0] == site)
        self._calls[site].append(
            SizeCall(
                place_of(function.name) if numbers else "",
                function.name,
                tuple(
                    (n, d) if type(n) is int and n > 0 else (0, CONSTANT) for n, d in zip(numbers, dims, strict=True)
                ),
            )
        )

    def _dims(self, function: SizeFunction, numbers: Sequence[Any], args: Any, kwargs: Any, result: Any) -> list[Dim]:
        nothing: list[Dim] = [CONSTANT] * len(numbers)
        if isinstance(function, Asked):
            if args[0] not in self._tracks:
                return nothing
            dims, dim = self._tracks.of(args[0]).dims, function.dim(args, kwargs)
            return list(dims) if dim is None else [dims[dim]]
        if isinstance(function, Spans):
            tensor = args[0] if args else kwargs["input"]
            return self._counted(tensor, function.spans(args, kwargs)) if tensor in self._tracks else nothing
        if any(t not in self._tracks for t in tensors_in(result)):
            return nothing
        if function.kind == "split":
            dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
            parts = [self._tracks.of(part).dims[dim] for part in result]
            return parts if len(parts) == len(numbers) else parts[:1] if len(numbers) == 1 else nothing
        if function.kind == "groups":
            channels = self._tracks.of(kwargs["input"] if "input" in kwargs else args[0]).dims[1]
            depthwise = isinstance(channels, np.ndarray) and numbers == (len(channels),)
            return [channels] if depthwise else nothing
        dims = self._tracks.of(result).dims
        if function.kind == "filled" and len(dims) == len(numbers):  # of a repeat only where there was one place before
            return [d if n == size else CONSTANT for d, n, size in zip(dims, numbers, result.shape, strict=True)]
        start = 0
        if function.kind == "unflatten":
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            start = dim if dim >= 0 else dim + result.ndim - len(numbers) + 1
        return list(dims[start : start + len(numbers)]) if start + len(numbers) <= len(dims) else nothing

    def _counted(self, tensor: Tensor, spans: Sequence[Span]) -> list[Dim]:
        found = ((self._tracks.of(tensor).dims[dim], first, end) for dim, first, end in spans)
        return [nodes[first:end] if isinstance(nodes, np.ndarray) else CONSTANT for nodes, first, end in found]

    def by_module(self, calls: Mapping[str, int], replaced: Collection[str]) -> Iterator[SizeCallsOfModule]:
        """What was written down, for each of the `calls[path]` calls of every module that ran by its own code."""
        for site, k, dims in self._filled:
            call = self._calls[site][k]
            numbers = tuple((n, d if n else CONSTANT) for (n, _), d in zip(call.numbers, dims, strict=False))
            self._calls[site][k] = replace(call, numbers=numbers)
        self._filled.clear()
        for made in self._calls.values():
            for k, call in enumerate(made):
                if any(isinstance(d, Uniform) for _, d in call.numbers):
                    numbers = tuple((n, self._tracks.graph.met_by(d, n)) for n, d in call.numbers)
                    made[k] = replace(call, numbers=numbers)
        for path, count in calls.items():
            for number in range(count if path not in replaced else 0):
                yield SizeCallsOfModule(path, tuple(self._without_idle_questions(CallSite(path, number))))

    def _without_idle_questions(self, site: CallSite) -> Iterator[SizeCall]:
        """A module call's calls. Sizes that were asked for follow only where the tensor was viewed later, and not those
        that torch's own code asks for."""
        calls = self._calls.get(site, ())
        used = {call.at for k, call in enumerate(calls) if (site, k) in self._used} - {""}
        for call in calls:
            if BY_NAME[call.function].kind != "asked" or call.at in used:
                yield call
            else:
                constant = ((0, CONSTANT),) * len(call.numbers) if used and call.at else ()
                yield replace(call, numbers=constant)


def countable(calls: Sequence[SizeCallsOfModule], even: Callable[[np.ndarray], bool]) -> list[SizeCallsOfModule]:
    """The same calls without places of slices between positions of one unit: no number follows there.

    `even(nodes)`: whether these positions hold every unit of their groups equally often.
    """

    def kept(call: SizeCall) -> SizeCall:
        if not isinstance(size_function(call.function), Spans):
            return call
        numbers = ((n, d) if not isinstance(d, np.ndarray) or even(d) else (0, CONSTANT) for n, d in call.numbers)
        return replace(call, numbers=tuple(numbers))

    return [replace(made, calls=tuple(map(kept, made.calls))) for made in calls]


def size_sites(
    calls: Sequence[SizeCallsOfModule], extent_of: Callable[[np.ndarray], int], extents: Sequence[Extent]
) -> Iterator[SizeSite]:
    """The numbers that follow units, of every path through a module's code that a run took.

    Calls made at one place of the code are one site where all of them follow the same; else they are told apart by
    their number, where every run makes as many. A number that fills a dimension (`expand`, `zeros`) says nothing of
    units: it follows the only extent of that length that the module's other numbers follow, if there is just one, and
    if the call is given that length once (a square is a mask over places). Where the positions that it counts are all
    different, nothing was folded into them, and the size may be given outright. The proof has the last word.
    """
    by_path: dict[str, list[SizeCallsOfModule]] = defaultdict(list)
    for made in calls:
        by_path[made.module].append(made)
    for path, seen in by_path.items():
        lengths: dict[int, set[int]] = defaultdict(set)
        for call in (call for made in seen for call in made.calls):
            for _, dim in call.numbers if BY_NAME[call.function].kind != "asked" else ():
                if isinstance(dim, np.ndarray):
                    extent = extent_of(dim)
                    if extents[extent].parts:
                        lengths[len(dim)].add(extent)
        if not lengths and not any(c.numbers and BY_NAME[c.function].kind == "asked" for m in seen for c in m.calls):
            continue
        for at, runs in _by_place(seen).items():
            function, count = runs[0][0].function, len(runs[0][0].numbers)
            if any((call.function, len(call.numbers)) != (function, count) for run in runs for call in run):
                continue
            for place in range(count):
                found = [[_follows(call, place, lengths, extent_of, extents) for call in run] for run in runs]
                dims = [call.numbers[place][1] for run in runs for call in run]
                guessed = not any(isinstance(dim, np.ndarray) for dim in dims)
                outright = BY_NAME[function].kind != "asked" and all(
                    isinstance(dim, np.ndarray) and len(np.unique(dim)) == len(dim) for dim in dims
                )
                for number, follows in _agreed(found):
                    yield SizeSite(path, number, function, place, follows, seen[0].like, at, guessed, outright)


def size_places(calls: Sequence[SizeCallsOfModule]) -> dict[str, tuple[str, ...]]:
    """For every module the places in its code where it was seen to make size-taking calls, in order of appearance."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for made in calls:
        found[made.module].update(dict.fromkeys(call.at for call in made.calls if call.numbers))
    return {module: tuple(places) for module, places in found.items()}


def _by_place(seen: Sequence[SizeCallsOfModule]) -> dict[str, list[list[SizeCall]]]:
    """The calls made at each place, in the order of the code, for each call of the module that came by."""
    found: dict[str, list[list[SizeCall]]] = {}
    for made in seen:
        here: dict[str, list[SizeCall]] = defaultdict(list)
        for call in made.calls:
            if call.numbers:
                here[call.at].append(call)
        for at, run in here.items():
            found.setdefault(at, []).append(run)
    return found


def _agreed(found: Sequence[Sequence[int | None]]) -> Iterator[tuple[int | None, int]]:
    """(number of the call, None for every one; what it follows), as far as all runs agree."""
    every = {follows for run in found for follows in run}
    if len(every) == 1:
        follows = every.pop()
        if follows is not None:
            yield None, follows
    elif len({len(run) for run in found}) == 1:
        for number, same in enumerate(zip(*found, strict=True)):
            if same[0] is not None and len(set(same)) == 1:
                yield number, same[0]


def _follows(
    call: SizeCall,
    place: int,
    lengths: Mapping[int, set[int]],
    extent_of: Callable[[np.ndarray], int],
    extents: Sequence[Extent],
) -> int | None:
    number, dim = call.numbers[place]
    if isinstance(dim, np.ndarray):
        extent = extent_of(dim)
        return extent if len(dim) == number and extents[extent].parts else None
    candidates = lengths.get(number, set())
    if BY_NAME[call.function].kind != "filled" or [n for n, _ in call.numbers].count(number) > 1:
        return None
    return next(iter(candidates)) if dim is not CONSTANT and len(candidates) == 1 else None
