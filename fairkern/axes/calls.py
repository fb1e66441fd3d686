"""Which calls are under way while a model runs: of its modules, and of functions that are given weights."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from fairkern.axes.facts import Production
from fairkern.axes.flow import Flow
from fairkern.axes.graph import Graph
from fairkern.axes.rules._call import FunctionCall, ModuleCall
from fairkern.axes.scopes import Scopes
from fairkern.axes.tracks import Tracks, unseen
from fairkern.model.linear import transposed_linear
from fairkern.model.nested import tensors_in
from fairkern.model.threads import of_this_thread
from fairkern.model.weight_calls import WeightCall
from fairkern.types import CallSite

# modules whose input is looked at on entry
_SEEN = (nn.Linear, nn.RNNBase, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)


def _seen(module: nn.Module) -> bool:
    """Whether the module does nothing with its input but contract or normalise it."""
    return isinstance(module, _SEEN) or transposed_linear(module)


class ModuleCalls:
    """Which module call is innermost, and what it was given. Hooks live only inside the context."""

    def __init__(
        self, model: nn.Module, tracks: Tracks, scopes: Scopes, fused: Collection[str], flow: Flow | None = None
    ) -> None:
        self._model, self._tracks, self._scopes, self._fused, self._flow = model, tracks, scopes, fused, flow
        self._stack: list[ModuleCall] = [ModuleCall(CallSite(""), None, None)]
        self.calls: Counter[str] = Counter()  # by module path
        self.widths: dict[str, int] = {}
        self.picked: set[str] = set()  # modules that were given places that an index picked
        self.slots: dict[str, int] = {}  # by module of fused experts: the most that a token is sent to
        self._handles = contextlib.ExitStack()

    def current(self) -> ModuleCall:
        return self._stack[-1]

    def __enter__(self) -> ModuleCalls:
        for path, module in self._model.named_modules():
            self._add(path, module)
        return self

    def _add(self, path: str, module: nn.Module) -> None:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            with unseen():
                given = list(tensors_in([*args, *kwargs.values()]))
                fused = path in self._fused
                entry = self._tracks.of(given[0]) if given else None
                seen = entry if fused or _seen(module) else None
                slots = next(t.shape[-1] for t in given if not t.is_floating_point()) if fused else None
                if slots is not None:
                    self.slots[path] = max(slots, self.slots.get(path, 0))
                if path:
                    self._scopes.uses(self.current().site.module, path)
                self._pass(given)
                self._stack.append(ModuleCall(CallSite(path, self.calls[path]), module, seen, entry, slots))
                self._pass(given)
                self.calls[path] += 1
                if self._flow is not None:
                    self._flow.enter(path, args, kwargs)
                if self._tracks.picked(given):
                    self.picked.add(path)

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            with unseen():
                self._stack.pop()
                self._pass(tensors_in(output))
                if self._flow is not None:
                    self._flow.leave(output)
                if isinstance(output, Tensor) and output.ndim:
                    self.widths[path] = output.shape[-1]

        before = module.register_forward_pre_hook(of_this_thread(enter), with_kwargs=True)
        self._handles.callback(before.remove)
        after = module.register_forward_hook(of_this_thread(leave), always_call=True)
        self._handles.callback(after.remove)

    def _pass(self, tensors: Iterable[Tensor]) -> None:
        """These pass through the code that is running: it hands them on, or a module that it called returned them."""
        tracks = (self._tracks.known(tensor) for tensor in tensors)
        self._scopes.saw(self.current().site.module, (track for track in tracks if track is not None))

    def __exit__(self, *_: object) -> None:
        self._handles.close()


class FunctionCalls:
    """Which function call is under way that is given a weight and an activation."""

    def __init__(self, graph: Graph, tracks: Tracks) -> None:
        self._graph, self._tracks = graph, tracks
        self.current: FunctionCall | None = None

    def around(self, call: WeightCall, run: Callable[[Mapping[int, Tensor]], Any]) -> Any:
        self.current = FunctionCall(call.numbers, tuple(self._tracks.of(t) for t in call.given))
        known = len(self._graph.productions)
        try:
            result = run({})
        finally:
            self.current = None
        self._graph.productions[known:] = [
            p for p in self._graph.productions[known:] if not p.site.weight or self._returns(result, p)
        ]
        return result

    def _returns(self, result: Any, made: Production) -> bool:
        """Whether the function returns what was made in it, in the dimension that was said."""
        if not isinstance(result, Tensor):
            return False
        dims = self._tracks.of(result).dims
        dim = dims[made.dim] if -len(dims) <= made.dim < len(dims) else None
        return isinstance(dim, np.ndarray) and np.array_equal(dim, made.nodes)
