"""What users hand over, looked at before anything is done with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fairkern import options, types
from fairkern.errors import InputError
from fairkern.model.tensors import held_tensors
from fairkern.prove import not_finite
from fairkern.surroundings import check_ordinary

RUN = "nothing can be computed with it; build the model on a real device, with its weights"


def check_model(model: object) -> None:
    given = options.instance("model", model, nn.Module, options.MODEL)
    if any(not is_lazy(tensor) and tensor.is_inference() for tensor in held_tensors(given)):
        check_ordinary((*given.named_parameters(), *given.named_buffers()))


def check_data(loader: object, loss_fn: object = None) -> None:
    options.iterable("loader", loader, "an iterable of batches, as a DataLoader or a list")
    if loss_fn is not None:
        options.function("loss_fn", loss_fn, "a function of output and targets, or None for the model's own loss")


def check_plan(plan: object) -> None:
    options.instance("plan", plan, types.Plan, options.PLAN)


def check_scores(scores: object) -> None:
    if scores is not None:
        options.instance("scores", scores, types.Scores, options.SCORES)


def check_more(more: Any) -> list[Any]:
    if isinstance(more, (Tensor, Mapping)):  # one for all, and no list of them
        raise InputError(f"more is a {type(more).__name__}; expected a list of example inputs: pass more=[…]")
    options.iterable("more", more, "a list of example inputs")
    return list(more)


def check_report(done: Any, plan: types.Plan) -> types.Report | None:
    """The report, if one is given and it is of the plan. Raises InputError."""
    if done is None:
        return None
    options.instance("report", done, types.Report, "a fairkern.Report (fk.prune, fk.summarise)")
    rows = [(row.get("group"), row.get("removed")) for row in done.groups]
    if rows != [(group.name, group.removed.size) for group in plan.groups]:
        raise InputError("report is of another plan: the units that it says went are others; pass that of this plan")
    return done


def check_device(given: Any) -> torch.device:
    """The device that is asked for, meta among them. Raises InputError for what is none, or cannot be used here."""
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device is {options.short(given)}; expected for example 'cpu' or 'cuda' ({error})") from None
    try:
        made = torch.zeros(1, dtype=torch.float32, device=device)
        if device.type != "meta":
            made.item()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each backend has its own for what is not there
        line = (str(error).strip().splitlines() or [""])[0][:300]
        raise InputError(
            f"device is {options.short(given)}, which cannot be used here ({type(error).__name__}: {line})"
        ) from None
    return device


def spoilt(model: nn.Module) -> str:
    """Which weights hold NaN or Inf; empty where none does."""
    names = not_finite(model)
    return f"{options.several(names)} {'holds' if len(names) == 1 else 'hold'} NaN or Inf" if names else ""


def main_reasons(units: types.UnitMap, most: int = 3) -> list[str]:
    """Why nothing can be cut: of groups that failed, else what holds most axis positions, modules left out."""
    if units.groups:
        return [f"{g.name}: {g.frozen}" for g in units.groups[:most]]
    held: Counter[str] = Counter()
    for frozen in units.frozen:
        held[re.sub(r" in (the model\b|[\w.]*\w)", "", frozen.reason)] += frozen.positions
    return [reason for reason, _ in held.most_common(most)]
