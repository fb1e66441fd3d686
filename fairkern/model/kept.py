"""What a model's code keeps in its modules from one place to the next, beside parameters and buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from fairkern.model.nested import tensors_in

Kept = Mapping[str, tuple[Any, ...]]
_TORCHS_OWN = frozenset(vars(nn.Module()))  # parameters, buffers, submodules, hooks, the mode


def kept_objects(model: nn.Module) -> Kept:
    """The tensors and containers of every attribute of every module, by `path.attribute`; most have none.

    Two of these that differ say that a call between them has put something there. Cost: a look at every attribute; as
    long as it is held, what was there stays alive.
    """
    return {f"{path}.{name}".lstrip("."): found for path, name, found in _held(model) if found}


def writes(model: nn.Module) -> Callable[[], bool]:
    """What says whether a tensor or container that the modules hold was written to, or an attribute of theirs replaced,
    since now. It is taken to be so where tensors do not count it (made in inference mode). Cost: as `kept_objects`."""
    before = kept_objects(model)
    tensors = [*model.parameters(), *model.buffers(), *tensors_in([*before.values()])]
    counted = not any(tensor.is_inference() for tensor in tensors)
    versions = [tensor._version for tensor in tensors] if counted else []

    def written() -> bool:
        same = counted and versions == [tensor._version for tensor in tensors]
        return not same or bool(changed(before, kept_objects(model)))

    return written


def _held(model: nn.Module) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _TORCHS_OWN and isinstance(value, (Tensor, list, tuple, dict)):
                yield path, name, (value, *tensors_in(value))


def changed(before: Kept, after: Kept) -> list[str]:
    """The attributes that hold other tensors, or another container, than before."""
    return [name for name in {**before, **after} if not _same(before.get(name, ()), after.get(name, ()))]


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(one is other for one, other in zip(a, b, strict=True))
