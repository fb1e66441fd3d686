"""Processes of a gloo group, which run functions together and say what came of it."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from fairkern.errors import FairkernError
from fairkern.ranks import watch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "fairkern", "tests.ranks.cases"])
_LONG = 120.0  # seconds, after which a test would rather fail


@dataclass(frozen=True)
class Failed:
    """What a process raised."""

    kind: str
    message: str
    relayed: bool = False  # whether it came from another process
    where: str = ""


class Processes:
    """`size` of them, each with one thread, until `end`."""

    def __init__(self, size: int, patience: float = 60.0, beat: float = 0.25) -> None:
        handle, path = tempfile.mkstemp()
        os.close(handle)
        os.unlink(path)
        self._path = path
        self._ends: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_serve, args=(rank, size, path, theirs, patience, beat), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, ranks: Sequence[int] | None = None) -> list[Any]:
        """What each of some (or all) gives for `function(group, *args)`, or `Failed`; None where it has died."""
        members = range(len(self._ends)) if ranks is None else ranks
        for rank in members:
            self._ends[rank].send((function, args, None if ranks is None else list(ranks)))
        return [self._received(rank) for rank in members]

    def _received(self, rank: int) -> Any:
        if not self._ends[rank].poll(_LONG):
            raise TimeoutError(f"rank {rank} has not answered")
        try:
            return self._ends[rank].recv()
        except EOFError:
            return None

    def end(self) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(5)
            process.kill()
        if os.path.exists(self._path):
            os.unlink(self._path)


def _serve(rank: int, size: int, path: str, end: Connection, patience: float, beat: float) -> None:
    torch.set_num_threads(1)
    watch.PATIENCE, watch.BEAT = patience, beat
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=size)
    groups: dict[tuple[int, ...] | None, Any] = {None: True}
    if size > 2:
        groups[0, 1] = dist.new_group([0, 1])
    while True:
        try:
            function, args, ranks = end.recv()
        except EOFError:
            os._exit(0)
        try:
            group = False if ranks is not None and len(ranks) == 1 else groups[None if ranks is None else tuple(ranks)]
            made = function(group, *args)
        except FairkernError as error:
            made = Failed(type(error).__name__, str(error), error.rank is not None, traceback.format_exc())
        except Exception as error:
            made = Failed(type(error).__name__, str(error), False, traceback.format_exc())
        end.send(made)
