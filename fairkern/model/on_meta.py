"""Models that are built without values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fairkern.model.threads import of_this_thread
from fairkern.model.untouched import valueless


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within, parameters of modules that this thread builds have no values, and buffers are computed as ever: so a
    model of any size is built with what its files do not have, such as tables of rotary embeddings.

    Memory: while it is built, that of a parameter at a time, of which nothing is written.
    """

    def moved(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if valueless(parameter):
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    here: Any = of_this_thread(moved)  # torch's own annotation knows no result
    handle = register_module_parameter_registration_hook(here)
    try:
        yield
    finally:
        handle.remove()
