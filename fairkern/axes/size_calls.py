"""Which units the sizes follow that a module's own code passes to views, splits and the like.

Calls are counted per module call, those of submodules left out, as the pruned model counts them (`compact/sites.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fairkern.axes.dims import CONSTANT, UNIFORM, ZERO, Dim
from fairkern.axes.facts import SizeCall, SizeCallsOfModule
from fairkern.axes.rules._call import ModuleCall
from fairkern.axes.tracks import Tracks
from fairkern.model.nested import tensors_in
from fairkern.model.size_calls import BY_NAME, SizeFunction, Span, Spans, size_function
from fairkern.types import CallSite, Extent, SizeSite


class SizeCalls(TorchFunctionMode):
    """Writes down every size-taking call of a run, under the module call that made it."""

    def __init__(self, current: Callable[[], ModuleCall], tracks: Tracks) -> None:
        super().__init__()
        self._current, self._tracks = current, tracks
        self._calls: dict[CallSite, list[SizeCall]] = defaultdict(list)
        self._filled: list[tuple[CallSite, int, list[Dim]]] = []  # calls that fill a tensor; what is written there

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        function = size_function(func)
        if function is None:
            return func(*args, **kwargs)
        site = self._current().site
        result = func(*args, **kwargs)
        numbers = function.numbers(args, kwargs)
        dims = self._dims(function, numbers, args, kwargs, result)
        if function.kind == "filled" and isinstance(result, Tensor) and any(d is UNIFORM or d is ZERO for d in dims):
            self._filled.append((site, len(self._calls[site]), self._tracks.watch(result)))
        self._calls[site].append(
            SizeCall(
                function.name,
                tuple(
                    (n, d) if type(n) is int and n > 0 else (0, CONSTANT) for n, d in zip(numbers, dims, strict=True)
                ),
            )
        )
        return result

    def _dims(self, function: SizeFunction, numbers: Sequence[Any], args: Any, kwargs: Any, result: Any) -> list[Dim]:
        nothing: list[Dim] = [CONSTANT] * len(numbers)
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
        start = 0
        if function.kind == "unflatten":
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            start = dim if dim >= 0 else dim + result.ndim - len(numbers) + 1
        return list(dims[start : start + len(numbers)]) if start + len(numbers) <= len(dims) else nothing

    def _counted(self, tensor: Tensor, spans: Sequence[Span]) -> list[Dim]:
        found = ((self._tracks.of(tensor).dims[dim], first, end) for dim, first, end in spans)
        return [nodes[first:end] if isinstance(nodes, np.ndarray) else CONSTANT for nodes, first, end in found]

    def by_module(self, calls: Mapping[str, int]) -> Iterator[SizeCallsOfModule]:
        """What was written down, for each of the `calls[path]` calls of every module."""
        for site, k, dims in self._filled:
            call = self._calls[site][k]
            numbers = tuple((n, d if n else CONSTANT) for (n, _), d in zip(call.numbers, dims, strict=False))
            self._calls[site][k] = replace(call, numbers=numbers)
        self._filled.clear()
        for path, count in calls.items():
            for number in range(count):
                yield SizeCallsOfModule(path, tuple(self._calls.get(CallSite(path, number), ())))


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
    """The numbers that follow units, of modules that make the same calls whenever they run.

    A number that fills a dimension (`expand`, `zeros`) says nothing of units: it follows the only extent of that
    length that the module's other numbers follow, if there is just one, and if the call is given that length once (a
    square is a mask over places). The proof has the last word.
    """
    by_path: dict[str, list[SizeCallsOfModule]] = defaultdict(list)
    for made in calls:
        by_path[made.module].append(made)
    for path, seen in by_path.items():
        runs = [made.calls for made in seen]
        first = runs[0]
        form = [(call.function, len(call.numbers)) for call in first]
        if any([(call.function, len(call.numbers)) for call in other] != form for other in runs[1:]):
            continue
        lengths: dict[int, set[int]] = defaultdict(set)
        for call in first:
            for _, dim in call.numbers:
                if isinstance(dim, np.ndarray):
                    extent = extent_of(dim)
                    if extents[extent].parts:
                        lengths[len(dim)].add(extent)
        if not lengths:
            continue
        for k, same in enumerate(zip(*runs, strict=True)):
            for place in range(len(first[k].numbers)):
                found = {_follows(call, place, lengths, extent_of, extents) for call in same}
                follows = found.pop() if len(found) == 1 else None
                if follows is not None:
                    yield SizeSite(path, k, first[k].function, place, follows, seen[0].like)


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
