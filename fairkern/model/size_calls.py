"""Torch functions that are given sizes as numbers: where the numbers stand, and how to put others there.

A trace writes these calls down to say which number follows which units; a pruned model finds them in the same way to
put the smaller number in its place. So both read this one table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SizeFunction:
    """A function's name, where its numbers begin, and what its `j`-th number is.

    `kind`: "shape" (dimension j of the result), "filled" (the same, of a result that is alike along it), "unflatten"
    (dimension dim + j of the result), "split" (the length of part j; a single number is the length of every part),
    "groups" (the groups of a convolution), "spans" (it counts the positions of the `j`-th span, see `Spans`), "asked"
    (dimension j of the argument: it is not given but answered, see `Asked`).
    """

    name: str
    kind: str
    at: int
    keywords: tuple[str, ...]
    variadic: bool = False  # the numbers may be all remaining arguments

    def numbers(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The numbers that a call is given, in order; empty where it is given none."""
        if len(args) > self.at:
            first = args[self.at]
            if isinstance(first, (tuple, list)):
                return tuple(first)
            return tuple(args[self.at :]) if self.variadic else (first,)
        for keyword in self.keywords:
            if keyword in kwargs:
                value = kwargs[keyword]
                return tuple(value) if isinstance(value, (tuple, list)) else (value,)
        return ()

    def with_numbers(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], numbers: Sequence[Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call with as many other numbers."""
        if len(args) > self.at:
            if isinstance(args[self.at], (tuple, list)):
                return (*args[: self.at], tuple(numbers), *args[self.at + 1 :]), dict(kwargs)
            return (*args[: self.at], *numbers, *args[self.at + len(numbers) :]), dict(kwargs)
        keyword = next(k for k in self.keywords if k in kwargs)
        value = tuple(numbers) if isinstance(kwargs[keyword], (tuple, list)) else numbers[0]
        return tuple(args), {**kwargs, keyword: value}


Span = tuple[int, int, int]  # a dimension of the first argument, and its positions from one up to another


class Spans(SizeFunction):
    """A function that is given places. A number counts the positions before it, or behind it if it is negative, which
    is given and taken without its sign; or those of a length."""

    def spans(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Span]:
        """What each of the numbers counts; nothing, for what lies outside or is no number."""
        raise NotImplementedError


def _unsigned(number: Any) -> Any:
    return abs(number) if type(number) is int else number


def _signed(number: Any, before: Any) -> Any:
    return -number if type(before) is int and before < 0 else number


def _counted(dim: int, number: Any, length: int) -> Span:
    if type(number) is not int or abs(number) > length:
        return dim, 0, 0
    return (dim, 0, number) if number >= 0 else (dim, length + number, length)


class Slices(Spans):
    """`x[..., :n]`: the bounds of all slices in the index, in order."""

    def numbers(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(_unsigned(n) for item in _items(args[1]) for n in _bounds(item))

    def with_numbers(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], numbers: Sequence[Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rest = iter(numbers)

        def moved(item: Any) -> Any:
            if not isinstance(item, slice):
                return item
            start, stop = (None if n is None else _signed(next(rest), n) for n in (item.start, item.stop))
            return slice(start, stop, item.step)

        items = tuple(moved(item) for item in _items(args[1]))
        return (args[0], items if isinstance(args[1], tuple) else items[0], *args[2:]), dict(kwargs)

    def spans(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Span]:
        tensor, items = args[0], _items(args[1])
        rest = tensor.ndim - sum(map(_covered, items))  # what an ellipsis stands for
        found, dim = [], 0
        for item in items:
            found += [_counted(dim, n, tensor.shape[dim]) for n in _bounds(item)]
            dim += rest if item is Ellipsis else _covered(item)
        return found


def _items(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _bounds(item: Any) -> list[Any]:
    return [n for n in (item.start, item.stop) if n is not None] if isinstance(item, slice) else []


def _covered(item: Any) -> int:
    """How many dimensions an item of an index stands for."""
    if isinstance(item, Tensor):
        return item.ndim if item.dtype in (torch.bool, torch.uint8) else 1
    return 0 if item is None or item is Ellipsis or isinstance(item, bool) else 1


class Narrow(Spans):
    """`narrow(x, dim, start, length)`."""

    def numbers(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        given = self._given(args, kwargs)
        return _unsigned(given["start"]), given["length"]

    def with_numbers(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], numbers: Sequence[Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = self._given(args, kwargs)
        start, length = numbers
        moved = {**given, "start": _signed(start, given["start"]), "length": length}
        return (moved.pop("input"),), moved

    def spans(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Span]:
        given = self._given(args, kwargs)
        dim, start, length = given["dim"], given["start"], given["length"]
        n = given["input"].shape[dim]
        if type(start) is not int or type(length) is not int:
            return [(dim, 0, 0), (dim, 0, 0)]
        return [_counted(dim, start, n), (dim, start % n, start % n + length)]

    def _given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        names = ("input", "dim", "start", "length")[: len(args)]  # as many: older compilers know no other zip
        return {**dict(zip(names, args, strict=True)), **kwargs}


class TensorSplit(Spans):
    """`tensor_split(x, (n, m), dim)`: where parts begin."""

    def numbers(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(map(_unsigned, self._begins(args, kwargs)))

    def with_numbers(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], numbers: Sequence[Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        begins = tuple(_signed(n, before) for n, before in zip(numbers, self._begins(args, kwargs), strict=True))
        return super().with_numbers(args, kwargs, begins)

    def spans(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Span]:
        tensor = args[0] if args else kwargs["input"]
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
        return [_counted(dim, n, tensor.shape[dim]) for n in self._begins(args, kwargs)]

    def _begins(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        value = args[1] if len(args) > 1 else next((kwargs[k] for k in self.keywords if k in kwargs), None)
        return tuple(value) if isinstance(value, (tuple, list)) else ()  # a single number counts the parts


class Asked(SizeFunction):
    """`x.shape`, `x.size()`, `x.size(dim)`: the numbers are what it answers."""

    def numbers(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        dim = self.dim(args, kwargs)
        return tuple(args[0].shape) if dim is None else (args[0].shape[dim],)

    def dim(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The one that is asked for; None for all of them."""
        return args[1] if len(args) > 1 else kwargs.get("dim")

    def answer(self, args: Sequence[Any], kwargs: Mapping[str, Any], numbers: Sequence[Any]) -> Any:
        return torch.Size(numbers) if self.dim(args, kwargs) is None else numbers[0]


_TABLE = (
    SizeFunction("view", "shape", 1, ("size",), variadic=True),
    SizeFunction("reshape", "shape", 1, ("shape",), variadic=True),
    SizeFunction("expand", "filled", 1, ("size",), variadic=True),
    SizeFunction("repeat", "filled", 1, ("repeats",), variadic=True),
    SizeFunction("new_zeros", "filled", 1, ("size",), variadic=True),
    SizeFunction("new_ones", "filled", 1, ("size",), variadic=True),
    SizeFunction("new_empty", "filled", 1, ("size",), variadic=True),
    SizeFunction("new_full", "filled", 1, ("size",)),
    SizeFunction("zeros", "filled", 0, ("size",), variadic=True),
    SizeFunction("ones", "filled", 0, ("size",), variadic=True),
    SizeFunction("empty", "filled", 0, ("size",), variadic=True),
    SizeFunction("full", "filled", 0, ("size",)),
    SizeFunction("unflatten", "unflatten", 2, ("sizes",)),
    SizeFunction("split", "split", 1, ("split_size", "split_size_or_sections")),
    SizeFunction("split_with_sizes", "split", 1, ("split_sizes",)),
    Slices("__getitem__", "spans", 1, ()),
    Slices("__setitem__", "spans", 1, ()),
    Narrow("narrow", "spans", 2, ()),
    TensorSplit("tensor_split", "spans", 1, ("indices", "indices_or_sections", "tensor_indices_or_sections")),
    SizeFunction("conv1d", "groups", 6, ("groups",)),
    SizeFunction("conv2d", "groups", 6, ("groups",)),
    SizeFunction("conv3d", "groups", 6, ("groups",)),
    Asked("shape", "asked", 1, ()),
    Asked("size", "asked", 1, ()),
)
_OPERATORS = {"getitem": "__getitem__", "setitem": "__setitem__"}  # as torch.fx and strict export index tensors
BY_NAME: Mapping[str, SizeFunction] = {function.name: function for function in _TABLE}


def size_function(function: Callable[..., Any] | str) -> SizeFunction | None:
    """What is known of a torch function, as a function mode is given it, or of one of this name: by its name.

    `Tensor.split` and `torch.split` are one. (By the function itself, torch.compile finds some and not others.)
    """
    name = function if isinstance(function, str) else getattr(function, "__name__", "")
    if name == "__get__":
        name = "shape" if getattr(function, "__self__", None) is Tensor.shape else ""
    return BY_NAME.get(_OPERATORS.get(name, name))
