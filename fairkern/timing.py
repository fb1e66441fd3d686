"""Measured latency: of a model, of its layers at several widths, and of a plan against what was predicted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from typing_extensions import Unpack

from fairkern import allocate, artefacts, compact, report, types
from fairkern.allocate import Planning, PlanningOptions, refuse_unknown
from fairkern.errors import InputError
from fairkern.model.nested import map_tensors, tensors_in
from fairkern.model.sharded import processes_of
from fairkern.options import MODEL, SCORES, UNITS, instance, iterable, place, real, whole
from fairkern.options import seed as checked_seed
from fairkern.plans.build import build
from fairkern.plans.removals import nothing
from fairkern.ranks import RanksLike, measured
from fairkern.results import LatencyTable, PathLike, Plan, Scores
from fairkern.surroundings import ordinary, stage


@stage
@measured
def latency(model: nn.Module, example_inputs: Any, *, ranks: RanksLike = None) -> float:
    """Median milliseconds of a forward pass in eval mode on these inputs, after warming up.

    `ranks`: True, or a process group, where its first process measures, and all make this call; False: this one
    measures, whatever others do.
    """
    _check(model, example_inputs)
    return report.latency_ms(model, map_tensors(example_inputs, ordinary))


@stage
@measured
def compare_latency(
    model: nn.Module, small: nn.Module, example_inputs: Any, *, ranks: RanksLike = None
) -> dict[str, Any]:
    """How long a forward pass takes before and after a cut, in turn, with what a reader needs to believe it.

    What else runs on the machine slows down both of a pair of passes, so that `speedup` is told of pairs. `steady` says
    whether the 80th percentile of each model is at most `bound` times its 20th; where it is not, no one number is to be
    trusted, and reports give ranges. `ranks`: as for `latency`.

    Returns: what `summarise(timing=…)` takes: milliseconds of `before` and `after` and the `speedup`, each by
    percentile ("p20", "p50", "p80"), `passes`, `threads`, `device`, `inputs`, `steady` and `bound`.
    Cost: a second, or 26 passes of a slow model.
    """
    _check(model, example_inputs)
    _check(small, example_inputs, "small")
    return report.compared(model, small, map_tensors(example_inputs, ordinary))


@stage
@measured
def latency_table(
    model: nn.Module,
    units: types.UnitMap,
    example_inputs: Any,
    *,
    cache: PathLike | None = None,
    shares: Sequence[float] = (1.0, 0.75, 0.5, 0.25, 0.1),
    round_to: int | Mapping[str, int] = 1,
    seed: int = 0,
    ranks: RanksLike = None,
) -> LatencyTable:
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
        ranks: as for `latency`.

    Raises InputError (shares outside 0 … 1), ArtefactError (a cache that is damaged).
    Cost: twice as many cuts as shares, one for every group of branches, and for each about a second, or 24 passes of a
    slow model.
    """
    example_inputs = map_tensors(example_inputs, ordinary)
    _check(model, example_inputs)
    instance("units", units, types.UnitMap, UNITS)
    iterable("shares", shares, "numbers above 0, at most 1")
    shares = [real("shares", share, "numbers above 0, at most 1") for share in shares]
    round_to, seed = Planning(round_to=round_to).round_to, checked_seed(seed)
    key = {**_key(model, example_inputs), "shares": shares, "round_to": round_to, "seed": seed}
    cache = None if cache is None else place("cache", cache)
    if cache is not None and os.path.exists(cache):
        known = artefacts.load_latency(cache)
        if known.key == key and dict(known.shapes) == dict(units.shapes):
            return LatencyTable.of(known)
    in_place = _in_place(units)
    measured: list[tuple[list[types.IndexArray], report.Layers]] = []
    removals = [
        nothing(units),
        *allocate.widths(in_place, [share for share in shares if share != 1], round_to, seed),
        *_fewer_branches(in_place),
    ]
    for removed in removals:
        small = compact.apply(model, build(in_place, removed))
        layers = measured[0][1].layers if measured else None
        timed = report.layers_ms(small, model, example_inputs, layers)
        measured.append((removed, timed))
    uncut = float(np.median([timed.beside_ms for _, timed in measured]))
    table = allocate.fit(
        units,
        [name for name, _ in model.named_parameters()],
        [_cut(removed, timed, uncut / timed.beside_ms) for removed, timed in measured],
        key,
    )
    if cache is not None:
        artefacts.save_latency(table, cache)
    return LatencyTable.of(table)


@stage
@measured
def plan_latency(
    scores: Scores,
    model: nn.Module,
    example_inputs: Any,
    keep_latency: float,
    *,
    latency: types.LatencyTable | None = None,
    looks: int = 4,
    within: float = 0.03,
    ranks: RanksLike = None,
    **options: Unpack[PlanningOptions],
) -> Plan:
    """A plan for a share of the model's time, solved with a table and checked by timing the model that it leaves.

    The plan's cut model is timed in turn with the uncut one. Where the share is not within a few per cent of what the
    table predicts, the table is scaled to what was seen and the plan solved anew. Of several plans that one is
    taken which came closest to its prediction; `result["latency_looks"]` has what was predicted and measured of each.

    Args:
        scores: of `model`.
        model: uncompensated copies of it are cut and timed; it is left as it was.
        example_inputs: what is timed.
        keep_latency: at most this share of the whole model's time stays, by the table.
        latency: from `latency_table` on these inputs; measured here where none is given.
        looks: at how many plans to look at most; at least 1.
        within: relative difference of the shares that is good enough.
        ranks: as for `latency`.
        options: of `Scores.plan`.

    Raises what `Scores.plan` raises, and InputError for less than one look.
    Cost: a table, and for every look a cut and a second, or 26 passes of a slow model.
    """
    refuse_unknown("plan_latency()", options, PlanningOptions.__annotations__, ("latency", "looks", "within", "ranks"))
    instance("scores", scores, Scores, SCORES)
    _check(model, example_inputs)
    looks, within = whole("looks", looks, 1), real("within", within)
    example_inputs = map_tensors(example_inputs, ordinary)
    if latency is None:
        rounded = options.get("round_to", 1)
        latency = latency_table(model, scores.units, example_inputs, round_to=rounded, ranks=False)
    found: list[tuple[float, Plan]] = []
    seen: list[list[float]] = []
    while len(found) < looks:
        plan = scores.plan(keep_latency=keep_latency, latency=latency, **options)
        predicted = plan.result["latency_after_ms"] / plan.result["latency_before_ms"]
        small = compact.apply(model, plan)
        uncut, left = report.latencies_ms([model, small], example_inputs, report.UNDISTURBED)
        seen.append([predicted, left / uncut])
        found.append((abs(left / uncut / predicted - 1), plan))
        if found[-1][0] <= within:
            break
        counts = {group.name: group.removed.shape[-1] for group in plan.groups}
        removed = np.array([counts.get(group.name, 0) for group in scores.units.groups], dtype=np.int64)
        latency = allocate.corrected(scores.units, latency, removed, left / uncut)
    _, best = min(found, key=lambda item: item[0])
    return replace(best, result={**best.result, "latency_looks": seen})


def _check(model: object, example_inputs: Any, name: str = "model") -> None:
    given = instance(name, model, nn.Module, MODEL)
    if processes_of(given) > 1:  # of which each would make as many passes as it has time for
        raise InputError(f"this {type(given).__name__} lies in shards in several processes: time it before that")
    if next(iter(tensors_in(example_inputs)), None) is None:
        raise InputError(
            f"example inputs hold no tensor (got {type(example_inputs).__name__}); give what is to be timed"
        )


def _in_place(units: types.UnitMap) -> types.UnitMap:
    """The map without experts of a list, and in which blocks stay that lose all their branches: the layers of a cut
    model are told by name, and the rest would move up."""
    units = replace(units, blocks={})
    paths = units.lists.keys()
    listed = (g for g, group in enumerate(units.groups) if any(a.axis.tensor in paths for a in group.axes))
    return units.freeze(dict.fromkeys(listed, "is not timed"))


def _fewer_branches(units: types.UnitMap) -> Iterator[list[types.IndexArray]]:
    """Of every group of branches every other one, beside which nothing goes: what they take is not that of a layer."""
    for g in sorted(units.branched.intersection(units.prunable)):
        removed = nothing(units)
        removed[g] = np.arange(0, units.groups[g].units - units.groups[g].least, 2, dtype=np.int64)
        yield removed


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
