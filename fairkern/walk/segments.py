"""Segments: consecutive blocks that share units, as models of their own; and the model with stubs in their places."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fairkern.errors import InputError
from fairkern.model.nested import own
from fairkern.types import AxisGroup, UnitMap
from fairkern.walk.chain import Block, Chain, returned_by, taken


@dataclass(frozen=True)
class Division:
    """A chain's blocks in segments, in order. Every group that may be cut lies in one of them, or outside of all:
    blocks that share units with what runs before the chain (behind it) are in no segment, but run with that."""

    chain: Chain
    segments: tuple[tuple[Block, ...], ...]
    groups: tuple[tuple[int, ...], ...]  # per segment, the groups of the unit map that lie in it, frozen ones too
    before: tuple[int, ...]  # groups of what runs before the segments
    behind: tuple[int, ...]


def divide(chain: Chain, units: UnitMap) -> Division:
    """Puts blocks that share a group that may be cut into one segment.

    Raises InputError where that leaves fewer than two segments, with the group that couples the most blocks.
    """
    n = len(chain.blocks)
    spans = {g: _span(chain, units.groups[g]) for g in range(len(units.groups))}
    joined = [False] * (n + 1)  # whether pieces k and k + 1 are one: before, the blocks, behind
    for g in units.prunable:
        for k in range(*spans[g]):
            joined[k] = True
    pieces: list[list[int]] = [[0]]
    for k in range(1, n + 2):
        if joined[k - 1]:
            pieces[-1].append(k)
        else:
            pieces.append([k])
    segments = [piece for piece in pieces if piece[0] > 0 and piece[-1] < n + 1]
    if len(segments) < 2:
        widest = max(units.prunable, key=lambda g: spans[g][1] - spans[g][0])
        raise InputError(
            f"the {n} blocks from {chain.blocks[0].path} to {chain.blocks[-1].path} share units that may be cut "
            f"(those of {units.groups[widest].name}), so that they are one; score the model in one pass (leave walk= "
            "out)"
        )
    place = {k: i for i, piece in enumerate(pieces) for k in piece}
    at: dict[int, list[int]] = {i: [] for i in range(len(pieces))}
    for g, (first, _) in spans.items():
        at[place[first]].append(g)
    first, last = place[segments[0][0]], place[segments[-1][0]]
    return Division(
        chain,
        tuple(tuple(chain.blocks[k - 1] for k in piece) for piece in segments),
        tuple(tuple(at[i]) for i in range(first, last + 1)),
        tuple(g for i in range(first) for g in at[i]),
        tuple(g for i in range(last + 1, len(pieces)) for g in at[i]),
    )


def _span(chain: Chain, group: AxisGroup) -> tuple[int, int]:
    """The first and last piece that a group touches: 0 before the blocks, 1 … n the blocks, n + 1 behind them."""
    found = set()
    for tensor in {held.axis.tensor for held in group.axes} | {s.module for t in group.taps for s in t.sites}:
        k = chain.number(tensor)
        if k is not None:
            found.add(k + 1)
            continue
        inside = [path for path in (tensor, tensor.rpartition(".")[0]) if path in chain.before | chain.behind]
        for path in inside[:1]:
            found |= {0} if path in chain.before else set()
            found |= {len(chain.blocks) + 1} if path in chain.behind else set()
        if not inside:  # of no module that was called: it may be read anywhere
            found |= {0, len(chain.blocks) + 1}
    return min(found), max(found)


def part_of(units: UnitMap, groups: Sequence[int]) -> UnitMap:
    """The unit map with these groups alone, in this order; names are those of the whole model."""
    return replace(
        units,
        groups=tuple(units.groups[g] for g in groups),
        frozen=(),
        extents=(),
        params=(),
        flops=(),
        attributes=(),
        sites=(),
        replacements=(),
        config=(),
        kept=(),
        blocks={},
    )


class _Holder(nn.Module):
    """A module that is there for the path to another."""


class Given(NamedTuple):
    """What a block is called with beside what passes: the arguments, in which `None` stands at the place of that."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def called(self, module: nn.Module, place: int | str, boundary: Tensor) -> Any:
        """What the block returns for a boundary. Caches among the arguments are its own to fill."""
        args, kwargs = list(own(self.args)), dict(own(dict(self.kwargs)))
        if isinstance(place, int):
            args[place] = boundary
        else:
            kwargs[place] = boundary
        return module(*args, **kwargs)

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any], place: int | str) -> tuple[Given, Tensor]:
        """From a call, with the tensor that passes."""
        boundary = args[place] if isinstance(place, int) else kwargs[place]
        rest = tuple(None if k == place else value for k, value in enumerate(args))
        return cls(rest, {k: None if k == place else value for k, value in kwargs.items()}), boundary


Fetch = Callable[[Tensor], tuple[int, Tensor, Sequence[Given]]]


@dataclass
class LastCall:
    """Of a segment. `entered`: what passed in, a leaf that asks for gradients where they are on. `batch`, `samples`: of
    which, by their numbers."""

    entered: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32, device="cpu"))
    batch: int = 0
    samples: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64, device="cpu"))


class Segment(nn.Module):
    """Some blocks of a model as a model of its own: the same modules under the same names.

    It is called with the numbers of samples of one batch, int64 [samples]; `fetch` gives for them the batch's number,
    what passes into the first block, and what every block is called with besides. Returns what passes out of the last
    block.

    `last`: of which batch the last call was, and what passed in.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block], fetch: Fetch) -> None:
        super().__init__()
        self.walked, self._fetch, self.last = tuple(blocks), fetch, LastCall()
        for block in blocks:
            *way, last = block.path.split(".")
            held: nn.Module = self
            for name in way:
                if name not in held._modules:
                    held.add_module(name, _Holder())
                held = held.get_submodule(name)
            held.add_module(last, model.get_submodule(block.path))

    def forward(self, samples: Tensor) -> Tensor:
        self.last.samples = samples
        self.last.batch, boundary, givens = self._fetch(samples)
        self.last.entered = boundary.detach().requires_grad_(torch.is_grad_enabled())
        passing = self.last.entered.clone()
        for block, given in zip(self.walked, givens, strict=True):
            output = given.called(self.get_submodule(block.path), block.given, passing)
            passing = taken(output, block.returned, block.path)
        return passing


class _Stub(nn.Module):
    """In the place of a block: what it is called with goes to `called`, and it returns what that gives. Attributes that
    it has not are the block's."""

    def __init__(self, block: nn.Module, called: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self.__dict__["_stood_for"], self.__dict__["_called"] = block, called

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["_called"](args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stood_for"], name)


Called = Callable[[int, Block, tuple[Any, ...], dict[str, Any]], Any]


@contextlib.contextmanager
def stubs(model: nn.Module, blocks: Sequence[Block], called: Called) -> Iterator[None]:
    """Within, `called(number, block, args, kwargs)` is what every one of these blocks does. The blocks' own modules are
    no part of the model then."""
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for number, block in enumerate(blocks):
            path, _, name = block.path.rpartition(".")
            holder, module = model.get_submodule(path), model.get_submodule(block.path)

            def run(args: tuple[Any, ...], kwargs: dict[str, Any], number: int = number, block: Block = block) -> Any:
                return called(number, block, args, kwargs)

            swapped.append((holder, name, module))
            holder._modules[name] = _Stub(module, run)
        yield
    finally:
        for holder, name, module in swapped:
            holder._modules[name] = module


__all__ = ["Block", "Chain", "Division", "Given", "Segment", "divide", "part_of", "returned_by", "stubs"]
