"""Whether the model's configuration follows a cut: a model built from it has the shapes that are left."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from torch import nn

from fairkern.axes import config_fields
from fairkern.compact.descriptors import shapes_after
from fairkern.model.raised import in_words
from fairkern.plans.build import build
from fairkern.plans.removals import NONE, drawn
from fairkern.prove.admitted import together, with_admitted
from fairkern.prove.prepared import Prepared
from fairkern.prove.probes import Shapes, built_shapes, probed
from fairkern.prove.trial import failure
from fairkern.types import ConfigField, IndexArray, Passed, Plan, SiteNumber, UnitMap

_STEPS = 8  # by so many at most a share lies off what is best, to differ from others


def described(
    model: nn.Module,
    units: UnitMap,
    inputs: Any,
    seed: int,
    prepared: Callable[[], Prepared] | None = None,
    alone: Collection[SiteNumber] = (),
) -> UnitMap:
    """The map with the fields of the model's configuration that follow a cut.

    `prepared()`: the copy that a proof on these inputs with this seed used. `alone`: the size sites at which nothing
    was folded into the number.

    Shown by cutting every group of theirs by one share: a model built from the configuration has the shapes that are
    left and, with the numbers that are left, computes what the masked one does; so does the cut model still. Fields are
    those that names and sizes suggest; if these fail or do not count all groups, those that change the shapes of these
    groups and no others (`probes.py`); if those fail too, without heads. Size sites at which the code computes the
    number from the configuration are given the size outright, since it may be right by itself then. Of fields that
    follow it is then asked which values the configuration admits.
    """
    failed: list[tuple[list[ConfigField], str]] = []
    best = units
    for tried in _attempts(model, units):
        if len(_groups(tried)) <= len(_groups(best.config)):
            continue
        candidate, reason = _follows(model, replace(units, config=tuple(tried)), inputs, seed, prepared, alone)
        if reason is None:
            best = candidate
        else:
            failed.append((tried, reason))
        if _groups(best.config).issuperset(units.prunable):
            break
    if best.config:
        told = with_admitted(model.config, best.config, [group.units for group in units.groups])
        best = replace(best, config=told)
    return _noted(best, failed)


def _groups(fields: Iterable[ConfigField]) -> set[int]:
    return {g for field in fields for g in field.groups}


def _follows(
    model: nn.Module,
    candidate: UnitMap,
    inputs: Any,
    seed: int,
    prepared: Callable[[], Prepared] | None,
    alone: Collection[SiteNumber],
) -> tuple[UnitMap, str | None]:
    """Why these fields of the configuration do not follow a cut, None if they do; and the map with what that takes."""
    removed = even(candidate, candidate.config, seed)
    if all(not gone.size for gone in removed):
        return candidate, "no share of its groups is a whole number of units"
    plan = build(candidate, removed)
    reason = undescribed(model, plan, shapes_after(plan))
    if reason is not None:
        return candidate, reason
    ready = None if prepared is None else prepared()
    reason = failure(model, candidate, removed, inputs, seed=seed, prepared=ready, rebuild=True)
    if reason is not None and candidate.sites:
        numbers: dict[SiteNumber, Passed] = {}
        if failure(model, candidate, removed, inputs, seed=seed, prepared=ready, numbers=numbers) is None:
            candidate = _given_outright(candidate, numbers, alone)
            reason = failure(model, candidate, removed, inputs, seed=seed, prepared=ready, rebuild=True)
    return candidate, reason


def _noted(units: UnitMap, failed: Iterable[tuple[Sequence[ConfigField], str]]) -> UnitMap:
    """The map with a note for every attempt that had fields which do not follow."""
    follow = {field.name for field in units.config}
    told: dict[frozenset[str], str] = {}
    for tried, reason in failed:
        if not follow.issuperset(names := frozenset(field.name for field in tried)):
            listed = ", ".join(field.name for field in tried)
            told.setdefault(names, f"the configuration ({listed}) does not describe a pruned model: {reason}")
    return replace(units, notes=(*units.notes, *told.values()))


def _attempts(model: nn.Module, units: UnitMap) -> Iterator[list[ConfigField]]:
    fields = config_fields(model, units.groups)
    if not fields:
        return
    yield fields
    better = probed(model, units, fields)
    if set(better) != set(fields):
        yield better
    for tried in (better, fields):
        inner = [f for f in tried if all(units.groups[g].kind != "head" for g in f.groups)]
        if inner and len(inner) < len(tried):
            yield inner


def even(units: UnitMap, fields: Sequence[ConfigField], seed: int) -> list[IndexArray]:
    """About half of the groups of these fields: the same share of those that share one, and another of the others,
    since a field that counted theirs would not show else."""
    removed, generator = [NONE] * len(units.groups), np.random.default_rng(seed)
    taken: set[Fraction] = set()
    for tied in together(fields):
        groups = [units.groups[g] for g in sorted({g for f in tied for g in f.groups})]
        base = math.gcd(*(group.units for group in groups), *(f.size for f in tied if not f.fixed))
        spare = min((Fraction(group.units - group.least, group.units) for group in groups), default=Fraction(0))
        most = min(base // 2, int(spare * base))
        steps = [n for n in range(max(most - _STEPS, 1), min(most + _STEPS, base - 1) + 1) if n <= spare * base]
        shares = [Fraction(n, base) for n in sorted(steps, key=lambda n: abs(n - most))]
        for share in [*(s for s in shares if s not in taken), *shares][:1]:
            taken.add(share)
            for g in sorted({g for f in tied for g in f.groups}):
                removed[g] = drawn(units.groups[g], int(units.groups[g].units * share), generator)
    return removed


def _given_outright(units: UnitMap, numbers: Mapping[SiteNumber, Passed], alone: Collection[SiteNumber]) -> UnitMap:
    """The map with size sites given outright where the right number came by itself, and nothing is folded into it."""
    right = {number for number, passed in numbers.items() if passed is Passed.RIGHT and number in alone}
    return replace(units, sites=tuple(replace(s, outright=s.outright or s.number in right) for s in units.sites))


def undescribed(model: nn.Module, plan: Plan, shapes: Shapes) -> str | None:
    """Why a model built from the changed configuration, on the meta device, does not have these shapes; None if it has.

    Cost: building the model without its numbers.
    """
    try:
        found = built_shapes(model, plan.config)
    except Exception as error:  # fields that cannot be set or do not fit together, a class that is built otherwise
        return in_words(error, model, 120)
    for name, shape in shapes.items():
        if name not in found or found[name] != shape:
            return f"{name} would have the shape {found.get(name)}, not {shape}"
    return None
