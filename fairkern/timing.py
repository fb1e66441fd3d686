"""Measured latency: of a model, of its layers at several widths, and of a plan against what was predicted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fairkern import allocate, artefacts, compact, report, types
from fairkern.nested import tensors_in

PathLike = str | os.PathLike[str]


def latency(model: nn.Module, example_inputs: Any) -> float:
    """Median milliseconds of a forward pass in eval mode on these inputs, after warming up."""
    return report.latency_ms(model, example_inputs)


def latency_table(
    model: nn.Module,
    units: types.UnitMap,
    example_inputs: Any,
    *,
    cache: PathLike | None = None,
    shares: Sequence[float] = (1.0, 0.75, 0.5, 0.25, 0.1),
    round_to: int = 1,
    seed: int = 0,
) -> types.LatencyTable:
    """Milliseconds of every layer by how much of it is left, measured here: what `plan(keep_latency=…)` is solved with.

    The model is cut at random to every share, and as often again with another share for every group, so that a
    layer's inputs and outputs are told apart. Each cut is timed, whole and layer by layer, in turn with the uncut
    model. A layer's time is then fitted as a sum of terms (`fairkern.types.LatencyTable`).

    Args:
        model: the model that `units` was traced from; left as it was.
        units: from `trace`.
        example_inputs: what to time a forward pass on, as for `trace`; batch size and shapes are part of the answer.
        cache: a JSON file to read the table from, if it was measured on this device, with this model, these inputs,
            shares and rounding, and this torch; else it is measured and written there.
        shares: of the units of every group that stay.
        round_to: what stays in a group that is cut is a multiple of it, as in the plans that the table is for.
        seed: of the units that go.

    Raises InputError (shares outside 0 … 1), ArtefactError (a cache that is damaged).
    Cost: twice as many cuts as shares, and for each about a second, or 24 passes of a slow model.
    """
    key = {**_key(model, example_inputs), "shares": list(shares), "round_to": round_to, "seed": seed}
    if cache is not None and os.path.exists(cache):
        known = artefacts.load_latency(cache)
        if known.key == key and dict(known.shapes) == dict(units.shapes):
            return known
    measured: list[tuple[list[types.IndexArray], report.Layers]] = []
    removals = [
        [np.zeros(0, dtype=np.int64)] * len(units.groups),
        *allocate.widths(units, [share for share in shares if share != 1], round_to, seed),
    ]
    for removed in removals:
        small = compact.apply(model, allocate.build(units, removed))
        layers = measured[0][1].layers if measured else None
        timed = report.layers_ms(small, model, example_inputs, layers)
        measured.append((removed, timed))
    whole = float(np.median([timed.beside_ms for _, timed in measured]))
    table = allocate.fit(
        units,
        [name for name, _ in model.named_parameters()],
        [_cut(removed, timed, whole / timed.beside_ms) for removed, timed in measured],
        key,
    )
    if cache is not None:
        artefacts.save_latency(table, cache)
    return table


def correct_latency(
    table: types.LatencyTable,
    model: nn.Module,
    units: types.UnitMap,
    plan: types.Plan,
    example_inputs: Any,
) -> types.LatencyTable:
    """The table after a look at one plan: scaled so that it predicts the time that this plan's cut model takes.

    The model is cut (a copy) and timed in turn with the uncut one. Plans close to this one, such as those of the same
    budget solved anew, are then predicted from a measured neighbour.

    Cost: a cut, and a second or 26 passes.
    """
    before, after = report.latencies_ms([model, compact.apply(model, plan)], example_inputs)
    removed = {group.name: group.removed.shape[-1] for group in plan.groups}
    counts = np.array([removed.get(group.name, 0) for group in units.groups], dtype=np.int64)
    return allocate.corrected(units, table, counts, after / before)


def _cut(removed: Sequence[types.IndexArray], timed: report.Layers, by: float) -> types.LatencyCut:
    """A measured cut, in the milliseconds of a machine on which the uncut model takes what it takes on the median."""
    return types.LatencyCut(
        np.array([len(units.T) for units in removed], dtype=np.int64),
        timed.ms * by,
        {path: ms * by for path, ms in timed.layers.items()},
        timed.outputs,
    )


def _key(model: nn.Module, example_inputs: Any) -> dict[str, Any]:
    """Where and on what latency is measured."""
    return {
        **report.device(model),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "model": type(model).__name__,
        "inputs": [[str(t.dtype), *t.shape] for t in tensors_in(example_inputs)],
    }
