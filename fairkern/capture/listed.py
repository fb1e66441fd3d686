"""Experts that are modules of a list: the tokens that each was given, followed from where they were picked, and what it
adds to them."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fairkern.capture.points import Point
from fairkern.model.by_tensor import ByTensor
from fairkern.model.nested import map_tensors, tensors_in
from fairkern.model.tensors import LISTS
from fairkern.model.threads import of_this_thread
from fairkern.types import Side

_RESHAPES = frozenset(["reshape", "view", "squeeze", "unsqueeze", "contiguous", "clone"])
_KEEPS_ROWS = _RESHAPES | {"to", "type", "type_as", "float", "double", "half", "bfloat16"}
_FOLLOWED = _KEEPS_ROWS | {"__getitem__", "index_select"}
_ASKS = frozenset(["__get__", "size", "dim", "numel", "stride", "is_floating_point", "__len__", "get_device"])
_MULTIPLIES = frozenset(["mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__"])


@dataclass(frozen=True)
class Rows:
    """A tensor is the rows `tokens` of dimension 0 of `carrier`."""

    carrier: Tensor
    tokens: Tensor


class _Followed(TorchFunctionMode):
    """Remembers of `x[tokens]`, and of what is only reshaped or cast of it, which rows they are.

    And listens to what an expert adds: what its module gave, times a weight per token where the next function that
    reads it is such a product, else as it is. `several`: points where something else is read as well, of which only
    what came first was listened to.
    """

    def __init__(self, hear: Callable[[Point, Tensor], Tensor]) -> None:
        super().__init__()
        self.of: ByTensor[Rows] = ByTensor()
        self.given: ByTensor[Point] = ByTensor()  # what an expert gave -> its point
        self.several: set[Point] = set()
        self.inside = False  # an expert that was given picked rows: what it does with them is no matter
        self._carrier: tuple[weakref.ref[Tensor], Tensor] | None = None
        self._first: dict[Point, weakref.ref[Tensor]] = {}
        self._hear = hear

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        point = self._expert(args, kwargs) if len(self.given) else None
        result = func(*args, **kwargs) if point is None else self._consumed(point, func, name, args, kwargs)
        if name in _FOLLOWED and args and isinstance(result, Tensor) and isinstance(args[0], Tensor):
            x = args[0]
            if func is Tensor.__getitem__:
                self._pick(result, x, args[1])
            elif func in (torch.index_select, Tensor.index_select) and len(args) == 3 and args[1] == 0:
                self._pick(result, x, args[2])
            elif name in _KEEPS_ROWS and (rows := self.of.get(x)) is not None and result.shape[-1:] == x.shape[-1:]:
                self.of[result] = rows
        return result

    def _consumed(self, point: Point, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """The result of a function that is given what an expert gave."""
        if name in _ASKS:  # a shape or a dtype is no reading
            asked = func(*args, **kwargs)
            if not isinstance(asked, Tensor):
                return asked
        factor = self._factor(name, args)
        if name not in _KEEPS_ROWS and factor is None:
            args, kwargs = (map_tensors(value, self._heard) for value in (args, kwargs))
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if isinstance(factor, Tensor) and factor.ndim:
            return self._read(point, result)
        if isinstance(result, Tensor):
            self.given[result] = point
        return result

    def _expert(self, args: Any, kwargs: Any) -> Point | None:
        for value in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(value, Tensor):
                point = self.given.get(value)
                if point is not None:
                    return point
            elif isinstance(value, (tuple, list, Mapping)):
                for tensor in tensors_in(value):
                    point = self.given.get(tensor)
                    if point is not None:
                        return point
        return None

    def _factor(self, name: str, args: Any) -> Any:
        """The number, or the tensor with one number per token, that this multiplies what an expert gave by."""
        if name not in _MULTIPLIES or len(args) != 2:
            return None
        other = args[1] if isinstance(args[0], Tensor) and args[0] in self.given else args[0]
        return other if not isinstance(other, Tensor) or other.ndim == 0 or other.shape[-1] == 1 else None

    def _heard(self, x: Tensor) -> Tensor:
        point = self.given.get(x)
        return x if point is None else self._read(point, x)

    def _read(self, point: Point, x: Tensor) -> Tensor:
        first = self._first.setdefault(point, weakref.ref(x))
        if first() is x:
            return self._hear(point, x)
        self.several.add(point)
        return x

    def _pick(self, result: Tensor, x: Tensor, index: Any) -> None:
        first, *rest = [i for i in (index if isinstance(index, tuple) else (index,)) if i is not None] or [None]
        whole = all(i is Ellipsis or (isinstance(i, slice) and i == slice(None)) for i in rest)
        if whole and isinstance(first, Tensor) and first.ndim == 1:
            tokens = first.nonzero()[:, 0] if first.dtype == torch.bool else first
            if self._carrier is None or self._carrier[0]() is not x:
                self._carrier = weakref.ref(x), x.detach()
            self.of[result] = Rows(self._carrier[1], tokens)
        elif whole and isinstance(first, slice) and (rows := self.of.get(x)) is not None:  # sorted by their experts
            self.of[result] = Rows(rows.carrier, rows.tokens[first])


class ListedExperts:
    """The points at and inside modules of a list, and what these were given in the forward pass under way.

    `hear` is called for what experts add to their tokens, if any of the points is for that.
    """

    def __init__(self, model: nn.Module, points: Iterable[Point], hear: Callable[[Point, Tensor], Tensor]) -> None:
        self._model, self._hear = model, hear
        points = list(points)
        lists = sorted((p for p, m in model.named_modules() if isinstance(m, LISTS)), key=len)
        self._entry = {p: e for p in points if p.expert is None and (e := _entry(p, lists)) is not None}
        self._modules = {p: ".".join(place) for p, place in self._entry.items()}
        self._whole = {p.sites[0].module: p for p in points if p.side is Side.EXPERT and p.expert is None}
        self._given: dict[str, Rows] = {}
        self._picked: _Followed | None = None  # of the pass under way
        self._hooked, self._handles = False, ExitStack()
        self._alike: dict[tuple[str, str], list[Point]] = defaultdict(list)
        for point, (path, name) in self._entry.items():
            if not point.side.scored:  # a vector for every step, not a row for every token
                continue
            self._alike[path, "+".join(_within(s.module, f"{path}.{name}") for s in point.sites)].append(point)
        self.following = bool(self._whole)
        self._several: set[Point] = set()  # of the last pass, experts whose outputs are read in several ways
        self._as_given: set[Point] = set()  # those that have been so: heard as their modules give it, without weights

    def learns(self, heard: dict[Point, Tensor]) -> bool:
        """Whether the last pass showed something for which the next one is to be listened to in another way."""
        uneven = not self.following and self._uneven(heard)
        several, self._several = self._several, set()
        self.following |= uneven
        self._as_given |= several
        return uneven or bool(several)

    def _uneven(self, heard: dict[Point, Tensor]) -> bool:
        """Whether modules of a list that are alike were given different numbers of rows, or some of them none."""
        counts = ({len(heard[p]) if p in heard else -1 for p in alike} for alike in self._alike.values())
        return any(len(found) > 1 for found in counts)

    def rows(self, point: Point, x: Tensor) -> Rows | None:
        """The rows that `x` has at a point, where its module was given picked ones."""
        given = self._given.get(self._modules.get(point, ""))
        return given if given is not None and (not point.side.scored or len(given.tokens) == len(x)) else None

    def idle(self, missing: Iterable[Point]) -> Iterator[tuple[Point, Tensor]]:
        """Points in modules that were given no row at all, each with what the others' rows were picked from."""
        for point in missing:
            place = self._entry.get(point)
            if place is not None and self._modules[point] not in self._given:
                others = [r for e, r in self._given.items() if e.rpartition(".")[0] == place[0]]
                if others:
                    yield point, others[0].carrier

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Around all passes: hooks stay where they are from the first one that is followed to the way out."""
        with ExitStack() as self._handles:
            try:
                yield
            finally:
                self._hooked = False

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Around one forward pass."""
        self._given.clear()
        if not self.following:
            yield
            return
        if not self._hooked:
            self._hook()
        picked = self._picked = _Followed(self._hear)
        self._several = picked.several
        try:
            with picked:
                yield
        finally:
            self._picked = None

    def _hook(self) -> None:
        entries: dict[nn.Module, list[str]] = defaultdict(list)
        whole: dict[nn.Module, list[Point]] = defaultdict(list)

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self._picked is None:
                return output
            self._picked.inside = False
            if isinstance(output, Tensor):
                for point in whole[module]:
                    if point in self._as_given:
                        output = self._hear(point, output).clone()  # it may be written to
                    else:
                        self._picked.given[output] = point
            return output

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._picked is None:
                return
            given = next(tensors_in([args, kwargs]), None)
            rows = None if given is None else self._picked.of.get(given)
            if rows is not None:
                self._given.update(dict.fromkeys(entries[module], rows))
            self._picked.inside = rows is not None and module in simple

        for entry in dict.fromkeys(self._modules.values()):
            entries[self._model.get_submodule(entry)].append(entry)
        for entry, point in self._whole.items():
            whole[self._model.get_submodule(entry)].append(point)
        simple = {
            m for m in whole if not any(inner in entries or inner in whole for inner in m.modules() if inner is not m)
        }
        enters, leaves = of_this_thread(before), of_this_thread(after)  # one pair for all: there may be many modules
        for module in entries:
            self._handles.callback(module.register_forward_pre_hook(enters, with_kwargs=True).remove)
        for module in whole:
            self._handles.callback(module.register_forward_hook(leaves).remove)
        self._hooked = True


def _entry(point: Point, lists: list[str]) -> tuple[str, str] | None:
    """The innermost list that holds all calls of a point in one of its modules, and that module's name."""
    found = set()
    for site in point.sites:
        inside = [path for path in lists if site.module.startswith(f"{path}." if path else "")]
        if not inside:
            return None
        found.add((inside[-1], _within(site.module, inside[-1]).partition(".")[0]))
    return found.pop() if len(found) == 1 else None


def _within(module: str, path: str) -> str:
    return module.removeprefix(path).removeprefix(".")
