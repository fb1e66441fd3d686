"""A proof without a copy of the whole: a smaller model of the same class is proven, and speaks for the model."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fairkern import axes
from fairkern.axes import Solution, config_fields
from fairkern.compact.built import built_with
from fairkern.compact.config import set_config
from fairkern.compact.descriptors import shapes_after
from fairkern.deadline import Deadline
from fairkern.errors import TimeLimitError
from fairkern.model.nested import tensors_in
from fairkern.model.process import seed_torch
from fairkern.model.raised import in_words
from fairkern.model.tensors import device_of, named_tensors
from fairkern.model.untouched import valueless
from fairkern.plans.build import build
from fairkern.prove.admitted import with_admitted
from fairkern.prove.alike import Alike, NoSibling, aligned
from fairkern.prove.branches import without_branches
from fairkern.prove.carried import NO_TWIN, OF_SIBLING, Twins, same_operators
from fairkern.prove.description import even, undescribed
from fairkern.prove.shrinking import shrunk
from fairkern.prove.sizes import whole_bytes
from fairkern.prove.strategy import proven
from fairkern.prove.trial import unheard
from fairkern.types import ConfigChange, ConfigField, UnitMap


def proven_by_sibling(
    model: nn.Module,
    certain: Solution,
    daring: Solution | None,
    runs: Sequence[Any],
    seed: int,
    deadline: Deadline,
    unused: Collection[str] = (),
    depth: bool = False,
    most: int | None = None,
) -> UnitMap:
    """The map of a model as a smaller model of its class was proven: what `proven` gives, without a copy of the model.

    The sibling is what the class builds from a smaller configuration (`shrinking.py`), traced and proven whole, with
    its caches and loops. What is frozen there and why, sizes that attributes and code pass on, blocks that move up and
    fields of the configuration are carried over by name, with block numbers left open (`carried.py`). Of the model
    itself it is shown that its code calls the same operators module by module, and that one built from its own
    configuration has the shapes that are left; the values that this admits are asked of its own.

    `most`: bytes that the sibling's proof may take. Raises NoSibling where there is none that speaks for it, and what a
    proof of the sibling raises.
    """
    if any(valueless(t) for inputs in runs for t in tensors_in(inputs)):
        raise NoSibling("the example inputs have no values")
    said: NoSibling | None = None
    for sizes in (True, False):  # code may go by sizes; by how many blocks there are it seldom does
        changes, given = shrunk(model, runs, deadline, sizes)
        if not changes:
            raise said or NoSibling("no smaller configuration is accepted")
        try:
            return _spoken_for(model, certain, daring, given, seed, deadline, unused, depth, changes, most)
        except NoSibling as why:
            said = said or why
    assert said is not None
    raise said


def _spoken_for(
    model: nn.Module,
    certain: Solution,
    daring: Solution | None,
    runs: Sequence[Any],
    seed: int,
    deadline: Deadline,
    unused: Collection[str],
    depth: bool,
    changes: Sequence[ConfigChange],
    most: int | None,
) -> UnitMap:
    """The map as the model with these changes was proven."""
    empty = built_with(model, changes).eval()
    if most is not None and (taken := whole_bytes(empty)) > most:
        raise NoSibling(f"the smallest that was found would take {taken:,} bytes")
    small = _made(model, changes, seed)
    alike = aligned(model, small)
    left_out = sorted({alike.name(name) for name in axes.named_unused(model, unused)})
    try:
        its, its_daring = axes.solutions(small, runs, deadline, True, left_out, depth)
    except (MemoryError, torch.OutOfMemoryError, TimeLimitError):
        raise
    except Exception as error:  # whatever its code raises on smaller tensors
        raise NoSibling(f"a smaller one does not run ({in_words(error, small, 80)})") from error
    like = its
    if any(valueless(t) for t in named_tensors(model).values()):
        # without values code may go another way than with them: what is compared has none either
        like, _ = axes.solutions(empty, runs, deadline, True, left_out, depth)
    same_operators(certain.operators, like.operators, alike)
    verdict = proven(small, its, its_daring, runs, seed, deadline)
    silent = {g for g in unheard(small, verdict, runs, seed=seed) if not _of_experts(verdict, g)}
    verdict = verdict.freeze(dict.fromkeys(silent, "no result depends on it, so that nothing was shown"))
    chosen, there = certain, its
    if its_daring is not None and verdict.extents is its_daring.units.extents:  # it is what became of that map
        if daring is None:
            raise NoSibling("more can be cut from it than from the model")
        chosen, there = daring, its_daring
    units = _carried(model, chosen, there, verdict, alike)
    units = _with_config(model, units, verdict, Twins(units, there.units, alike), seed)
    return replace(units, sibling=tuple(change for change in changes if type(change.after) is int))


def _of_experts(units: UnitMap, g: int) -> bool:
    """Whether a group lies in experts, which need not be given any token."""
    lists = tuple(f"{path}." for path in units.lists)
    group = units.groups[g]
    listed = any(a.axis.tensor.startswith(lists) for a in group.axes)
    return listed or any(tap.side.of_experts for tap in group.taps)


def _carried(model: nn.Module, mine: Solution, its: Solution, verdict: UnitMap, alike: Alike) -> UnitMap:
    twins = Twins(mine.units, its.units, alike)
    candidates = (*mine.units.attributes, *mine.compared, *mine.filled)
    attributes, lost = twins.attributes(model, candidates, verdict)
    sites, unsited = twins.sites(model, mine.sites, verdict)
    blocks, unlisted = twins.blocks(verdict)
    without = dict.fromkeys(sorted(lost | unsited | unlisted), NO_TWIN)
    return replace(
        mine.units.freeze({**without, **twins.reasons(verdict)}),
        attributes=attributes,
        sites=sites,
        blocks=blocks,
        notes=(*mine.units.notes, *(f"{OF_SIBLING}: {note}" for note in verdict.notes if note not in its.units.notes)),
        proven=True,
    )


def _made(model: nn.Module, changes: Sequence[ConfigChange], seed: int) -> nn.Module:
    """The sibling with random weights, where the model lies (without values: on the CPU), in its own dtypes."""
    config = copy.deepcopy(model.config)
    set_config(config, changes)
    device = device_of(model)
    with torch.random.fork_rng([]), torch.device("cpu"):
        seed_torch(seed)
        small = type(model)(config)
    alike, own = aligned(model, small), named_tensors(model)
    dtypes = {alike.name(name): tensor.dtype for name, tensor in own.items()}
    for name, tensor in named_tensors(small).items():
        if tensor.is_floating_point() and tensor.dtype != dtypes.get(name, tensor.dtype):
            tensor.data = tensor.data.to(dtypes[name])
    if hasattr(model, "generation_config"):
        vars(small)["generation_config"] = model.generation_config
    return small.to("cpu" if device.type == "meta" else device).eval()


def _with_config(model: nn.Module, units: UnitMap, verdict: UnitMap, twins: Twins, seed: int) -> UnitMap:
    """The map with the fields of the configuration that the sibling's proof found to follow."""
    guessed = {f.name: f for f in config_fields(model, without_branches(units).groups)}
    fields: list[ConfigField] = []
    for its in verdict.config:
        owner = model.config
        for part in its.name.split(".")[:-1]:
            owner = getattr(owner, part)
        before = vars(owner).get(its.name.rpartition(".")[2])
        size = before if type(before) is int else guessed[its.name].size if its.name in guessed else None
        groups = tuple(sorted(g for g in twins.groups_of(its.groups) if units.groups[g].frozen is None))
        if size is not None and groups:
            fields.append(replace(its, before=before, size=size, groups=groups, admitted=None))
    if not fields:
        return units
    candidate = replace(units, config=tuple(fields))
    plan = build(candidate, even(candidate, fields, seed))
    reason = undescribed(model, plan, shapes_after(plan))
    if reason is not None:
        listed = ", ".join(f.name for f in fields)
        note = f"the configuration ({listed}) does not describe a pruned model: {reason}"
        return replace(units, notes=(*units.notes, note))
    return replace(units, config=with_admitted(model.config, fields, [group.units for group in units.groups]))
