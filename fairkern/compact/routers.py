"""Experts left out of a model as it is: their logits are −inf, and so is whatever they are chosen by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils.weak import WeakIdKeyDictionary

from fairkern.model.nested import tensors_in

_RANKED = (torch.topk, Tensor.topk, torch.max, Tensor.max, torch.amax, Tensor.amax, torch.argmax, Tensor.argmax)
_VIEWS = {"view", "reshape", "unflatten", "flatten", "view_as", "reshape_as"}


class silent_experts(TorchFunctionMode):
    """Within it, what a router's weight gives for the experts that go is −inf.

    What is computed from those logits expert by expert is followed (a softmax, a sigmoid with a bias for the choice
    added, a view as groups of experts), and where the largest of it are looked for, the experts that go are at −inf
    again. Works for functions called in this thread; nothing is written to the model.
    """

    def __init__(
        self,
        routers: Iterable[tuple[Tensor, int, Tensor]],
        places: Iterable[tuple[tuple[nn.Module, str], Tensor]] = (),
    ) -> None:
        """`routers`: a weight, its dimension of experts, and the experts that go, int64. `places`: where those are that
        lie in shards, since a pass has another tensor there."""
        super().__init__()
        self._weights: WeakIdKeyDictionary = WeakIdKeyDictionary()  # and casts and views of them
        self._logits: WeakIdKeyDictionary = WeakIdKeyDictionary()  # what goes of their last dimensions
        for weight, dim, gone in routers:
            goes = torch.zeros(weight.shape[dim], dtype=torch.bool, device=weight.device)
            self._weights[weight] = goes.index_fill(0, gone.to(weight.device), True)
        self._places = [(module, name, self._weights[weight]) for (module, name), weight in places]

    def __exit__(self, *_: object) -> None:
        """Modes that were entered later and are still on stay on; in another thread, where this one cannot be taken
        from those that are on, it does nothing from now on."""
        modes = _get_current_function_mode_stack()
        if not any(mode is self for mode in modes):
            self._weights.clear()
            self._logits.clear()
            self._places.clear()
            return
        later = []
        while (mode := _pop_mode()) is not self:
            later.append(mode)
        for mode in reversed(later):
            _push_mode(mode)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(tensors_in([args, kwargs]))
        for module, name, goes in self._places:
            for tensor in tensors:
                if tensor is module._parameters[name]:
                    self._weights[tensor] = goes
        known = [self._logits[t] for t in tensors if t in self._logits]
        if func in _RANKED and known and _along(args, kwargs):
            args = [self._silenced(a) for a in args]
            kwargs = {k: self._silenced(a) for k, a in kwargs.items()}
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            return result
        router = next((self._weights[t] for t in tensors if t in self._weights), None)
        if router is not None and all(t in self._weights for t in tensors):
            self._weights[result] = router
        elif router is not None:
            if _ends_with(result, router) and result.is_floating_point():
                self._logits[result] = router
                result = _at_minus_infinity(result, router)
                self._logits[result] = router
        elif known:
            goes = next((g for g in known if _ends_with(result, g)), None)
            if goes is None and getattr(func, "__name__", "") in _VIEWS:
                goes = _viewed(result, known[0])
            if goes is not None:
                self._logits[result] = goes
        return result

    def _silenced(self, value: Any) -> Any:
        goes = self._logits.get(value) if isinstance(value, Tensor) else None
        return value if goes is None or not value.is_floating_point() else _at_minus_infinity(value, goes)


def _along(args: Any, kwargs: Any) -> bool:
    """Not of two tensors, element by element."""
    return sum(isinstance(a, Tensor) for a in (*args, *kwargs.values())) == 1


def _ends_with(tensor: Tensor, goes: Tensor) -> bool:
    return tensor.shape[max(tensor.ndim - goes.ndim, 0) :] == goes.shape


def _viewed(result: Tensor, goes: Tensor) -> Tensor | None:
    """What goes of the last dimensions of a view: of so many of them as hold all experts once."""
    count = 1
    for n in range(1, result.ndim + 1):
        count *= result.shape[-n]
        if count == goes.numel() and (n == result.ndim or result.shape[-n] > 1):
            return goes.view(result.shape[-n:])
    return None


def _at_minus_infinity(logits: Tensor, goes: Tensor) -> Tensor:
    return logits.masked_fill(goes, float("-inf"))
