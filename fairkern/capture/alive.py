"""How many bytes of tensors are alive while a model runs, and at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

from fairkern.model.operator_mode import UncompiledMode


class Alive(UncompiledMode):
    """Counts what operators make while it is entered, the backward pass included: `peak`, bytes.

    What is made before, and what an operator takes for itself while it runs, is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}
        self._total = 0  # at least what is alive

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {_storage(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(made):
            if isinstance(tensor, Tensor) and _storage(tensor) not in given:
                self._add(tensor)
        return made

    def now(self) -> int:
        """What is alive."""
        self._known = {key: held for key, held in self._known.items() if not held[0].expired()}
        self._total = sum(size for _, size in self._known.values())
        return self._total

    def _add(self, tensor: Tensor) -> None:
        key = _storage(tensor)
        if key is None or (key in self._known and not self._known[key][0].expired()):
            return
        storage = tensor.untyped_storage()
        self._total += storage.nbytes() - self._known.get(key, (None, 0))[1]
        self._known[key] = (StorageWeakRef(storage), storage.nbytes())
        if self._total > self.peak:
            self.peak = max(self.peak, self.now())


def _storage(tensor: Tensor) -> int | None:
    strided = tensor.layout is torch.strided and type(tensor) in (Tensor, torch.nn.Parameter)
    return int(tensor.untyped_storage()._cdata) if strided else None
