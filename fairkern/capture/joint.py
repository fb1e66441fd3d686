"""Moments of the same taps in two models at once: what consumers read before and after earlier layers were cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.capture.batches import Batch, batches
from fairkern.capture.moments import offsets
from fairkern.capture.points import Heard, Listener, Point, hidden_points, points_of
from fairkern.capture.rows import ListedExperts
from fairkern.errors import InputError
from fairkern.nested import call_model, tensors_in
from fairkern.replacements import in_place
from fairkern.types import JointMoments, UnitMap
from fairkern.untouched import untouched


def tap_order(model: nn.Module, loader: Iterable[Any], units: UnitMap) -> list[str]:
    """Names of the taps that consumers read, in the order in which a forward pass comes to them.

    Without those in experts, which read other tokens in another model.
    """
    listener = Listener(model, [*points_of(units, "input"), *hidden_points(units)], gradients=False)
    listed = ListedExperts(model, listener.points)
    listed.following = True
    with untouched(model), in_place(model), torch.no_grad(), listener.attached():
        model.eval()
        batch = next(inputs_of(loader, model), None)
        if batch is None:
            raise InputError("the loader yields no batch")
        with listener.hearing(), listed.followed():
            call_model(model, batch.inputs)
        return [point.name for point, act in listener.heard.items() if listed.rows(point, act) is None]


def joint_moments(
    model: nn.Module, changed: nn.Module, loader: Iterable[Any], units: UnitMap, taps: Sequence[str]
) -> dict[str, JointMoments]:
    """Sums over `loader` at these taps: `a` in `model`, `b` in `changed`, which has the same modules and positions.

    Forward only, and no further than the last of the taps. Both models are left as they were.
    Raises InputError (a loader that yields nothing, or that does not reach a tap).
    Cost: two forward passes up to the last tap, and 2 n² multiply-adds per vector.
    """
    points = [p for p in [*points_of(units, "input"), *hidden_points(units)] if p.name in set(taps)]
    per_unit = {p: offsets(p, units) for p in points}
    sums: dict[Point, list[Any]] = {}
    listeners = [Listener(m, points, gradients=False, stop=True) for m in (model, changed)]
    with untouched(model), untouched(changed), in_place(model), in_place(changed), torch.no_grad():
        model.eval()
        changed.eval()
        with listeners[0].attached(), listeners[1].attached():
            for batch in inputs_of(loader, model):
                for listener, net in zip(listeners, (model, changed), strict=True):
                    listener.reset(next(tensors_in(batch.inputs)).device)
                    _listen(listener, net, batch)
                for point in points:
                    a, b = (_vectors(point, lst.heard[point], per_unit[point]) for lst in listeners)
                    made = [a @ b.T, b @ b.T, a.sum(1), b.sum(1), a.shape[1]]
                    known = sums.get(point)
                    sums[point] = made if known is None else [x + y for x, y in zip(known, made, strict=True)]
    if not sums:
        raise InputError("the loader yields no batch; sequential compensation needs a loader to iterate again")
    return {point.name: _moments(found, per_unit[point]) for point, found in sums.items()}


def _moments(sums: Sequence[Any], per_unit: int) -> JointMoments:
    cross, gram, total, changed = (t.double().cpu().numpy() for t in sums[:4])
    return JointMoments(cross, gram, total, changed, sums[4], per_unit)


def _listen(listener: Listener, model: nn.Module, batch: Batch) -> None:
    try:
        with listener.hearing():
            call_model(model, batch.inputs)
    except Heard:
        return
    missing = listener.missing()
    if missing is not None:
        raise InputError(f"batch {batch.index} does not reach {missing.name}; use batches like those that were scored")


def _vectors(point: Point, act: Tensor, per_unit: int) -> Tensor:
    """[n, vectors] of the tap's positions; offsets of one channel give a vector each."""
    act = act.movedim(point.dim, 0)
    if per_unit > 1:
        act = act.unflatten(0, (len(act) // per_unit, per_unit))
    flat = act.reshape(len(act), -1)
    return flat if flat.dtype == torch.float64 else flat.float()


def inputs_of(loader: Iterable[Any], model: nn.Module) -> Iterator[Batch]:
    """The loader's batches; classes play no part."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return batches(loader, device, lambda raw: torch.zeros(len(next(tensors_in(raw))), dtype=torch.int64))
