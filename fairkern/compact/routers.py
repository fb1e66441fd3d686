"""Experts left out of a model as it is: their logits are −inf, and so is whatever they are chosen by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils.weak import WeakIdKeyDictionary

from fairkern.model.nested import tensors_in

_TOPK = (torch.topk, Tensor.topk)


class silent_experts(TorchFunctionMode):
    """Within it, what a router's weight gives for the experts that go is −inf.

    What is computed from those logits expert by expert is followed (a softmax, a sigmoid with a bias for the choice
    added), and where the k largest of it are looked for, the experts that go are at −inf again. Works for functions
    called in this thread; nothing is written to the model.
    """

    def __init__(self, routers: Iterable[tuple[Tensor, int, Tensor]]) -> None:
        """`routers`: a weight, its dimension of experts, and the experts that go, int64."""
        super().__init__()
        self._weights: WeakIdKeyDictionary = WeakIdKeyDictionary()  # and casts and views of them
        self._logits: WeakIdKeyDictionary = WeakIdKeyDictionary()
        for weight, dim, gone in routers:
            self._weights[weight] = (weight.shape[dim], gone.to(weight.device))

    def __exit__(self, *_: object) -> None:
        """Modes that were entered later and are still on stay on; in another thread, where this one cannot be taken
        from those that are on, it does nothing from now on."""
        modes = _get_current_function_mode_stack()
        if not any(mode is self for mode in modes):
            self._weights.clear()
            self._logits.clear()
            return
        later = []
        while (mode := _pop_mode()) is not self:
            later.append(mode)
        for mode in reversed(later):
            _push_mode(mode)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(tensors_in([args, kwargs]))
        routed = next((self._logits[t] for t in tensors if t in self._logits), None)
        if func in _TOPK and routed is not None:
            args = [_silenced(a, routed) if isinstance(a, Tensor) else a for a in args]
            kwargs = {k: _silenced(a, routed) if isinstance(a, Tensor) else a for k, a in kwargs.items()}
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            return result
        router = next((self._weights[t] for t in tensors if t in self._weights), None)
        if router is not None and all(t in self._weights for t in tensors):
            self._weights[result] = router
        elif router is not None:
            result = _silenced(result, router)
            self._logits[result] = router
        elif routed is not None and result.ndim and result.shape[-1] == routed[0]:
            self._logits[result] = routed
        return result


def _silenced(logits: Tensor, router: tuple[int, Tensor]) -> Tensor:
    experts, gone = router
    if not logits.ndim or logits.shape[-1] != experts or not logits.is_floating_point():
        return logits
    return logits.index_fill(-1, gone, float("-inf"))
