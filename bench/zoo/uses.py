"""What people do with a model besides calling it: train it, run its own workflow, prune it by its own batches.

Each is asked of the whole model first: what does not run there is no fault of the cut, and has no mark.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fairkern as fk
from bench.zoo.entry import Entry, squared
from fairkern.prove.inputs import distance

CLOSE = 1e-9  # of gradients with checkpointing to those without, in float64
COARSE = 1e-3  # in float32
WIDE = 1000  # units of a group; the default's order takes minutes for one of several thousand, whatever the model is


@dataclass(frozen=True)
class Uses:
    """ "yes", what went wrong, or "" where the whole model does not do it either, or it was not tried."""

    trains: str = ""  # a step in train mode
    checkpoints: str = ""  # the same gradients with checkpointing
    workflow: str = ""  # predict, generate with a cache, its own loss
    scored: str = ""  # by its own batches
    pruned: str = ""


def tried(entry: Entry, model: nn.Module, small: nn.Module, inputs: Any, widest: int) -> Uses:
    """All of them, on copies: `model` and `small`, what is left of it, stay as they are. `widest`: the most units that
    a group of it has."""
    keep = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    return Uses(
        trains=_both(partial(_gradients, entry), model, small, inputs),
        checkpoints=_both(partial(_checkpointed, entry), model, small, inputs),
        workflow="" if entry.use is None else _both(entry.use, model, small, inputs),
        **_by_own_batches(entry, keep, widest),
    )


def _by_own_batches(entry: Entry, keep: float, widest: int) -> dict[str, str]:
    """Scored and pruned as a user would: nothing said of units or classes, the model as it comes. Where it has a group
    above `WIDE`, without second moments."""
    torch.manual_seed(0)
    model, inputs = entry.load()
    batches, loss_fn = entry.batches(inputs)

    def score() -> None:
        fk.score(model, batches, loss_fn, class_of=False, progress=False)

    def prune() -> None:
        options: dict[str, Any] = {} if widest <= WIDE else {"compensate": "none", "gram": False}
        fk.prune(model, batches, loss_fn, keep_params=keep, progress=False, **options)

    return {"scored": _outcome(score), "pruned": _outcome(prune)}


def _outcome(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:  # a cell of the table
        first = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__}: {first[:120]}"
    return "yes"


def _both(use: Callable[[nn.Module, Any], Any], model: nn.Module, small: nn.Module, inputs: Any) -> str:
    """What comes of it on the cut model; "" where the whole one fails."""
    if _outcome(lambda: use(copy.deepcopy(model), inputs)) != "yes":
        return ""
    return _outcome(lambda: use(copy.deepcopy(small), inputs))


def _gradients(entry: Entry, model: nn.Module, inputs: Any, checkpointed: bool = False) -> dict[str, Tensor]:
    """Of every parameter, after one step in train mode with the random state of the seed."""
    model.train()
    if checkpointed and hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable()
        checkpointed = False
    elif checkpointed and hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing()
        checkpointed = False
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        if checkpointed:
            output = checkpoint(entry.learn, model, inputs, use_reentrant=False)
        else:
            output = entry.learn(model, inputs)
        squared(output).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _checkpointed(entry: Entry, model: nn.Module, inputs: Any) -> None:
    plain, again = _gradients(entry, copy.deepcopy(model), inputs), _gradients(entry, model, inputs, checkpointed=True)
    close = CLOSE if all(g.dtype == torch.float64 for g in plain.values()) else COARSE
    if plain.keys() != again.keys() or (apart := distance(plain, again)) > close:
        raise RuntimeError(f"gradients are {apart:.0e} apart with checkpointing")
