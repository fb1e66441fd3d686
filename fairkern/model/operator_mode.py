"""Modes that see operators, where nothing is compiled."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class UncompiledMode(TorchDispatchMode):
    """A dispatch mode whose own code the compiler leaves alone.

    As torch has it for every mode; but that imports the compiler for it, which takes a second and more. Here it is told
    so only where somebody has imported it.
    """

    def __new__(cls, *_: Any, **__: Any) -> UncompiledMode:
        kind: Any = cls
        made: UncompiledMode = super().__new__(_hidden(kind) if "torch._dynamo" in sys.modules else kind)
        return made

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # of the class, which would import it
        return False


@functools.cache
def _hidden(kind: Any) -> Any:
    return type(kind.__name__, (kind,), {"__torch_dispatch__": torch.compiler.disable(kind.__torch_dispatch__)})
