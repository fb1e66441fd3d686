"""What a model is made of, without its values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fairkern.model.fields import read_field
from fairkern.model.tensors import named_tensors

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Described:
    """Shapes by name, and the class and plain attributes of every module."""

    tensors: dict[str, tuple[int, ...]]
    modules: dict[str, tuple[type, dict[str, Any]]]


def described(model: nn.Module, leave_out: Sequence[str] = ()) -> Described:
    """Of a model; tensors that are left out, by name, do not count."""
    return Described(
        {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items() if name not in leave_out},
        {
            path: (type(module), {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)})
            for path, module in model.named_modules()
        },
    )


def module_digests(model: nn.Module) -> dict[str, str]:
    """Per module, by path, a digest of its class and of the plain attributes that say what it computes: numbers, texts,
    tuples and lists of those, names of functions. The mode, what begins with an underscore, and what only repeats a
    field of the module's configuration says nothing of that.
    """
    return {path: _digest(module) for path, module in model.named_modules()}


def own_class(module: nn.Module) -> type:
    """The class that a module was made of: without what size sites or `fully_shard` have put in front of it."""
    kind: Any = type(module)
    while True:
        if "_original" in vars(kind):
            kind = kind._original
        elif any(base.__name__ == "FSDPModule" for base in kind.__bases__):
            kind = kind.__bases__[-1]
        else:
            return kind


def _digest(module: nn.Module) -> str:
    kind, config = own_class(module), vars(module).get("config")
    said = {
        name: _plain(value)
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name != "training" and not _repeats(config, name, value)
    }
    said = {name: value for name, value in said.items() if value is not None}
    text = json.dumps([f"{kind.__module__}.{kind.__qualname__}", said])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _repeats(config: Any, name: str, value: Any) -> bool:
    """Whether a module holds what its configuration says anyway, as the folder that it came from."""
    if config is None or not isinstance(value, _PLAIN):
        return False
    said = read_field(config, name)
    return type(said) is type(value) and said == value


def _plain(value: Any) -> Any:
    """What JSON makes of a plain value; None of any other."""
    if isinstance(value, (tuple, list)):
        found = [_plain(item) for item in value]
        return None if any(item is None for item in found) else found
    if isinstance(value, _PLAIN):
        return repr(value)
    if callable(value) and not isinstance(value, nn.Module) and isinstance(getattr(value, "__qualname__", None), str):
        return f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    return None
