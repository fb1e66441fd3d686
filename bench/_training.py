"""What scoring is held against: the passes of an ordinary training epoch, and what no scoring can do without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import fairkern as fk


def forward_backward(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """What a training epoch computes before the optimiser's step: activations, their gradients, weight gradients."""
    model.train()
    for x, y in batches:
        model.zero_grad(set_to_none=True)
        loss_fn(model(x), y).backward()


class Floor:
    """Forward + backward for activations alone: what any pass that scores these units has to compute.

    In eval mode, no parameter asks for a gradient. What the first modules with a tap are given does, and nothing in
    front of them. (Of a tap in a function that a module calls, it is what that module is given.) The model is left as
    it was, but in eval mode.
    """

    def __init__(
        self, model: nn.Module, units: fk.UnitMap, batches: Sequence[Any], loss_of: Callable[[nn.Module, Any], Tensor]
    ) -> None:
        self._model, self._batches, self._loss_of = model, batches, loss_of
        self._leaves: dict[int, tuple[Tensor, Tensor]] = {}  # by what was given: it stays alive, and what stands for it
        tapped = {site.module for g in units.scored for tap in units.groups[g].taps for site in tap.sites}
        called = self._called()
        self._paths = sorted({_nearest(path, called) for path in tapped})

    def __call__(self) -> None:
        with self._asked():
            for batch in self._batches:
                self._leaves.clear()
                loss = self._loss_of(self._model, batch)
                torch.autograd.grad(loss, [leaf for _, leaf in self._leaves.values()], allow_unused=True)
        self._leaves.clear()

    @contextmanager
    def _asked(self) -> Iterator[None]:
        before = [(parameter, parameter.requires_grad) for parameter in self._model.parameters()]
        self._model.eval().requires_grad_(False)
        try:
            with ExitStack() as hooks:
                for path in self._paths:
                    module = self._model.get_submodule(path)
                    hooks.callback(module.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
                yield
        finally:
            for parameter, asked in before:
                parameter.requires_grad_(asked)

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        given = [
            value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point()
        ]
        if not given or any(value.requires_grad for value in given):
            return None
        return tuple(map(self._leaf, args)), {name: self._leaf(value) for name, value in kwargs.items()}

    def _leaf(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return self._leaves.setdefault(id(value), (value, value.detach().requires_grad_()))[1]

    def _called(self) -> set[str]:
        """Modules that run in a forward pass."""
        found: set[str] = set()
        with ExitStack() as hooks, torch.no_grad():
            for path, module in self._model.named_modules():
                hooks.callback(module.register_forward_pre_hook(lambda *_, path=path: found.add(path)).remove)
            self._loss_of(self._model.eval(), self._batches[0])
        return found


def _nearest(path: str, called: set[str]) -> str:
    """The module itself, or the one around it that runs."""
    while path not in called:
        path = path.rpartition(".")[0]
    return path


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads. The demo trains with one: layers so small gain nothing from a second, and times get unsteady."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
