"""Blocks in a row: modules of lists that are called once each, in order, each with the tensor that the last gave."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.errors import FairkernError, InputError
from fairkern.model.nested import elements, tensors_in
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
    passed: Tensor | None = field(default=None, compare=False)  # what the last block passed on in the run
    loss: float | None = None  # of that run
    returned: int | None = None  # how many tensors the model returned there

    def number(self, tensor: str) -> int | None:
        """Of the block in which a module or tensor lies; None: in none."""
        for k, block in enumerate(self.blocks):
            if tensor == block.path or tensor.startswith(f"{block.path}."):
                return k
        return None


@dataclass
class _Call:
    """A call of a module: when it began and ended."""

    path: str
    start: int
    stop: int = -1


@dataclass
class _Entry(_Call):
    """Of a module of a list, within no other such. `given`: its arguments that are tensors, and whether of floating
    point; `returned`: where its result has tensors. `link`: where in what the one before it returned, and in what this
    one is given, the same tensor lies."""

    given: dict[int | str, bool] = field(default_factory=dict)
    returned: tuple[Place, ...] = ()
    items: tuple[bool, ...] = ()
    link: tuple[Place, int | str] | None = None


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


def chain_of(model: nn.Module, run_once: Callable[[], object]) -> Chain:
    """The blocks that `model` is made of: of all rows of modules of lists the one with most parameters.

    `run_once` runs the model on whatever inputs, which is in eval mode then, and is left as it was. Nothing goes by
    names of classes.

    Raises InputError where no two modules of lists run in a row, with what keeps them from it.
    """
    run = _Run(model, run_once)
    rows: list[list[_Entry]] = [[]]
    for entry in run.outermost:
        if entry.link is None or run.times[entry.path] > 1 or not rows[-1]:
            rows.append([])
        if run.times[entry.path] == 1:
            rows[-1].append(entry)
        else:
            rows.append([])
    rows = [row for row in map(_floating_on, rows) if len(row) > 1]
    if not rows:
        raise InputError(f"{type(model).__name__} has no blocks to walk by: {run.why()}; {INSTEAD}")
    row = max(rows, key=lambda row: _size(model, row))
    stop = row[-1].stop
    outside = [call for call in run.calls if not any(e.start <= call.start <= e.stop for e in row)]
    blocks = tuple(_blocks(row))
    return Chain(
        blocks,
        # what runs between two blocks is given to the next one besides, and made of the inputs alone
        frozenset(call.path for call in outside if call.start < stop),
        frozenset(call.path for call in outside if call.stop > stop),
        dict(run.ends[row[-1].path])[blocks[-1].returned],
    )


def _blocks(row: list[_Entry]) -> Iterator[Block]:
    """The first is given what passes where the second is, and the last returns it where the one before it does, if they
    are called alike."""
    links = [entry.link for entry in row[1:]]
    first = links[0][1] if links[0] is not None and links[0][1] in row[0].given else next(iter(row[0].given))
    last = links[-1][0] if links[-1] is not None and links[-1][0] in row[-1].returned else row[-1].returned[0]
    given = [first, *(link[1] for link in links if link is not None)]
    returned = [*(link[0] for link in links if link is not None), last]
    for entry, at, out in zip(row, given, returned, strict=True):
        yield Block(entry.path, at, out, entry.items)


def _floating_on(row: list[_Entry]) -> list[_Entry]:
    """Without the first modules that are given whole numbers, as embeddings are, and the last that return no tensor: no
    gradient passes there."""
    while row and not any(row[0].given.values()):
        row = row[1:]
    while row and not row[-1].returned:
        row = row[:-1]
    return row


def _size(model: nn.Module, row: list[_Entry]) -> int:
    return sum(p.numel() for entry in row for p in model.get_submodule(entry.path).parameters())


class _Run:
    """One run of a model: calls of all modules in the order in which they began. Of their tensors those that the last
    module of a list returned are held, so that none takes their place."""

    def __init__(self, model: nn.Module, run_once: Callable[[], object]) -> None:
        self.calls: list[_Call] = []
        self.outermost: list[_Entry] = []
        self.ends: dict[str, list[tuple[Place, Tensor]]] = {}  # what modules returned that no other one was given
        self.times: Counter[str] = Counter()
        self._entries = set(entries_of(model))
        self._open: list[_Call] = []
        self._held: list[tuple[Place, Tensor]] = []
        self._clock = iter(range(1 << 62))
        with untouched(model), torch.no_grad(), contextlib.ExitStack() as handles:
            model.eval()
            for path, module in model.named_modules():
                handles.callback(module.register_forward_pre_hook(self._before(path), with_kwargs=True).remove)
                handles.callback(module.register_forward_hook(self._after).remove)
            run_once()
        self._held = []

    def why(self) -> str:
        """What keeps modules of lists from being blocks."""
        often = next((path for path, times in self.times.items() if path in self._entries and times > 1), None)
        if often is not None:
            return f"{often} is called {self.times[often]} times in one run"
        if not self.outermost:
            return "it calls no module of a Sequential or ModuleList"
        return "no module of a Sequential or ModuleList is given the tensor that the one before it returns"

    def _before(self, path: str):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            self.times[path] += 1
            within = any(isinstance(call, _Entry) for call in self._open)
            if within or path not in self._entries:
                call = _Call(path, next(self._clock))
            else:
                given = [(place, t) for place, t in [*enumerate(args), *kwargs.items()] if isinstance(t, Tensor)]
                call = _Entry(path, next(self._clock), given={place: t.is_floating_point() for place, t in given})
                call.link = _link(self._held, given)
                if call.link is not None:
                    del self.ends[self.outermost[-1].path]
                self.outermost.append(call)
            self.calls.append(call)
            self._open.append(call)

        return hook

    def _after(self, _: nn.Module, args: tuple, output: Any) -> None:
        call = self._open.pop()
        call.stop = next(self._clock)
        if isinstance(call, _Entry):
            self._held = list(returned_by(output))
            call.returned = tuple(place for place, t in self._held if t.is_floating_point())
            if isinstance(output, (tuple, list)):
                call.items = tuple(isinstance(item, Tensor) for item in output)
            self.ends[call.path] = self._held


def _link(held: list[tuple[Place, Tensor]], given: list[tuple[int | str, Tensor]]) -> tuple[Place, int | str] | None:
    """Where in what a block returned, and in what the next one is given, the same tensor lies."""
    for out, made in held:
        for place, taken in given:
            if made.is_floating_point() and (made is taken or (made.numel() and elements(made) == elements(taken))):
                return out, place
    return None


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


@contextlib.contextmanager
def runs_alone(what: str) -> Iterator[None]:
    """Around the first run of a part of a model: InputError for what its code raises there."""
    try:
        yield
    except FairkernError:
        raise
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"{what}, run alone, raises {type(error).__name__} ({first[:160]}): something passes between blocks, or is "
            f"collected from them, beside what each returns (a cache, router logits); {INSTEAD}"
        ) from error


def nowhere_a_number(like: Tensor) -> Tensor:
    """A tensor of the same size, in the memory of one element."""
    return torch.full((), float("nan"), dtype=like.dtype, device=like.device).expand(like.shape)


def not_a_number(value: Any) -> bool:
    """Whether any tensor in this is not a number somewhere."""
    return any(t.is_floating_point() and bool(torch.isnan(t).any()) for t in tensors_in(value))
