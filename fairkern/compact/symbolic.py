"""`torch.fx` writes a module's calls into a graph: size-taking ones with the sizes that are left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any, Protocol

from torch.fx.proxy import Proxy, TracerBase

from fairkern.errors import InputError
from fairkern.model.in_graphs import whole_call
from fairkern.model.size_calls import Asked, SizeFunction, size_function
from fairkern.types import SizeChange


class Substitutes(Protocol):
    running: int
    inside: bool

    def substituted(self, function: SizeFunction, args: Any, kwargs: Any) -> tuple[Any, Any]: ...

    def answers(self, function: Asked) -> Sequence[SizeChange]: ...

    def later(self, function: FunctionType) -> Callable[..., Any]: ...


@contextlib.contextmanager
def traced(tracer: TracerBase, mode: Substitutes) -> Iterator[None]:
    """Within, methods that are called on what stands for tensors, which no function mode sees, are given to `mode`.

    So are functions that stay whole in the graph (`torch.fx.wrap`) and run when that runs, and questions for sizes.
    """
    own = vars(tracer).get("create_proxy")
    before, attribute = tracer.create_proxy, Proxy.__getattr__

    def create_proxy(kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        function = size_function(target) if kind in ("call_method", "call_function") else None
        if mode.inside or mode.running:
            return before(kind, target, args, kwargs, *rest, **more)
        if isinstance(function, Asked):
            return _answered(before(kind, target, args, kwargs, *rest, **more), mode.answers(function))
        if function is not None:
            args, kwargs = mode.substituted(function, args, kwargs)
        elif kind == "call_function" and isinstance(target, FunctionType):
            target = mode.later(target)
        return before(kind, target, args, kwargs, *rest, **more)

    def getattribute(proxy: Proxy, name: str) -> Any:
        found, function = attribute(proxy, name), size_function("shape")
        if name != "shape" or proxy.tracer is not tracer or mode.inside or mode.running:
            return found
        assert isinstance(function, Asked)
        return _answered(found, mode.answers(function))

    tracer.create_proxy = create_proxy  # type: ignore[method-assign]
    Proxy.__getattr__ = getattribute  # type: ignore[method-assign]
    try:
        yield
    finally:
        Proxy.__getattr__ = attribute  # type: ignore[method-assign]
        del tracer.create_proxy
        if own is not None:
            tracer.create_proxy = own  # type: ignore[method-assign]


def _answered(answer: Any, changes: Sequence[SizeChange]) -> Any:
    asked = tuple((c.place, c.after // c.common, c.before // c.common) for c in changes)
    return before_the_cut(answer, asked) if asked else answer


@whole_call
def before_the_cut(answer: Any, changes: Sequence[tuple[int, int, int]]) -> Any:
    """A tensor's size, or all of them, with (place, after, before): as many times `before` as there are `after`."""
    sizes = list(answer) if isinstance(answer, tuple) else [answer]
    for place, after, before in changes:
        if sizes[place] % after:
            raise InputError(f"the model's code asks for a size, and {sizes[place]} is no multiple of {after} there")
        sizes[place] = sizes[place] // after * before
    return tuple(sizes) if isinstance(answer, tuple) else sizes[0]
