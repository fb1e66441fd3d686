"""Torch functions that are given sizes as numbers: where the numbers stand, and how to put others there.

A trace counts these calls to say which number follows which units; a pruned model counts them in the same way to
put the smaller number in its place. So both read this one table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SizeFunction:
    """A function's name, where its numbers begin, and what its `j`-th number is.

    `kind`: "shape" (dimension j of the result), "unflatten" (dimension dim + j of the result), "split" (the length
    of part j; a single number is the length of every part), "groups" (the groups of a convolution).
    """

    name: str
    kind: str
    at: int
    keywords: tuple[str, ...]
    variadic: bool = False  # the numbers may be all remaining arguments

    @property
    def views(self) -> bool:
        """Whether its result has the elements of its argument, in another shape."""
        return self.name in ("view", "reshape")

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


_TABLE = (
    SizeFunction("view", "shape", 1, ("size",), variadic=True),
    SizeFunction("reshape", "shape", 1, ("shape",), variadic=True),
    SizeFunction("expand", "shape", 1, ("size",), variadic=True),
    SizeFunction("new_zeros", "shape", 1, ("size",), variadic=True),
    SizeFunction("new_ones", "shape", 1, ("size",), variadic=True),
    SizeFunction("new_empty", "shape", 1, ("size",), variadic=True),
    SizeFunction("new_full", "shape", 1, ("size",)),
    SizeFunction("zeros", "shape", 0, ("size",), variadic=True),
    SizeFunction("ones", "shape", 0, ("size",), variadic=True),
    SizeFunction("empty", "shape", 0, ("size",), variadic=True),
    SizeFunction("full", "shape", 0, ("size",)),
    SizeFunction("unflatten", "unflatten", 2, ("sizes",)),
    SizeFunction("split", "split", 1, ("split_size", "split_size_or_sections")),
    SizeFunction("split_with_sizes", "split", 1, ("split_sizes",)),
    SizeFunction("conv1d", "groups", 6, ("groups",)),
    SizeFunction("conv2d", "groups", 6, ("groups",)),
    SizeFunction("conv3d", "groups", 6, ("groups",)),
)
_BY_NAME: Mapping[str, SizeFunction] = {function.name: function for function in _TABLE}


def size_function(function: Callable[..., Any] | str) -> SizeFunction | None:
    """What is known of a torch function, as a function mode is given it, or of a method by its name: by its name.

    `Tensor.split` and `torch.split` are one. (By the function itself, torch.compile finds some and not others.)
    """
    return _BY_NAME.get(function if isinstance(function, str) else getattr(function, "__name__", ""))
