"""A configuration as its file has it, set to what a plan leaves: no package of models is needed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fairkern.errors import PlanMismatchError
from fairkern.plans.renaming import cut_lists
from fairkern.types import Plan

_CONFIG = "config"  # the attribute of a model that holds it


def config_after(config: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The entries of config.json once the plan has been applied.

    A plan that says how files hold the model says what the entries are called, too; else they are called as the fields
    of the outermost module's configuration.

    Raises PlanMismatchError where an entry is not what the plan expects: it was made for another model.
    """
    after = copy.deepcopy(dict(config))
    if plan.files is not None:
        for entry, (before, now) in plan.files.config.items():
            _set(after, entry, before, now)
        return after
    for change in plan.config:
        _set(after, change.name, change.before, change.after)
    for number in plan.attributes:
        name = _within_config(number.module, number.attribute)
        if name is not None:
            _set(after, name, number.before, number.after)
    stays = {cut.path: [cut.names.index(name) for name in cut.stays] for cut in cut_lists(plan)}
    for rows in plan.rows:
        name = _within_config(rows.module, rows.attribute)
        owner, last = _owner(after, name) if name is not None else (after, "")
        held = owner.get(last)
        if name is None or held is None:
            continue
        if not isinstance(held, list) or len(held) != rows.rows:
            raise PlanMismatchError(f"{name} of config.json is {held!r}, the plan expects {rows.rows} entries")
        owner[last] = [held[k] for k in stays[rows.list]]
    return after


def _within_config(module: str, attribute: str) -> str | None:
    """The entry of the outermost module's configuration that an attribute is; None for another attribute."""
    first, _, name = attribute.partition(".")
    return name if not module and first == _CONFIG and name else None


def _set(config: dict[str, Any], name: str, before: Any, after: Any) -> None:
    owner, last = _owner(config, name)
    found = owner.get(last)
    if found is not None and found != before:
        raise PlanMismatchError(
            f"{name} of config.json is {found!r}, the plan expects {before}: it was made for another model"
        )
    owner[last] = after


def _owner(config: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The object that holds an entry by its dotted name, and its last part."""
    *path, last = name.split(".")
    for part in path:
        config = config.setdefault(part, {})
    return config, last
