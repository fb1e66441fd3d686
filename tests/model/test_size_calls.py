"""Numbers of size-taking calls: found and replaced however they are passed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fairkern.model.size_calls import Spans, size_function

X = torch.arange(24.0).reshape(2, 12)
IMAGE = torch.ones(2, 6, 4, 4)

# name -> a call, the numbers that it is given
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "view": (lambda: X.view(2, 3, 4), (2, 3, 4)),
    "view, a tuple": (lambda: X.view((2, 3, 4)), (2, 3, 4)),
    "view, a size": (lambda: X.view(torch.Size([4, 6])), (4, 6)),
    "view, by keyword": (lambda: X.view(size=(4, -1)), (4, -1)),
    "reshape": (lambda: X.reshape(4, 6), (4, 6)),
    "reshape, a list": (lambda: X.reshape([4, 6]), (4, 6)),
    "torch.reshape": (lambda: torch.reshape(X, (4, 6)), (4, 6)),
    "torch.reshape, by keyword": (lambda: torch.reshape(X, shape=(4, 6)), (4, 6)),
    "expand": (lambda: X[:, None].expand(-1, 5, 12), (-1, 5, 12)),
    "repeat": (lambda: X[:, None].repeat(1, 5, 1), (1, 5, 1)),
    "repeat, by keyword": (lambda: X[:, None].repeat(repeats=(1, 5, 1)), (1, 5, 1)),
    "new_zeros": (lambda: X.new_zeros(3, 4), (3, 4)),
    "new_full": (lambda: X.new_full((3, 4), 2.0), (3, 4)),
    "zeros": (lambda: torch.zeros(3, 4), (3, 4)),
    "zeros, a tuple": (lambda: torch.zeros((3, 4), dtype=torch.float64), (3, 4)),
    "full": (lambda: torch.full((3, 4), 1.0), (3, 4)),
    "unflatten": (lambda: X.unflatten(1, (3, 4)), (3, 4)),
    "unflatten, by keyword": (lambda: X.unflatten(dim=1, sizes=(3, 4)), (3, 4)),
    "split, one size": (lambda: X.split(5, 1), (5,)),
    "split, by keyword": (lambda: torch.split(X, split_size_or_sections=5, dim=1), (5,)),
    "split, a list": (lambda: torch.split(X, [2, 10], dim=1), (2, 10)),
    "split_with_sizes": (lambda: X.split_with_sizes([2, 10], 1), (2, 10)),
    "groups": (lambda: F.conv2d(IMAGE, torch.ones(6, 1, 3, 3), groups=6), (6,)),
    "groups, in place": (lambda: F.conv2d(IMAGE, torch.ones(6, 1, 3, 3), None, 1, 0, 1, 6), (6,)),
    "no groups": (lambda: F.conv2d(IMAGE, torch.ones(6, 6, 3, 3)), ()),
    "slices": (lambda: X[:, 2:8], (2, 8)),
    "slices from behind": (lambda: X[..., -4:], (4,)),
    "slices beside other things": (lambda: IMAGE[None, 0, ..., 1:-1, torch.tensor([0, 1])], (1, 1)),
    "a slice by steps": (lambda: X[:, 1:9:2], (1, 9)),
    "one slice": (lambda: X[:1], (1,)),
    "no slice": (lambda: X[0, None], ()),
    "narrow": (lambda: X.narrow(1, 2, 3), (2, 3)),
    "narrow, from behind": (lambda: X.narrow(-1, -4, 3), (4, 3)),
    "torch.narrow, by keyword": (lambda: torch.narrow(X, dim=1, start=2, length=3), (2, 3)),
    "tensor_split": (lambda: X.tensor_split((2, -3), 1), (2, 3)),
    "tensor_split, by keyword": (lambda: torch.tensor_split(X, indices=(2, 5), dim=1), (2, 5)),
    "tensor_split into so many": (lambda: X.tensor_split(3, dim=1), ()),
    "view as another type": (lambda: X.view(torch.int32), (torch.int32,)),
}


class Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_numbers_are_found_and_put_back(name: str) -> None:
    call, numbers = CALLS[name]
    with Recorder() as recorder:
        expected = call()
    found = [(f, a, k) for f, a, k in recorder.calls if size_function(f) is not None and f is not torch.ones]
    func, args, kwargs = found[-1]
    function = size_function(func)
    assert function is not None
    assert function.numbers(args, kwargs) == numbers
    if numbers:
        args, kwargs = function.with_numbers(args, kwargs, numbers)
        again = func(*args, **kwargs)
        for a, b in zip(parts(expected), parts(again), strict=True):
            assert torch.equal(a, b)


def parts(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def test_other_numbers() -> None:
    function = size_function(Tensor.view)
    assert function is not None
    assert function.with_numbers((X, 2, 3, 4), {}, (4, 2, 3)) == ((X, 4, 2, 3), {})
    assert function.with_numbers((X,), {"size": (2, 12)}, (4, 6)) == ((X,), {"size": (4, 6)})
    split = size_function(torch.split)
    assert split is not None
    assert split.with_numbers((X, 5, 1), {}, (3,)) == ((X, 3, 1), {})
    assert split.with_numbers((X,), {"split_size": 5}, (3,)) == ((X,), {"split_size": 3})


@pytest.mark.parametrize("function", [torch.relu, Tensor.flatten, Tensor.chunk, torch.cat])
def test_others_take_no_sizes(function: Any) -> None:
    assert size_function(function) is None


SPANS: dict[str, tuple[Any, list[tuple[int, int, int]]]] = {
    "before": (lambda: X[..., :4], [(1, 0, 4)]),
    "behind": (lambda: X[:, -4:], [(1, 8, 12)]),
    "both": (lambda: X[:, 3:-2], [(1, 0, 3), (1, 10, 12)]),
    "beyond": (lambda: X[:, :99], [(1, 0, 0)]),
    "beside other things": (lambda: IMAGE[0, None, ..., 1:3], [(3, 0, 1), (3, 0, 3)]),
    "behind a mask": (lambda: IMAGE[torch.ones(2, 6, dtype=torch.bool), :2], [(2, 0, 2)]),
    "a length": (lambda: X.narrow(1, 2, 3), [(1, 0, 2), (1, 2, 5)]),
    "a length from behind": (lambda: X.narrow(1, -4, 3), [(1, 8, 12), (1, 8, 11)]),
    "parts": (lambda: X.tensor_split((2, -3), 1), [(1, 0, 2), (1, 9, 12)]),
}


@pytest.mark.parametrize("name", SPANS)
def test_what_places_count(name: str) -> None:
    call, spans = SPANS[name]
    with Recorder() as recorder:
        call()
    func, args, kwargs = next(c for c in recorder.calls if isinstance(size_function(c[0]), Spans))
    function = size_function(func)
    assert isinstance(function, Spans)
    assert function.spans(args, kwargs) == spans
