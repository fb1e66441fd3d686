"""Models without values: what is on the meta device is traced as fake tensors, which know shape, type and device."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from fairkern.errors import InputError
from fairkern.model.nested import map_tensors


@contextlib.contextmanager
def faked(model: nn.Module, runs: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Inside, a model of meta tensors holds fake tensors on the CPU instead; yields `runs` as such.

    Code that knows of fake tensors (the masks of transformers) goes round questions about values. What the modules
    held is put back by `untouched`, within which this is entered. Models of values stay as they are; models of fake
    tensors find their mode switched on.

    Raises InputError when the model asks for a value or a size that depends on values.
    """
    held = [*model.parameters(), *model.buffers()]
    own = next((t.fake_mode for t in held if isinstance(t, FakeTensor)), None)
    if own is None and not any(t.is_meta for t in held):
        yield runs
        return
    mode = own or FakeTensorMode(allow_non_fake_inputs=True)
    if own is None:
        runs = _replace(model, runs, mode)
    try:
        with _unlogged(), mode:
            yield runs
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise InputError(
            f"this {type(model).__name__} asks for values ({error}), which tensors on the meta device do not have: "
            "trace it on real tensors"
        ) from error


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Without torch's log of operators that fail on fake tensors: code that tries one and then another goes on."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addFilter(_nothing)
    try:
        yield
    finally:
        log.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _replace(model: nn.Module, runs: Sequence[Any], mode: FakeTensorMode) -> Sequence[Any]:
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                like = nn.Parameter(like, requires_grad=tensor.requires_grad)
            made[id(tensor)] = like
        return made[id(tensor)]

    for module in model.modules():
        owned: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
        for held in owned:
            for name, tensor in held.items():
                if isinstance(tensor, Tensor):
                    held[name] = fake(tensor)
    return [map_tensors(run, fake) for run in runs]
