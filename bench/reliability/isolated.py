"""Functions in a process of their own, which may be killed, run out of memory, or change what is process-wide."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from bench.reliability.rows import Row, Tally

DIED = "process died"
_END = "the end"


class Died(Exception):
    """The process ended before its function did."""


def items(function: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
    """What `function(*arguments)` yields, in another process, as it comes. Raises Died."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, function, arguments))
    process.start()
    there.close()
    try:
        while True:
            try:
                kind, item = here.recv()
            except EOFError:
                process.join()
                raise Died(f"exit code {process.exitcode}") from None
            if kind == _END:
                return
            yield item
    finally:
        here.close()
        if process.is_alive():
            process.join(10)
            process.kill()
        process.join()


def _send(to: Connection, function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
    for item in function(*arguments):
        to.send(("item", item))
    to.send((_END, None))


def rows(
    part: str,
    function: Callable[..., Iterator[tuple[str, str]]],
    shares: Mapping[str, int],
    seed: int,
    faults: Sequence[str],
) -> Iterator[Row]:
    """A row per case of what `function(case, seed, count)` yields: (outcome, what was tried), all in one process.

    Where that dies, it is an outcome of the case that was under way, and another one goes on with the next.
    """
    left = dict(shares)
    while left:
        tally, begun = Tally((*faults, DIED)), time.perf_counter()
        try:
            for case, outcome, said in items(_cases, function, left, seed):
                if outcome:
                    tally.add(outcome, said)
                    continue
                del left[case]
                yield replace(tally.row(part, case, seed=seed), seconds=time.perf_counter() - begun)
                tally, begun = Tally((*faults, DIED)), time.perf_counter()
        except Died as died:
            case = next(iter(left))
            del left[case]
            tally.add(DIED, str(died))
            yield replace(tally.row(part, case, seed=seed), seconds=time.perf_counter() - begun)


def _cases(
    function: Callable[..., Iterator[tuple[str, str]]], shares: Mapping[str, int], seed: int
) -> Iterator[tuple[str, str, str]]:
    for case, count in shares.items():
        for outcome, said in function(case, seed, count):
            yield case, outcome, said
        yield case, "", ""
