"""`deep_copy` gives what `copy.deepcopy` gives, with its memo, and asks it only for what has a rule of its own."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern.model.copying as copying
from fairkern.model.copying import deep_copy


class Slotted(nn.Module):
    __slots__ = ("beside",)

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "beside", [1])


class Telling(nn.Module):
    """Says itself what its state is."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "copied": True}


class Own(nn.Module):
    def __deepcopy__(self, memo: dict[int, Any]) -> Own:
        made = Own()
        made.by_itself = True
        return made


class Built(nn.Module):
    """Its constructor takes something, and is not called for a copy."""

    def __new__(cls, *args: Any) -> Built:
        made = super().__new__(cls)
        object.__setattr__(made, "new", len(args))
        return made

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))


class Row(nn.Module, list):  # type: ignore[type-arg]
    """A module that is a list as well."""


class Marked(nn.Parameter):
    pass


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
        self.again = self.first
        self.tied = nn.Linear(2, 2)
        self.tied.weight = Marked(torch.randn(2, 2))
        self.frozen = nn.Parameter(torch.randn(3, 4).t(), requires_grad=False)
        self.others = nn.ModuleDict({"a": Slotted(), "b": Telling(), "c": Own(), "d": Built(2)})
        self.row = Row()
        self.row.append([self.first, 1])
        memory = torch.arange(6.0)
        self.register_buffer("memory", memory)
        self.register_buffer("part", memory[2:4], persistent=False)
        self.register_buffer("turned", torch.randn(2, 3).t())
        self.register_buffer("counter", torch.tensor(3))
        self.register_buffer("nothing", torch.zeros(0))
        self.marked = torch.ones(2)
        self.marked.note = [self.counter]  # type: ignore[attr-defined]
        self.lazy = torch.randn(2, dtype=torch.complex64).conj()
        self.of_meta = torch.empty(2, device="meta")
        self.entries: dict[Any, Any] = {(1, "a"): [1, (2, [3])], 2: {3}, "names": {"x", "yy", "zzz"}}
        self.entries["itself"] = self.entries
        self.ring: list[Any] = [self.counter]
        self.ring.append((self.ring, self.first))
        self.kept, self.ordered = (1, ("a", None)), OrderedDict(a=1, b=[2])
        self.ordered.extra = [self]  # type: ignore[attr-defined]
        self.size, self.dtype, self.method = torch.Size([1, 2]), torch.float32, self.forward
        self.function, self.there = torch.relu, weakref.ref(nn.ReLU)
        self.norm.register_forward_hook(_hook)

    def forward(self, x: Tensor) -> Tensor:
        return x


def _hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
    pass


def assert_alike(a: Any, b: Any, of: Any, met: dict[int, tuple[Any, Any]], path: str = "") -> None:
    """`a` and `b` are built alike: of the same types and values, and where one object comes again, or is the one of
    the original (`of`), so it is in the other."""
    assert type(a) is type(b), path
    assert (a is of) == (b is of), path
    if id(a) in met:
        assert met[id(a)][1] is b, f"{path}: shared in one copy"
        return
    if isinstance(a, (nn.Module, Tensor, dict, list, set)):
        assert all(other is not b for _, other in met.values()), f"{path}: shared in the other copy"
        met[id(a)] = a, b
    if isinstance(a, Tensor):
        assert (a.shape, a.stride(), a.dtype, a.device, a.requires_grad) == (
            b.shape,
            b.stride(),
            b.dtype,
            b.device,
            b.requires_grad,
        ), path
        assert a.is_meta or torch.equal(a, b), path
        assert a.is_meta or not a.numel() or a.data_ptr() != of.data_ptr(), path
    if isinstance(a, dict):
        assert len(a) == len(b), path
        for (key, value), (other, found), origin in zip(a.items(), b.items(), of.values(), strict=True):
            assert key == other, path
            assert_alike(value, found, origin, met, f"{path}.{key}")
    if isinstance(a, set):
        assert list(a) == list(b), path
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for k, (value, found, origin) in enumerate(zip(a, b, of, strict=True)):
            assert_alike(value, found, origin, met, f"{path}[{k}]")
    if isinstance(a, (nn.Module, Tensor, OrderedDict)):
        mine, other, origin = vars(a), vars(b), vars(of)
        if mine.keys() == origin.keys():
            assert_alike(mine, other, origin, met, path)
        else:
            assert mine.keys() == other.keys(), path
    if isinstance(a, (int, float, str)):
        assert a == b, path


def test_it_is_what_deepcopy_gives() -> None:
    net = Net()
    expected, found = copy.deepcopy(net), deep_copy(net, {})
    assert_alike(expected, found, net, {})
    assert found.others["b"].copied
    assert found.others["c"].by_itself
    assert hasattr(found.others["a"], "beside") == hasattr(expected.others["a"], "beside")
    assert found.others["d"].weight.shape == (2,)
    assert found.row[0][0] is found.first is found.again
    assert found.method.__self__ is found
    found.part.zero_()
    assert found.memory[2:4].eq(0).all(), "a view of a buffer is one of its copy"
    assert not net.memory[2:4].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.uint4, torch.int2, torch.uint16, torch.float8_e4m3fn, torch.bits8], ids=str)
def test_dtypes_that_have_hardly_any_operators_are_copied(dtype: torch.dtype) -> None:
    net = nn.Module()
    net.register_buffer("packed", torch.arange(8, dtype=torch.uint8).repeat(2).view(dtype))
    found = deep_copy(net, {}).packed
    assert found.dtype == dtype
    assert bytes(found.untyped_storage()) == bytes(net.packed.untyped_storage())
    assert found.data_ptr() != net.packed.data_ptr()


def test_the_memo_is_deepcopys() -> None:
    net = Net()
    weight, other = nn.Parameter(torch.zeros(1)), nn.Module()
    memo: dict[int, Any] = {id(net.first.weight): weight, id(net.norm): other, id(net.entries): None}
    found = deep_copy(net, memo)
    assert found.first.weight is weight
    assert found.norm is other
    assert found.entries is None
    assert memo[id(net)] is found
    assert memo[id(net.counter)] is found.counter
    assert copy.deepcopy([net, net.counter], memo) == [found, found.counter]


def test_what_deepcopy_refuses_is_refused() -> None:
    net = Net()
    net.result = torch.randn(2, requires_grad=True) * 2
    with pytest.raises(RuntimeError, match="deepcopy"):
        deep_copy(net, {})


def test_an_ordinary_net_asks_deepcopy_for_its_parameters_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    whole = copy.deepcopy

    def watched(given: Any, memo: Any) -> Any:
        asked.append(given)
        return whole(given, memo)

    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    monkeypatch.setattr(copying.copy, "deepcopy", watched)
    deep_copy(net, {})
    assert all(isinstance(given, nn.Parameter) for given in asked)
    assert len(asked) == len(list(net.parameters()))
