"""One of several processes: what it passes on, sums in the order of ranks, and what has to be the same on all."""

from __future__ import annotations

import contextlib
import functools
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fairkern import env
from fairkern.errors import InputError, RankError
from fairkern.interrupts import unbroken
from fairkern.ranks import watch
from fairkern.ranks.watch import Watch

T = TypeVar("T")

_PIECE = 2**20  # float64 values that are on their way at once
_INLINE = 2**14  # bytes of a message that the store may hold


class Ranks:
    """One of several processes that make the same calls in the same order; of a single one, all of this is free.

    Whoever waits for the others waits as long as they live: see `Watch` for how long after that, and for what it costs.
    Raises, wherever it is called: what stopped another process (an error of fairkern as such, else RankError), and
    RankError where one has died, or is somewhere else in the code.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank, self.size = rank, size
        self._store, self._met = store, 0
        self._watch = Watch(store, rank, size) if size > 1 else None
        self._connected: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that measures and writes."""
        return self.rank == 0

    @property
    def local(self) -> int:
        """Which of the processes of its machine this is, as their launcher says."""
        return env.local_rank()

    @property
    def several(self) -> bool:
        return self.size > 1

    def own(self, number: int) -> bool:
        """Whether this process takes what has this number: batches are dealt out in turn."""
        return number % self.size == self.rank

    def check(self) -> None:
        """Raises what has stopped another process, if anything has. Costs nothing: call it between batches."""
        if self._watch is not None:
            self._watch.check()

    def gathered(self, what: str, value: T) -> list[T]:
        """What every process gives, by rank. `what`: the same on all, and said where one is somewhere else."""
        if self._watch is None:
            return [value]
        data = pickle.dumps(value)
        heads = self._meet(what, (len(data), data if len(data) <= _INLINE else None))
        longest = max(length for length, own in heads if own is None or length)
        if all(own is not None for _, own in heads):
            return [pickle.loads(own) for _, own in heads]
        room = torch.zeros(longest, dtype=torch.uint8, device="cpu")
        room[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = self._all(room)
        return [pickle.loads(p[:length].numpy().tobytes()) for p, (length, _) in zip(parts, heads, strict=True)]

    def told(self, what: str, make: Callable[[], T], by: int = 0) -> T:
        """What `make()` gives on one rank, on all; the others wait meanwhile, and do nothing."""
        if self._watch is None:
            return make()
        if self.rank == by:
            made = make()
            data = bytearray(pickle.dumps(made))
            self._meet(what, (len(data), bytes(data) if len(data) <= _INLINE else None))
            if len(data) > _INLINE:
                self._from(by, torch.frombuffer(data, dtype=torch.uint8))
            return made
        length, inline = self._meet(what, None)[by]
        if inline is None:
            room = torch.empty(length, dtype=torch.uint8, device="cpu")
            self._from(by, room)
            inline = room.numpy().tobytes()
        told: T = pickle.loads(inline)
        return told

    def agree(self, what: str, said: Mapping[str, str], remedy: str = "") -> None:
        """Raises InputError where processes say different things, and of which they do."""
        if self._watch is None:
            return
        every = self.gathered(what, dict(said))
        for name in said:
            apart = [r for r, other in enumerate(every) if other.get(name) != every[0].get(name)]
            if apart:
                ranks = f"rank{'s' if len(apart) > 1 else ''} {', '.join(map(str, apart))}"
                raise InputError(
                    f"{name} of {ranks} {'is' if len(apart) == 1 else 'are'} not that of rank 0, and {what} needs the "
                    f"same on all {self.size}{f': {remedy}' if remedy else ''}"
                )

    def summed(self, what: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Float64 sums over all processes, `((t₀ + t₁) + t₂) + …` in the order of ranks, value by value: the same bits
        on all of them, wherever in a tensor a value lies. New tensors, of the shapes and on the devices given.

        Cost: every process sends its tensors to each other one, `_PIECE` values at a time.
        """
        wide = [t.detach().to("cpu", torch.float64, copy=True).contiguous() for t in tensors]
        if self._watch is not None:
            self._same(what, [tuple(t.shape) for t in wide])
            for pieces in _pieces(wide):
                parts = self._all(torch.cat(pieces) if len(pieces) > 1 else pieces[0])
                total = parts[0]
                for part in parts[1:]:
                    total += part
                for piece, found in zip(pieces, total.split([len(p) for p in pieces]), strict=True):
                    piece.copy_(found)
        return [w.to(t.device) for w, t in zip(wide, tensors, strict=True)]

    def brought(self, what: str, owner: int, tensor: Tensor | None) -> list[Tensor | None]:
        """On `owner` what every process has there, by rank, on the CPU; nothing on the others."""
        if self._watch is None:
            return [tensor]
        heads = self._meet(what, None if tensor is None else (tuple(tensor.shape), tensor.dtype))
        if any(head is not None and 0 not in head[0] for head in heads):
            self._connect()  # which takes all, also those that bring nothing
        if self.rank != owner:
            if tensor is not None and tensor.numel():
                self._through(functools.partial(_send, tensor, owner))
            return []
        found: list[Tensor | None] = []
        for rank, head in enumerate(heads):
            if rank == owner or head is None:
                found.append(tensor if rank == owner else None)
                continue
            room = torch.empty(head[0], dtype=head[1], device="cpu")
            if room.numel():
                self._through(functools.partial(_receive, room, rank))
            found.append(room)
        return found

    def spread(self, what: str, tensors: Sequence[Tensor]) -> None:
        """Write rank 0's values into these tensors, in place, on every process."""
        if self._watch is None:
            return
        self._same(what, [(tuple(t.shape), t.dtype) for t in tensors])
        for tensor in tensors:
            held = tensor.detach().to("cpu", copy=True).contiguous()
            if held.numel():
                self._from(0, _bytes(held))
            if not self.first:
                with torch.no_grad():
                    tensor.copy_(held)

    def shared_out(self, what: str, jobs: Sequence[Callable[[], T]], costs: Sequence[float]) -> list[T]:
        """What all jobs give, on every process; each is done by one, and as much to do falls to each as can be had."""
        owners, done = self.dealt(costs), {}
        for number, job in enumerate(jobs):
            if owners[number] == self.rank:
                done[number] = job()
                self.check()
        every = self.gathered(what, done)
        return [every[owner][number] for number, owner in enumerate(owners)]

    def dealt(self, costs: Sequence[float], among: Sequence[int] | None = None) -> list[int]:
        """Who does what, of all or of these: the dearest first, each goes to whoever has least to do so far."""
        load = dict.fromkeys(range(self.size) if among is None else among, 0.0)
        owners = [0] * len(costs)
        for number in sorted(range(len(costs)), key=lambda k: (-costs[k], k)):
            owners[number] = min(load, key=lambda rank: (load[rank], rank))
            load[owners[number]] += costs[number]
        return owners

    def _same(self, what: str, form: Any) -> None:
        forms = self._meet(what, form)
        apart = next((r for r, other in enumerate(forms) if other != forms[0]), None)
        if apart is not None:
            raise RankError(f"rank {apart} has other tensors than rank 0 in {what}: the ranks hold different models")

    def _meet(self, what: str, payload: Any) -> list[Any]:
        """Once all are here: what each brings, by rank. Raises RankError where one is somewhere else."""
        assert self._watch is not None
        self._watch.set(f"{self._met}/{self.rank}", pickle.dumps((what, payload)))
        found = [pickle.loads(v) for v in self._watch.get([f"{self._met}/{r}" for r in range(self.size)])]
        if self._met:  # nobody will ask for it again: all have come here since
            self._watch.forget(f"{self._met - 1}/{self.rank}")
        self._met += 1
        elsewhere = [(r, said) for r, (said, _) in enumerate(found) if said != what]
        if elsewhere:
            rank, said = elsewhere[0]
            raise RankError(
                f"rank {rank} is at {said}, and rank {self.rank} at {what}: every rank of the group has to make the "
                "same calls, in the same order"
            )
        return [payload for _, payload in found]

    def _all(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self._through(lambda group: group.allgather([parts], [tensor]))
        return parts

    def _from(self, rank: int, tensor: Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank = rank
        self._through(lambda group: group.broadcast([tensor], options))

    def _through(self, send: Callable[[Any], Any]) -> None:
        """By connections of our own, which break when one of the processes has been gone for `PATIENCE`."""
        assert self._watch is not None
        self._connect()
        try:
            send(self._connected).wait()
        except RuntimeError as error:
            raise self._watch.gone(error) from error

    def _connect(self) -> None:
        """All have to, before any of them sends."""
        assert self._watch is not None
        if self._connected is None:
            patience = timedelta(seconds=watch.PATIENCE)
            store = dist.PrefixStore("data/", self._store)
            try:
                self._connected = dist.ProcessGroupGloo(store, self.rank, self.size, patience)
            except RuntimeError as error:
                raise self._watch.gone(error) from error

    @contextlib.contextmanager
    @unbroken
    def watched(self, what: str) -> Iterator[Ranks]:
        """Around `what`: they meet before and after it, and meanwhile each gives signs of life to the others."""
        assert self._watch is not None
        self._watch.start()
        try:
            self._meet(f"the begin of {what}", None)
            yield self
            self._meet(f"the end of {what}", None)
        except BaseException as error:
            self._watch.tell(error)
            raise
        finally:
            self._watch.end()
            self._connected = None


ALONE = Ranks()
"""The one process of a run that nobody shares."""


def _pieces(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Views of contiguous tensors, put together and cut up so that each list has `_PIECE` values, the last fewer."""
    waiting: list[Tensor] = []
    room = _PIECE
    for tensor in tensors:
        flat = tensor.view(-1)
        while len(flat):
            waiting.append(flat[:room])
            flat, room = flat[room:], room - len(waiting[-1])
            if not room:
                yield waiting
                waiting, room = [], _PIECE
    if waiting:
        yield waiting


def _bytes(tensor: Tensor) -> Tensor:
    """A view of what a contiguous tensor on the CPU holds, else of a copy; of any dtype."""
    return tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8)


def _send(tensor: Tensor, to: int, group: Any) -> Any:
    return group.send([_bytes(tensor)], to, 0)


def _receive(room: Tensor, sender: int, group: Any) -> Any:
    return group.recv([_bytes(room)], sender, 0)
