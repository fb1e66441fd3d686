"""Modules that hide the one that is meant, under other names: what to pass instead."""

from __future__ import annotations

import torch
from torch import nn

from fairkern.errors import InputError

# by name: importing the class of compiled modules takes seconds
_WRAPPERS = {
    "OptimizedModule": ("is compiled", "pass {0}._orig_mod, and compile again after the cut"),
    "DataParallel": ("runs on several devices", "pass {0}.module, and wrap again after the cut"),
    "DistributedDataParallel": (
        "is distributed",
        "pass {0}.module, in all processes and with ranks=True, and wrap again after the cut",
    ),
    "FullyShardedDataParallel": (
        "has its parameters in flat pieces",
        (
            "shard with torch.distributed.fsdp.fully_shard, whose models are pruned as they lie; or load the whole "
            "state (torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True) into a "
            "model that is not wrapped, pass that, and wrap again after the cut"
        ),
    ),
}
_SCRIPTED = ("is scripted", "pass the module that it was made from, and script again after the cut")


def check_unwrapped(model: nn.Module) -> None:
    """InputError for a wrapper, or one inside."""
    for path, module in model.named_modules():
        wrapper = _SCRIPTED if isinstance(module, torch.jit.ScriptModule) else _WRAPPERS.get(type(module).__name__)
        if wrapper is not None:
            what, instead = wrapper
            name = f"model.{path}" if path else "model"
            raise InputError(f"{name} {what} ({type(module).__name__}): {instead.format(name)}")
