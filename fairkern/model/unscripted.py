"""`torch.jit.script` compiles the text of a module's code, in which the numbers before a cut stand."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from fairkern.errors import InputError


class Unscripted(nn.Module):
    """A module that runs otherwise than the text of its class says."""

    def __prepare_scriptable__(self) -> NoReturn:
        raise InputError(
            f"torch.jit.script compiles the code of {_name(self)} as it is written, and a cut model runs it with other "
            "sizes: use torch.jit.trace(model, inputs), torch.export or torch.onnx.export, which write down what runs"
        )


def _name(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
