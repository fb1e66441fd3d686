"""Function modes of our own, and how to run what must not see them: torch takes no fused path under any mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode


class OwnMode(TorchFunctionMode):
    """A mode that means calls of one module's own code, so that it may be left out while others run inside."""


def entered() -> bool:
    """Whether one is the innermost mode. While compiling, which knows modes by itself, none is said to be."""
    if torch.compiler.is_compiling():
        return False
    depth = torch._C._len_torch_function_stack()
    return depth > 0 and isinstance(torch._C._get_function_stack_at(depth - 1), OwnMode)


@contextlib.contextmanager
def left_out() -> Iterator[None]:
    """Within, the innermost modes that are ours are not entered."""
    modes = []
    while entered():
        modes.append(_pop_mode())
    try:
        yield
    finally:
        for mode in reversed(modes):
            _push_mode(mode)
