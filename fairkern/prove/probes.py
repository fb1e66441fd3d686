"""Which units each field of a configuration counts, found by building the model with one field changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from fairkern.compact.built import built_with
from fairkern.model.fields import configurations
from fairkern.model.tensors import named_tensors
from fairkern.types import Axis, ConfigChange, ConfigField, UnitMap

Shapes = Mapping[str, tuple[int, ...]]


def built_shapes(model: nn.Module, changes: Iterable[ConfigChange]) -> Shapes:
    """The shapes of a model like this one with another configuration; what the class raises passes through."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(built_with(model, changes)).items()}


def probed(model: nn.Module, units: UnitMap, guessed: Sequence[ConfigField]) -> list[ConfigField]:
    """The fields that count units of groups: those with which nothing but axes of these groups changes.

    A whole number is tried if the units of a group could be a multiple of it. One that changes no shape follows what is
    `guessed` by its name, and so does one that the configuration refuses alone. Others shorten all that they touch by
    their share, unless their name says what they count (one of several parts of a fused projection). Of two that
    shorten the same axes so (a width, and how many times it is taken) the one stays whose name says what it counts, or
    that counts more of them, since what both count would shrink twice.

    Cost: building the model without its numbers, once for every number that is tried.
    """
    of_axis: dict[Axis, list[int]] = {}
    for g in units.prunable:
        for held in units.groups[g].axes:
            of_axis.setdefault(held.axis, []).append(g)
    fixed = {field.name: field.size for field in guessed if field.fixed}  # what else would be derived from a number
    by_name = {field.name: field for field in guessed}
    found: list[tuple[ConfigField, frozenset[Axis]]] = []
    for prefix, config, _ in configurations(model):
        for name, size in vars(config).items():
            full = prefix + name
            if type(size) is not int or size < 2 or not (full in by_name or _divides(size, units)):
                continue
            changed = _changed(model, units, {**fixed, full: _less(size)})
            if not changed:
                if full in by_name:
                    found.append((by_name[full], frozenset()))
                continue
            groups = sorted({g for axis in changed for g in of_axis.get(axis, ())})
            whole = frozenset(axis for axis, (before, after) in changed.items() if after * size == before * _less(size))
            if all(axis in of_axis for axis in changed) and (full in by_name or len(whole) == len(changed)):
                found.append((ConfigField(full, size, size, tuple(groups)), whole))
    fields = [field for field, _ in found]
    fields += [replace(f, groups=_counted(f, fields)) for f in guessed if f.fixed or f.before is None]
    taken: set[Axis] = set()
    chosen = []
    for field, axes in sorted(found, key=lambda item: (item[0].name not in by_name, -len(item[1]))):
        if not taken & axes:
            chosen.append(field.name)
            taken |= axes
    return [f for f in fields if f.groups and (f.fixed or f.before is None or f.name in chosen)]


def _counted(field: ConfigField, fields: Sequence[ConfigField]) -> tuple[int, ...]:
    """Of the groups of a field that was not tried, those that none of the tried ones has, or all if it is fixed."""
    known = {g for other in fields for g in other.groups}
    return tuple(g for g in field.groups if (g in known) == field.fixed)


def _divides(size: int, units: UnitMap) -> bool:
    groups = (units.groups[g] for g in units.prunable)
    return any(group.total % size == 0 or group.units % size == 0 for group in groups)


def _less(size: int) -> int:
    """A smaller number, by a share that takes a whole number of units from all that is a multiple of it."""
    return size - size // next(q for q in range(2, size + 1) if size % q == 0)


def _changed(model: nn.Module, units: UnitMap, fields: Mapping[str, int]) -> dict[Axis, tuple[int, int]] | None:
    """The axes that have another length with these values, with their lengths; None where they are refused, or where
    tensors come or go."""
    try:
        shapes = built_shapes(model, [ConfigChange(name, None, value) for name, value in fields.items()])
    except Exception:  # fields that do not fit together, a class that is built otherwise: the field says nothing
        return None
    changed: dict[Axis, tuple[int, int]] = {}
    for tensor, before in units.shapes.items():
        after = shapes.get(tensor)
        if after is None or len(after) != len(before):
            return None
        changed |= {
            Axis(tensor, i): ends for i, ends in enumerate(zip(before, after, strict=True)) if ends[0] != ends[1]
        }
    return changed
