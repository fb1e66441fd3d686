"""A function in a process of its own, which may be killed, run out of memory, or change what is process-wide."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

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
