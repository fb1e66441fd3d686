"""What `torch.fx` writes into a graph as one call, as it writes torch's own modules and functions.

Their code asks tensors for values and sizes, which what stands for them in a graph does not have.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch.fx.proxy import Proxy

_Function = TypeVar("_Function", bound=Callable[..., Any])


def proxies(value: Any) -> Iterator[Any]:
    """What stands for values in a graph that is being written, in a nest of containers."""
    if isinstance(value, Proxy):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from proxies(item)
    elif isinstance(value, dict):
        yield from proxies(list(value.values()))


def written_by(args: Any, kwargs: Any) -> Any:
    """The tracer whose graph is being written, of the arguments of a call; None where they are values."""
    if torch.compiler.is_compiling():
        return None
    proxy = next(proxies((args, kwargs)), None)
    return None if proxy is None else proxy.tracer


def whole_call(function: _Function) -> _Function:
    """A function of a module that can be imported: one call of it in a graph, also in one that is read from a file."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        tracer = written_by(args, kwargs)
        if tracer is None:
            return function(*args, **kwargs)
        return tracer.create_proxy("call_function", run, args, kwargs)

    return run  # type: ignore[return-value]


def whole_module(forward: _Function) -> _Function:
    """The `forward` of a module: one call of the module in a graph, unless the graph is that of the module itself."""

    @functools.wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        tracer = written_by(args, kwargs)
        path = tracer.path_of_module(self) if tracer is not None else ""
        if not path:
            return forward(self, *args, **kwargs)
        return tracer.create_proxy("call_module", path, args, kwargs)

    return run  # type: ignore[return-value]
