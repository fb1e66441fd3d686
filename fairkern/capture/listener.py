"""What a pass hears at its points: hooks, aliases of activations, and the gradients that come back to them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.capture.points import Point
from fairkern.capture.recurrent import StateReader
from fairkern.errors import InputError
from fairkern.model.checkpointing import functions, running_function
from fairkern.model.fused import Rows
from fairkern.model.tensors import named_tensors
from fairkern.model.threads import python_thread
from fairkern.model.weight_calls import WeightCall, WeightCalls
from fairkern.types import CallSite, Side

_OF_A_PASS = ("_calls", "_aliases", "_rows", "root", "heard", "carriers", "versions")


class _Root(torch.autograd.Function):
    """Hangs a tensor on a leaf of ours, so that the graph starts here although no weight asks for gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor, root: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


@dataclass(frozen=True)
class Beside:
    """Tensors of a forward pass that are no points: `leaves` gives those of the last one, and `take` is given the
    gradients of its loss that come back to them, None where none does."""

    leaves: Callable[[], Sequence[Tensor]]
    take: Callable[[Sequence[Tensor | None]], None]


class Listener:
    """What one forward pass hears at its points, and what comes back to them in the backward pass.

    Every point gets an alias of its activation, handed to its consumers alone: the gradient that returns there
    came through them and not through a skip connection beside them. `on_heard` is called before a point's consumers
    run. Where several passes of a model are under way, the listener of the one that goes on is `active`.
    """

    def __init__(
        self, model: nn.Module, points: Sequence[Point], *, gradients: bool, beside: Beside | None = None
    ) -> None:
        self._model, self.points, self._gradients, self._beside = model, points, gradients, beside
        self.active = True
        self._thread = 0  # that of the pass
        whole = [p for p in points if p.expert is None and (p.side.of_call or p.side is Side.BRANCH)]
        self._states = StateReader(points, self._hear_states)
        self._by_call: dict[tuple[str, Side], dict[int, Point]] = {}
        self._by_weight: dict[tuple[str, int], list[tuple[CallSite, Point]]] = {}
        for p in whole:
            for site in p.sites:
                if site.weight:
                    self._by_weight.setdefault((site.weight, site.call), []).append((site, p))
                else:
                    self._by_call.setdefault((site.module, p.side), {})[site.call] = p
        self._calls: dict[tuple[str, Side], int] = {}
        self._aliases: dict[Point, Tensor] = {}
        self.root = _leaf(torch.device("cpu"))
        self.heard: dict[Point, Tensor] = {}
        self.carriers: dict[Point, Tensor] = {}  # where the samples lie: what was heard, or the tokens it was made of
        self._rows: dict[Point, Tensor] = {}  # the tokens that the rows of an expert belong to
        self.versions: dict[Point, int] = {}
        self.copied: set[Point] = set()  # points whose activation is overwritten later in the pass
        self._functions: Mapping[CodeType, str] | None = None
        self._on_gradient: Callable[[Point, Tensor], None] = _ignore
        self.on_heard: Callable[[Point, Tensor], None] = _ignore

    def reset(self, device: torch.device) -> None:
        """Forget the pass before."""
        self._calls.clear()
        self._aliases.clear()
        self.heard.clear()
        self.carriers.clear()
        self._rows.clear()
        self.versions.clear()
        self._functions = None
        self.root = _leaf(device)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Within, another pass is heard; what was heard before, with its graph, is there again on the way out."""
        before = {name: value for name, value in vars(self).items() if name in _OF_A_PASS}
        try:
            vars(self).update({name: {} for name in before})
            yield
        finally:
            vars(self).update(before)

    def backward(self, loss: Tensor, on_gradient: Callable[[Point, Tensor], None]) -> None:
        """Call back for every point's gradient of the loss. What else goes backward, within a model or a loss function,
        is not ours and is not heard. Raises InputError where it has freed the graph."""
        self._on_gradient = on_gradient
        try:
            beside = () if self._beside is None else self._beside.leaves()
            _, *found = torch.autograd.grad(loss, [self.root, *beside], allow_unused=True)
            if self._beside is not None:
                self._beside.take(found)
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error):
                raise
            raise InputError(
                "the graph of the loss is gone: the loss function or the model calls backward() or autograd.grad() "
                "itself, which frees it; leave that out, or pass retain_graph=True there"
            ) from error
        finally:
            self._on_gradient = _ignore

    def missing(self) -> Point | None:
        """The first point that the forward pass did not reach."""
        return next((p for p in self.points if p not in self.heard), None)

    def forget(self, point: Point) -> None:
        """Let go of what was heard at a point; the pass knows that it has come by."""
        self.heard.pop(point, None)
        self.carriers.pop(point, None)

    def overwritten(self) -> set[Point]:
        """Points whose activation was written to after it was heard."""
        return {p for p, act in self.heard.items() if act._version != self.versions[p]}

    @contextlib.contextmanager
    def attached(self) -> Iterator[Listener]:
        """Hooks on the modules of all points, removed on the way out."""
        with contextlib.ExitStack() as handles:
            for path, side in self._by_call:
                module = self._model.get_submodule(path)
                if side is Side.INPUT:
                    handle = module.register_forward_pre_hook(self._before(path), with_kwargs=True)
                else:
                    handle = module.register_forward_hook(self._after(path, side))
                handles.callback(handle.remove)
            for path in self._states.paths:
                module = self._model.get_submodule(path)
                handles.callback(module.register_forward_hook(self._recurrent(path), with_kwargs=True).remove)
            try:
                yield self
            finally:
                self.reset(torch.device("cpu"))

    def hearing(self) -> contextlib.AbstractContextManager[object]:
        """Around one forward pass, in its thread: the function calls that are given a weight of some point directly."""
        self._thread = threading.get_ident()
        if not self._by_weight:
            return contextlib.nullcontext()
        return WeightCalls(named_tensors(self._model), self._around, self._model)

    def _around(self, call: WeightCall, run: Callable[[Mapping[int, Tensor]], Any]) -> Any:
        heard = [item for key in call.numbers.items() for item in self._by_weight.get(key, ())]
        inputs = {s.argument: self.hear(p, call.given[s.argument]) for s, p in heard if p.side is Side.INPUT}
        result = run(inputs)
        for _, point in heard:
            if point.side is Side.OUTPUT:
                result = self.hear(point, result).clone()
        return result

    def next_site(self, path: str, side: Side) -> CallSite:
        """The call of this module that is next, counted on its own for each side on which it is heard."""
        return CallSite(path, self._count((path, side)))

    def _count(self, of: tuple[str, Side]) -> int:
        call = self._calls.get(of, 0)
        self._calls[of] = call + 1
        return call

    def calls(self, path: str, side: Side) -> int:
        """How many calls of this module there were so far, counted for this side."""
        return self._calls.get((path, side), 0)

    def hears(self) -> bool:
        """Whether this call is one of the pass, and not of somebody else who calls the model in another thread."""
        return self.active and (threading.get_ident() == self._thread or not python_thread())

    def _next(self, of: tuple[str, Side]) -> Point | None:
        return self._by_call[of].get(self._count(of)) if self.hears() else None

    def hear(self, point: Point, x: Tensor) -> Tensor:
        """What arrives at a point; returns what to go on with."""
        known = self._aliases.get(point)
        if known is not None:  # another consumer of the same activation
            return known
        if point in self.versions and not (self._gradients and torch.is_grad_enabled()):
            return x
        heard = x.detach()
        if point in self.copied:
            heard = heard.clone()
        self._keep(point, heard, heard)
        if not self._starts_at(point):
            return x
        alias: Tensor = _Root.apply(x, self.root)
        alias.register_hook(lambda grad: self._on_gradient(point, grad))
        self._aliases[point] = alias
        return alias

    def hear_rows(self, points: Sequence[Point | None], x: Tensor, rows: Rows, carrier: Tensor) -> Tensor:
        """What experts make of some tokens of `carrier`, `[rows, n]`, the points of which are these, where they have
        one; returns what to go on with."""
        listening = [(e, p) for e, p in enumerate(points) if p is not None]
        if not listening:
            return x
        heard = x.detach()
        if any(p in self.copied for _, p in listening):
            heard = heard.clone()
        acts, tokens = heard.split(rows.counts), rows.tokens.split(rows.counts)
        for e, p in listening:
            self._keep(p, acts[e], carrier)
            self._rows[p] = tokens[e]
        if not self._starts_at(listening[0][1]):
            return x
        alias: Tensor = _Root.apply(x, self.root)

        def returned(grad: Tensor) -> None:
            grads = grad.split(rows.counts)
            for e, p in listening:
                self._on_gradient(p, grads[e])

        alias.register_hook(returned)
        return alias

    def _keep(self, point: Point, heard: Tensor, carrier: Tensor) -> None:
        if heard.shape[point.dim] != point.length:
            raise InputError(
                f"{point.name} has {heard.shape[point.dim]} positions in dimension {point.dim}, the unit map expects "
                f"{point.length}; trace this model again"
            )
        self.heard[point], self.carriers[point] = heard, carrier
        self.versions[point] = heard._version
        self.on_heard(point, heard)

    def _starts_at(self, point: Point) -> bool:
        """Whether gradients come back to what is heard here. Raises InputError where they cannot."""
        if not self._gradients:
            return False
        if torch.is_grad_enabled():
            return True
        if self._functions is None:  # looked up once a pass: there may be many points, and functions
            self._functions = functions()
        hidden = running_function(self._functions)
        if hidden is not None:
            raise InputError(
                f"{point.name} is computed inside {hidden}, a torch.autograd.Function that computes gradients by "
                "its own code, so that nothing is known of R there; score the model without it (switch its "
                "gradient checkpointing off)"
            )
        return False

    def place_rows(self, point: Point, tokens: Tensor, carrier: Tensor) -> None:
        """What was heard at a point are these rows of `carrier`; nothing, where nothing was heard."""
        self._rows[point], self.carriers[point] = tokens, carrier
        if point not in self.heard:
            self.heard[point] = carrier.new_zeros((0, *carrier.shape[1:-1], point.length))
            self.versions[point] = self.heard[point]._version

    def rows(self, point: Point) -> Tensor | None:
        """The tokens that the rows of an expert belong to, int64 [rows]; None where no expert was heard."""
        return self._rows.get(point)

    def whole(self, point: Point, x: Tensor, gradient: bool = False) -> Tensor:
        """What was heard at a point, or its `gradient`, for all tokens: zero where an expert was given none.

        Of a token that it was given several times, what it reads is the same every time and its gradients add up; what
        it adds itself adds up, and has one gradient.
        """
        tokens = self._rows.get(point)
        if tokens is None:
            return x
        made = x.new_zeros((len(self.carriers[point]), *x.shape[1:]))
        return made.index_copy_(0, tokens, x) if point.side.whole == gradient else made.index_add_(0, tokens, x)

    def shaped(self, point: Point, x: Tensor) -> Tensor:
        """As large as what `whole` gives of an activation, in no memory."""
        rows = self._rows.get(point)
        return x if rows is None else x.new_zeros(()).expand(len(self.carriers[point]), *x.shape[1:])

    def by_token(self, point: Point, gradient: Tensor) -> Tensor:
        """A gradient at a point with one row for each token that an expert of a list was given, however often."""
        tokens = self._listed_rows(point)
        if tokens is None:
            return gradient
        found, places = tokens.unique(return_inverse=True)
        if len(found) == len(tokens):
            return gradient
        made = gradient.new_zeros((len(found), *gradient.shape[1:]))
        return made.index_copy_(0, places, gradient) if point.side.whole else made.index_add_(0, places, gradient)

    def elements(self, point: Point) -> int:
        """How many numbers were heard at a point, those of a token once."""
        act, tokens = self.heard[point], self._listed_rows(point)
        return act.numel() if tokens is None else len(tokens.unique()) * act.shape[1:].numel()

    def _listed_rows(self, point: Point) -> Tensor | None:
        """Fused experts are given each token once."""
        return self._rows.get(point) if point.expert is None else None

    def _before(self, path: str):  # type: ignore[no-untyped-def]
        of = (path, Side.INPUT)

        def hook(_: nn.Module, args: tuple, kwargs: dict):  # type: ignore[no-untyped-def]
            point = self._next(of)
            if point is None:
                return None
            if args:
                return (self.hear(point, args[0]), *args[1:]), kwargs
            key = next(k for k, v in kwargs.items() if isinstance(v, Tensor))
            return args, {**kwargs, key: self.hear(point, kwargs[key])}

        return hook

    def _after(self, path: str, side: Side):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, args: tuple, output: Any):  # type: ignore[no-untyped-def]
            point = self._next((path, side))
            if point is not None and point.entry is not None:
                items = list(output)
                items[point.entry] = self.hear(point, items[point.entry]).clone()
                return type(output)(items)
            if point is not None and not isinstance(output, Tensor):
                raise InputError(
                    f"{path} returns a {type(output).__name__}, not the units of {point.name} alone; "
                    "use recipe='default', which taps what consumers read"
                )
            # What follows may write into the output (relu_): it gets a copy, and what is heard stays as it was.
            return None if point is None else self.hear(point, output).clone()

        return hook

    def _recurrent(self, path: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
            assert isinstance(module, nn.RNNBase)
            if not self.hears():
                return None
            return self._states.heard(self.next_site(path, Side.HIDDEN), module, args, kwargs, output)

        return hook

    def _hear_states(self, point: Point, states: Tensor) -> bool:
        """Whether what reads them may be another weight now."""
        self.heard[point] = states.detach()
        self.versions[point] = states._version
        self.on_heard(point, self.heard[point])
        return self.on_heard is not _ignore


def _leaf(device: torch.device) -> Tensor:
    return torch.zeros((), dtype=torch.float32, device=device, requires_grad=True)


def _ignore(point: Point, value: Tensor) -> None:
    return None
