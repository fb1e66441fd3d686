"""`torch.fx` writes a module's calls into a graph: size-taking ones with the sizes that are left."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, Protocol

from torch.fx.proxy import Proxy, TracerBase

from fairkern.model.size_calls import SizeFunction, size_function


class Substitutes(Protocol):
    running: int
    inside: bool

    def substituted(self, function: SizeFunction, args: Any, kwargs: Any) -> tuple[Any, Any]: ...

    def later(self, function: FunctionType) -> Callable[..., Any]: ...


def proxies(value: Any) -> Iterator[Any]:
    """What stands for values in a graph that is being written, in a nest of containers."""
    if isinstance(value, Proxy):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from proxies(item)
    elif isinstance(value, dict):
        yield from proxies(list(value.values()))


@contextlib.contextmanager
def traced(tracer: TracerBase, mode: Substitutes) -> Iterator[None]:
    """Within, methods that are called on what stands for tensors, which no function mode sees, are given to `mode`.

    So are functions that stay whole in the graph (`torch.fx.wrap`) and run when that runs.
    """
    own = vars(tracer).get("create_proxy")
    before = tracer.create_proxy

    def create_proxy(kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        name = "__getitem__" if target is operator.getitem else target
        function = size_function(name) if kind in ("call_method", "call_function") else None
        if function is not None and not mode.inside and not mode.running:
            args, kwargs = mode.substituted(function, args, kwargs)
        elif kind == "call_function" and isinstance(target, FunctionType) and not mode.inside and not mode.running:
            target = mode.later(target)
        return before(kind, target, args, kwargs, *rest, **more)

    tracer.create_proxy = create_proxy  # type: ignore[method-assign]
    try:
        yield
    finally:
        del tracer.create_proxy
        if own is not None:
            tracer.create_proxy = own  # type: ignore[method-assign]
