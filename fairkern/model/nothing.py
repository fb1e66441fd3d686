"""What stands in a cut model where a branch of a residual block was: modules that give zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fairkern.model.unscripted import Unscripted
from fairkern.types import BranchPart

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_KEPT = (bool, int, float, str, type(None))


class Nothing(Unscripted):
    """In place of a module that a branch had for itself (see `BranchPart`).

    What other code asks of it is there: its numbers and names as they were, None for what it held.
    """

    _source: int | str
    _dim: int
    _size: int | None
    _passes: bool
    _entries: int
    _place: int

    @classmethod
    def of(cls, module: nn.Module, part: BranchPart) -> Nothing:
        """In place of this one."""
        made = cls()
        for name, value in vars(module).items():
            if name not in _OF_EVERY_MODULE and isinstance(value, _KEPT):
                made.__dict__[name] = value
        for kind in ("_parameters", "_buffers", "_modules"):
            getattr(made, kind).update(dict.fromkeys(getattr(module, kind)))
        made.training = module.training
        made._source, made._dim, made._size = part.source, part.dim, part.size
        made._passes, made._entries, made._place = part.passes, part.entries, part.place
        return made

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros of what the branch would give here, or what was given."""
        x = kwargs[self._source] if isinstance(self._source, str) else args[self._source]
        if not self._passes:
            x = zeros(x, self._dim, self._size)
        if not self._entries:
            return x
        return tuple(x if k == self._place else None for k in range(self._entries))


def zeros(x: Tensor, dim: int, size: int | None) -> Tensor:
    """As `x` with so many positions along a dimension."""
    if size is None:
        return torch.zeros_like(x)
    if not isinstance(x, Tensor):  # torch.fx looks on
        return torch.repeat_interleave(torch.zeros_like(x.select(dim, 0)).unsqueeze(dim), size, dim)
    shape = list(x.shape)
    shape[dim] = size
    return x.new_zeros(shape)


def without(output: Any, part: BranchPart) -> Any:
    """What the last module of a branch returns, with zeros for what is added."""
    if not part.entries:
        return torch.zeros_like(output)
    made = [torch.zeros_like(item) if k == part.place else item for k, item in enumerate(output)]
    return type(output)(made)


def _unfused(module: nn.Module, args: Any) -> None:
    """A hook that does nothing: torch's fused paths are not taken where there are any."""


def put_nothing(model: nn.Module, part: BranchPart) -> None:
    """Put it in place of the module, which goes, unless it is there."""
    path, _, name = part.module.rpartition(".")
    holder = model.get_submodule(path)
    module = holder._modules[name]
    assert module is not None
    made = module if isinstance(module, Nothing) else Nothing.of(module, part)
    if isinstance(holder, nn.TransformerEncoderLayer) and not made._forward_pre_hooks:
        made.register_forward_pre_hook(_unfused)
    holder._modules[name] = made
