"""The calls that a model's own training loop makes: on a whole batch, and in train mode for its losses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from fairkern.errors import InputError
from fairkern.model.nested import TUPLES, Call, as_call, unclear
from fairkern.model.untouched import untouched


def call_of(model: nn.Module, inputs: Any) -> Call:
    """What `model` is called with, by `as_call`; a list of which that is not known is given to the model in both ways.

    Raises InputError where both run, or neither. Cost, of such a list: two forward passes; the model is left as it was.
    """
    call = as_call(model, inputs)
    if call is not None:
        return call
    ran: list[Call] = []
    failed: list[str] = []
    for attempt in ((inputs,), tuple(inputs)):
        try:
            with untouched(model), torch.no_grad():
                model.eval()
                model(*attempt)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the answer to the question
            failed.append(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}")
        else:
            ran.append(attempt)
    if len(ran) == 1:
        return ran[0]
    how = "both run" if ran else f"neither runs ({'; '.join(failed)})"
    raise InputError(f"{unclear(model, inputs)}, and {how}: {TUPLES}")


def handed_on(model: nn.Module, batch: Any) -> tuple[Any, ...] | None:
    """What `forward`, given a whole batch as its one argument, calls itself with: the images of a batch, the loss of
    whose prediction it returns. None where it does not call itself, or with keyword arguments.

    Cost: one forward pass in eval mode, without gradients; the model is left as it was.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    original = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return original(*args, **kwargs)

    with untouched(model), torch.no_grad():  # which takes the attribute away again
        model.eval()
        model.forward = forward
        model(batch)
    inner = calls[1:2]
    return inner[0][0] if inner and inner[0][0] and not inner[0][1] else None


@contextlib.contextmanager
def training_call(model: nn.Module) -> Iterator[None]:
    """Inside, `model` computes what it computes in train mode, but for normalisation, dropout and the like.

    Modules that call others are in train mode. Those that call none (norms, dropout, stochastic depth) and attention
    are in eval mode, and dropout by function drops nothing. Modes are put back.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = not isinstance(module, _AS_IN_EVAL) and next(module.children(), None) is not None
        model.training = True
        with _NoDropout():
            yield
    finally:
        for module, training in modes:
            module.training = training


_AS_IN_EVAL = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.RNNBase, nn.MultiheadAttention)
_DROPOUTS = frozenset(
    [
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
        torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout,
    ]
)  # fmt: skip


class _NoDropout(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            args, kwargs = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args, {**kwargs}
            if len(args) <= 4:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)
