"""Where a module's code makes a call, told by names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fairkern.model.call_places import place_of, within

X = torch.arange(24.0).reshape(2, 12)


class Places(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("view", "reshape", "split", "__getitem__", "__setitem__"):
            self.found.append(place_of(func.__name__))
        return func(*args, **(kwargs or {}))


class Net(nn.Module):
    def __init__(self, run: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.run, self.inner = run, Inner()

    def forward(self, x: Tensor) -> Any:
        return Net.code(self, x)

    def code(self, x: Tensor) -> Any:
        return self.run(self, x)


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1).view(2, 12)


def halves(x: Tensor) -> Tensor:
    return x.view(2, 2, 6).view(2, 12)


FUNCTIONS = [halves]


def twice(net: nn.Module, x: Tensor) -> Tensor:
    return halves(halves(x)).reshape(-1)


def looped(net: nn.Module, x: Tensor) -> Tensor:
    for _ in range(3):
        x = x.view(2, 12)
    return x.view(-1)


def nested(net: nn.Module, x: Tensor) -> Tensor:
    def function(y: Tensor) -> Tensor:
        return torch.reshape(y, (-1,))

    return function(x.reshape(2, 12))


def unnamed(net: nn.Module, x: Tensor) -> Tensor:
    return FUNCTIONS[0](x)


def indexed(net: nn.Module, x: Tensor) -> Tensor:
    y = x[:, :6] + x[:, 6:]
    y[:, :2] = 0
    return y[:, 0]


def around(net: Any, x: Tensor) -> Tensor:
    return net.inner(x.view(2, 12)).split(6, dim=1)[0]


FOUND: dict[str, tuple[Callable[[Any, Tensor], Any], list[str]]] = {
    "a function, twice": (
        twice,
        ["halves.2/view.1", "halves.2/view.2", "halves.2/view.1", "halves.2/view.2", "reshape.1"],
    ),
    "a loop": (looped, ["view.1"] * 3 + ["view.2"]),
    "a closure": (nested, ["reshape.1", "function.1/reshape.1"]),
    "under another name": (unnamed, ["halves@0/view.1", "halves@0/view.2"]),
    "indices": (indexed, ["__getitem__.1", "__getitem__.2", "__setitem__.1", "__getitem__.3"]),
    "a module's calls are its own": (around, ["view.1", "view.1", "view.2", "split.1"]),
}


@pytest.mark.parametrize("name", FOUND)
def test_places(name: str) -> None:
    run, expected = FOUND[name]
    with Places() as places:
        Net(run)(X)
    inside = [at.rpartition(f"{run.__name__}@0/")[2] for at in places.found]
    if name == "a function, twice":  # both are named before the first is called
        inside = [at.replace("halves.1", "halves.2") for at in inside]
    assert inside == expected


def test_decorators_are_left_out() -> None:
    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1).view(2, 12)

    class Decorated(nn.Module):
        @torch.no_grad()
        @decorated
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1).view(2, 12)

    found = []
    for module in (Plain(), Decorated()):
        with Places() as places:
            module(X)
        found.append(places.found)
    assert found == [["view.1", "view.2"]] * 2


def test_lines_do_not_matter() -> None:
    """Code that says the same in other lines, with other calls between, has the same places."""
    sources = [
        "return halves(x.view(2, 12)).view(-1)",
        "y = x.view(2,\n  12).relu().abs()\n\n y = halves(y)\n return y.view(-1)",
    ]
    found = []
    for source in sources:
        scope: dict[str, Any] = {"halves": halves}
        exec(f"def forward(self, x):\n {source}", scope)
        with Places() as places:
            type("Made", (nn.Module,), {"forward": scope["forward"]})()(X)
        found.append(places.found)
    assert found[0] == found[1] == ["view.1", "halves.1/view.1", "halves.1/view.2", "view.2"]


def test_the_call_within_its_function() -> None:
    assert within("halves.2/view.1") == within("run@3/halves@1/view.1") == "halves/view.1"
    assert within("view.1") == "forward/view.1"
