"""Blocks in a row: modules of lists that are called once each, in order, each with the tensor that the last gave."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.errors import InputError
from fairkern.model.nested import call_model, elements, tensors_in
from fairkern.model.untouched import untouched

INSTEAD = "score it in one pass (leave walk= out)"
Place = int | str | None


@dataclass(frozen=True)
class Block:
    """A block of a chain. `given`: the number or name of the argument that passes from block to block. `returned`:
    where it is in what the block returns; None: that is the tensor itself. `items`: per item of a tuple, whether it is
    a tensor."""

    path: str
    given: int | str
    returned: Place
    items: tuple[bool, ...] = ()

    def output(self, boundary: Tensor) -> Any:
        """What the block would return with this passed on. Whatever else it returned is not a number, so that whoever
        reads it shows."""
        if self.returned is None:
            return boundary
        other = torch.full((), float("nan"), dtype=boundary.dtype, device=boundary.device)
        return tuple(boundary if k == self.returned else other if held else None for k, held in enumerate(self.items))


@dataclass(frozen=True)
class Chain:
    """Blocks in the order in which they run, and what runs outside of them, before the first and behind the last."""

    blocks: tuple[Block, ...]
    before: frozenset[str]
    behind: frozenset[str]

    def number(self, tensor: str) -> int | None:
        """Of the block in which a module or tensor lies; None: in none."""
        for k, block in enumerate(self.blocks):
            if tensor == block.path or tensor.startswith(f"{block.path}."):
                return k
        return None


@dataclass
class _Call:
    """A call of a module. `start`, `stop`: when; the tensors that it was given and returned."""

    path: str
    start: int
    given: list[tuple[int | str, Tensor]]
    stop: int = -1
    returned: list[tuple[Place, Tensor]] = field(default_factory=list)
    items: tuple[bool, ...] = ()


def entries_of(model: nn.Module) -> list[str]:
    """Paths of all modules of `Sequential`s and `ModuleList`s that are no such lists themselves."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            for name, entry in module.named_children():
                if not _passes_on(entry):
                    found.append(f"{path}.{name}" if path else name)
    return found


def _passes_on(module: nn.Module) -> bool:
    """Whether a module is a list, which has no code of its own."""
    kind: Any = type(module)
    return isinstance(module, nn.ModuleList) or kind.forward is nn.Sequential.forward


def chain_of(model: nn.Module, inputs: Any) -> Chain:
    """The blocks that `model` is made of: of all rows of modules of lists the one with most parameters.

    The model runs once on `inputs`, in eval mode, and is left as it was. Nothing goes by names of classes.

    Raises InputError where no two modules of lists run in a row, with what keeps them from it.
    """
    calls = _calls(model, inputs)
    times = Counter(call.path for call in calls)
    entries = set(entries_of(model))
    outermost: list[_Call] = []
    for call in calls:
        if call.path in entries and (not outermost or call.start > outermost[-1].stop):
            outermost.append(call)
    rows: list[_Row] = [[]]
    for call in outermost:
        link = _link(rows[-1][-1][0], call) if rows[-1] else None
        if times[call.path] > 1:
            rows.append([])
        elif link is None:
            rows.append([(call, _first(call), None)])
        else:
            last, _, _ = rows[-1][-1]
            rows[-1][-1] = (last, rows[-1][-1][1], link[0])
            rows[-1].append((call, link[1], None))
    rows = [_floating_on(row) for row in rows]
    row = max((row for row in rows if len(row) > 1), key=lambda row: _size(model, row), default=None)
    if row is None:
        raise InputError(f"{type(model).__name__} has no blocks to walk by: {_why(times, entries)}; {INSTEAD}")
    return _chain(model, row, calls)


_Row = list[tuple[_Call, int | str, Place]]


def _floating_on(row: _Row) -> _Row:
    """Without the first blocks that are given whole numbers, as embeddings are: no gradient goes back there."""
    for k, (call, place, _) in enumerate(row):
        if dict(call.given).get(place, torch.zeros(0, dtype=torch.int64)).is_floating_point():
            return row[k:]
    return []


def _size(model: nn.Module, row: _Row) -> int:
    return sum(p.numel() for call, _, _ in row for p in model.get_submodule(call.path).parameters())


def _why(times: Mapping[str, int], entries: set[str]) -> str:
    often = next((path for path in times if path in entries and times[path] > 1), None)
    if often is not None:
        return f"{often} is called {times[often]} times in one run"
    if not any(path in entries for path in times):
        return "it calls no module of a Sequential or ModuleList"
    return "no module of a Sequential or ModuleList is given the tensor that the one before it returns"


def _chain(model: nn.Module, row: _Row, calls: list[_Call]) -> Chain:
    first, second = row[0][0], row[1]
    given = second[1] if any(place == second[1] for place, _ in first.given) else row[0][1]
    last, before_last = row[-1][0], row[-2]
    places = [place for place, _ in last.returned]
    returned = before_last[2] if before_last[2] in places else next(iter(places), None)
    blocks = [Block(call.path, at, out, call.items) for call, at, out in row]
    blocks[0] = replace(blocks[0], given=given)
    blocks[-1] = replace(blocks[-1], returned=returned)
    inside = [(call.start, call.stop) for call, _, _ in row]
    outside = [c for c in calls if not any(start <= c.start <= stop for start, stop in inside)]
    start, stop = inside[0][0], inside[-1][1]
    chain = Chain(
        tuple(blocks),
        frozenset(c.path for c in outside if c.start < start),
        frozenset(c.path for c in outside if c.stop > stop),
    )
    for c in outside:
        if start < c.start < stop:
            # between two blocks: what it computes goes to the next beside the boundary, from the inputs alone
            chain = Chain(chain.blocks, chain.before | {c.path}, chain.behind)
    return chain


def _first(call: _Call) -> int | str:
    return call.given[0][0] if call.given else 0


def _link(last: _Call, call: _Call) -> tuple[Place, int | str] | None:
    """Where in what a block returned, and in what the next one is given, the same tensor lies."""
    for out, made in last.returned:
        for place, taken in call.given:
            if made is taken or (made.numel() and elements(made) == elements(taken)):
                return out, place
    return None


def _calls(model: nn.Module, inputs: Any) -> list[_Call]:
    """Calls of all modules in one run, in the order in which they began. Their tensors are held, so that none takes
    the place of another."""
    calls: list[_Call] = []
    open_calls: list[_Call] = []
    clock = iter(range(1 << 62))

    def before(path: str):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            given = [(place, t) for place, t in [*enumerate(args), *kwargs.items()] if isinstance(t, Tensor)]
            call = _Call(path, next(clock), given)
            calls.append(call)
            open_calls.append(call)

        return hook

    def after(_: nn.Module, args: tuple, output: Any) -> None:
        call = open_calls.pop()
        call.stop = next(clock)
        call.returned = list(returned_by(output))
        if isinstance(output, (tuple, list)):
            call.items = tuple(isinstance(item, Tensor) for item in output)

    with untouched(model), torch.no_grad(), contextlib.ExitStack() as handles:
        model.eval()
        for path, module in model.named_modules():
            pre = module.register_forward_pre_hook(before(path), with_kwargs=True)
            handles.callback(pre.remove)
            handles.callback(module.register_forward_hook(after).remove)
        call_model(model, inputs)
    return calls


def returned_by(output: Any) -> Iterator[tuple[Place, Tensor]]:
    """The tensors that a module returns, and where they are; those that are nested deeper are not among them."""
    if isinstance(output, Tensor):
        yield None, output
    elif isinstance(output, (tuple, list)):
        yield from ((place, item) for place, item in enumerate(output) if isinstance(item, Tensor))


def taken(output: Any, place: Place, path: str) -> Tensor:
    """The tensor that passes, out of what a block returned. Raises InputError where there is none."""
    found = dict(returned_by(output)).get(place)
    if found is None:
        raise InputError(
            f"{path} returns another structure than it did on the first inputs, without the tensor that passes on; "
            f"{INSTEAD}"
        )
    return found


def not_a_number(value: Any) -> bool:
    """Whether any tensor in this is not a number somewhere."""
    return any(t.is_floating_point() and bool(torch.isnan(t).any()) for t in tensors_in(value))
