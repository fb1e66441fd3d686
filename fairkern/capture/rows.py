"""Experts that are modules of a list: which tokens each was given, followed from where they were picked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from fairkern.capture.points import Point
from fairkern.nested import tensors_in

_RESHAPES = frozenset(["reshape", "view", "squeeze", "unsqueeze", "contiguous", "clone"])
_KEEPS_ROWS = _RESHAPES | {"to", "type", "float", "double", "half", "bfloat16"}


@dataclass(frozen=True)
class Rows:
    """A tensor is the rows `tokens` of dimension 0 of `carrier`."""

    carrier: Tensor
    tokens: Tensor


class _Picked(TorchFunctionMode):
    """Remembers of `x[tokens]`, and of what is only reshaped or cast of it, which rows they are."""

    def __init__(self) -> None:
        super().__init__()
        self.of: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and args and isinstance(args[0], Tensor):
            x = args[0]
            if func is Tensor.__getitem__:
                self._pick(result, x, args[1])
            elif func in (torch.index_select, Tensor.index_select) and len(args) == 3 and args[1] == 0:
                self._pick(result, x, args[2])
            elif x in self.of and getattr(func, "__name__", "") in _KEEPS_ROWS and result.shape[-1:] == x.shape[-1:]:
                self.of[result] = self.of[x]
        return result

    def _pick(self, result: Tensor, x: Tensor, index: Any) -> None:
        first, *rest = [i for i in (index if isinstance(index, tuple) else (index,)) if i is not None] or [None]
        whole = all(i is Ellipsis or (isinstance(i, slice) and i == slice(None)) for i in rest)
        if whole and isinstance(first, Tensor) and first.ndim == 1:
            tokens = first.nonzero()[:, 0] if first.dtype == torch.bool else first
            self.of[result] = Rows(x.detach(), tokens)


class ListedExperts:
    """The points inside modules of a list, and what these were given in the forward pass under way."""

    def __init__(self, model: nn.Module, points: Iterable[Point]) -> None:
        self._model = model
        lists = sorted((p for p, m in model.named_modules() if isinstance(m, (nn.ModuleList, nn.ModuleDict))), key=len)
        self._entry = {p: e for p in points if p.expert is None and (e := _entry(p, lists)) is not None}
        self._given: dict[str, Rows] = {}
        self._alike: dict[tuple[str, str], list[Point]] = defaultdict(list)
        for point, (path, name) in self._entry.items():
            if point.side == "hidden":  # a vector for every step, not a row for every token
                continue
            self._alike[path, "+".join(_within(s.module, f"{path}.{name}") for s in point.sites)].append(point)
        self.following = False

    def uneven(self, heard: dict[Point, Tensor]) -> bool:
        """Whether modules of a list that are alike were given different numbers of rows, or some of them none."""
        counts = ({len(heard[p]) if p in heard else -1 for p in alike} for alike in self._alike.values())
        return any(len(found) > 1 for found in counts)

    def rows(self, point: Point, x: Tensor) -> Rows | None:
        """The rows that `x` has at a point, where its module was given picked ones."""
        place = self._entry.get(point)
        given = None if place is None else self._given.get(".".join(place))
        return given if given is not None and (point.side == "hidden" or len(given.tokens) == len(x)) else None

    def idle(self, missing: Iterable[Point]) -> Iterator[tuple[Point, Tensor]]:
        """Points in modules that were given no row at all, each with what the others' rows were picked from."""
        for point in missing:
            place = self._entry.get(point)
            if place is not None and ".".join(place) not in self._given:
                others = [r for e, r in self._given.items() if e.rpartition(".")[0] == place[0]]
                if others:
                    yield point, others[0].carrier

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Around one forward pass."""
        self._given.clear()
        if not self.following:
            yield
            return
        picked = _Picked()

        def before(entry: str) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                given = next(tensors_in([args, kwargs]), None)
                if given is not None and given in picked.of:
                    self._given[entry] = picked.of[given]

            return hook

        with ExitStack() as handles:
            for entry in {".".join(place) for place in self._entry.values()}:
                module = self._model.get_submodule(entry)
                handles.callback(module.register_forward_pre_hook(before(entry), with_kwargs=True).remove)
            with picked:
                yield


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
