"""The repeated blocks of a model, and what they return in both models where shapes agree."""

from __future__ import annotations

import contextlib
import fnmatch
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairkern.errors import InputError
from fairkern.model.nested import tensors_in
from fairkern.options import near

_LISTS = (nn.ModuleList, nn.ModuleDict)


def blocks(model: nn.Module, path: str = "") -> Iterator[str]:
    """Names of the outermost modules that are repeated: those in a list, and those of which a Sequential has several of
    one class. Modules without modules in them are none."""
    inner = {name: child for name, child in model.named_children() if next(child.children(), None) is not None}
    several = Counter(type(child) for child in inner.values())
    for name, child in inner.items():
        here = f"{path}.{name}" if path else name
        within = list(blocks(child, here))
        repeated = type(model) in _LISTS or (isinstance(model, nn.Sequential) and several[type(child)] > 1)
        mere = type(child) in _LISTS or (type(child) is nn.Sequential and within)  # holds them, and is none
        if repeated and not mere:
            yield here
        else:
            yield from within


def in_both(small: nn.Module, model: nn.Module, patterns: Sequence[str] | None) -> dict[str, str]:
    """Name in the cut model → name in the whole one, of the modules whose outputs may be compared.

    The blocks of lists that are as long in both; of a list that lost some, only the last ones: what they return has
    been through all of their list. `patterns`: modules of the same name in both that these name, instead.
    """
    if patterns is not None:
        return _named(small, model, patterns)
    ours, theirs = _by_list(small), _by_list(model)
    found: dict[str, str] = {}
    for holder, names in ours.items():
        others = theirs.get(holder, [])
        if len(names) == len(others):
            found.update(zip(names, others, strict=True))
        elif others:
            found[names[-1]] = others[-1]
    return found


def _by_list(model: nn.Module) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in blocks(model):
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def _named(small: nn.Module, model: nn.Module, patterns: Sequence[str]) -> dict[str, str]:
    shared = [name for name, _ in small.named_modules() if name and name in dict(model.named_modules())]
    found: dict[str, str] = {}
    for pattern in patterns:
        matching = fnmatch.filter(shared, pattern)
        if not matching:
            raise InputError(f"hidden_at: no module of both models is called {pattern!r}{near(pattern, shared)}")
        found.update({name: name for name in matching})
    return found


class Heard:
    """What modules of a model returned last, by name; of several tensors the first."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._modules = {name: model.get_submodule(name) for name in names}
        self.outputs: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hooks are there within."""
        with contextlib.ExitStack() as hooks:
            for name, module in self._modules.items():
                hooks.callback(module.register_forward_hook(partial(self._hear, name)).remove)
            yield

    def _hear(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        first = next(tensors_in(output), None)
        if first is not None and first.is_floating_point():
            self.outputs[name] = first


def hidden_loss(
    pairs: Mapping[str, str], small: Mapping[str, Tensor], model: Mapping[str, Tensor], counted: Tensor | None
) -> tuple[Tensor | None, list[str]]:
    """The mean squared difference of what was heard in both, over the mean square of the whole model's, and of which
    modules: those of which both were heard, and the shapes agree. None where there is none. Where the whole model's is
    zero, there is nothing to be relative to, and it is left out.

    `counted`: which positions count (bool, the first dimensions of an output); None: all.
    """
    terms, names = [], []
    for ours, theirs in pairs.items():
        one, two = small.get(ours), model.get(theirs)
        if one is None or two is None or one.shape != two.shape:
            continue
        names.append(ours)
        dtype = torch.promote_types(one.dtype, torch.float32)
        one, two = one.to(dtype), two.to(one.device, dtype)
        if counted is not None and one.ndim > counted.ndim and one.shape[: counted.ndim] == counted.shape:
            one, two = one[counted], two[counted]
        square = two.square().mean()
        some = square > torch.finfo(dtype).tiny
        terms.append((one - two).square().mean() * torch.where(some, 1 / square.where(some, 1), 0))
    return (torch.stack(terms).mean() if terms else None), names


@contextlib.contextmanager
def computed_again(model: nn.Module) -> Iterator[None]:
    """Within, blocks keep only their inputs of a forward pass, and are run again in the backward pass.

    A model's own switch is used if it has one. Raises InputError where there is neither that nor a repeated block.
    Attributes that the switch sets are the caller's to put back.
    """
    if _switched(model):
        yield
        return
    names = list(blocks(model))
    if not names:
        raise InputError(
            f"gradient_checkpointing=True: this {type(model).__name__} has no list of blocks that could be run again, "
            "and no gradient_checkpointing_enable(); leave it out"
        )
    with contextlib.ExitStack() as undo:
        for name in names:
            module = model.get_submodule(name)
            own = "forward" in module.__dict__
            undo.callback(*(setattr, module, "forward", module.forward) if own else (delattr, module, "forward"))
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
        yield


def _switched(model: nn.Module) -> bool:
    """Whether the model's own switch is on now."""
    if not getattr(model, "supports_gradient_checkpointing", True):
        return False
    given = {"use_reentrant": False}
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        switch = getattr(model, f"{name}_enable", None)
        if callable(switch):
            switch(**{f"{name}_kwargs": given})
            return True
    return False
