"""Which values a configuration admits: found by setting its fields and asking its own validators."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from fairkern.compact.config import config_value, set_config
from fairkern.types import ConfigChange, ConfigField

_ALL = 64  # so many values are asked one by one; of more, first a few of every kind


def with_admitted(config: Any, fields: Sequence[ConfigField], units: Sequence[int]) -> tuple[ConfigField, ...]:
    """The fields with the values that the configuration admits, where it refuses any.

    Fields that count the same groups (query heads and key heads) are set together, to the same share of what they are;
    those that do not change with their groups (the size of a head) are set as well. `units`: of the map's groups.

    Asked is what would be asked where the configuration is written and read again: its `validate()`, as transformers
    has it, and what a configuration raises that is made from what it writes (`from_dict(to_dict())`). A configuration
    with neither admits what can be set. Cost: a copy and a validation per value, tenths of a millisecond.
    """
    found = {}
    for members in together(fields):
        counting = [f for f in members if not f.fixed]
        if not counting:
            continue
        grain = math.gcd(*(f.size for f in counting), *(units[g] for f in counting for g in f.groups))
        kept = _kept(config, members, grain)
        for f in counting:
            if kept is not None:
                found[f.name] = tuple(f.size // grain * k for k in kept)
    return tuple(replace(f, admitted=found.get(f.name)) for f in fields)


def _kept(config: Any, fields: Sequence[ConfigField], grain: int) -> list[int] | None:
    """Of 1 … `grain` parts those that the configuration admits to be left; None where it admits all."""
    rebuilds = _refused(config, (), rebuild=True) is None  # else nothing is told by what cannot be built as it is

    def admits(k: int) -> bool:
        changes = [ConfigChange(f.name, f.before, f.size if f.fixed else f.size // grain * k) for f in fields]
        return _refused(config, changes, rebuild=rebuilds) is None

    if grain > _ALL:
        few = {grain - 1, grain - 2, grain - 3, grain // 2, grain // 2 - 1, grain // 3, 7, 5, 3, 2, 1}
        if all(admits(k) for k in sorted(few)):
            return None
    kept = [k for k in range(1, grain + 1) if admits(k)]
    return None if len(kept) == grain else kept


def _refused(config: Any, changes: Iterable[ConfigChange], rebuild: bool) -> Exception | None:
    """What the configuration raises with these values, or what is not as it was set once it is read again."""
    changes = tuple(changes)
    try:
        tried = copy.deepcopy(config)
        set_config(tried, changes)
        for owner in _owners(tried, changes):
            validate = getattr(owner, "validate", None)
            if callable(validate):
                validate()
        if rebuild and callable(getattr(type(tried), "from_dict", None)):
            again = type(tried).from_dict(tried.to_dict())
            for change in changes:
                if config_value(again, change) != change.after:
                    return ValueError(f"{change.name} is another one once it is read again")
    except Exception as error:  # whatever a validator raises says no
        return error
    return None


def _owners(config: Any, changes: Sequence[ConfigChange]) -> list[Any]:
    """The configuration and those within it that have one of the fields."""
    owners = {"": config}
    for change in changes:
        path = change.name.rpartition(".")[0]
        owner = config
        for part in path.split(".") if path else ():
            owner = getattr(owner, part)
        owners[path] = owner
    return list(owners.values())


def together(fields: Sequence[ConfigField]) -> list[list[ConfigField]]:
    """Fields by the groups that they share, with any."""
    found: list[tuple[set[int], list[ConfigField]]] = []
    for f in fields:
        mine = set(f.groups)
        touching = [item for item in found if item[0] & mine]
        found = [item for item in found if item not in touching]
        found.append((mine.union(*(item[0] for item in touching)), [*(x for item in touching for x in item[1]), f]))
    return [members for _, members in found]
