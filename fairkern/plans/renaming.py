"""Modules of a list that a plan removes: which they are, and the names of those that stay, which move up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fairkern.plans.depth import removed_parts
from fairkern.types import Plan


@dataclass(frozen=True)
class CutList:
    """A list of modules of which a plan removes some."""

    path: str
    names: tuple[str, ...]
    stays: tuple[str, ...]

    @property
    def goes(self) -> tuple[str, ...]:
        """Names of those that the plan removes."""
        return tuple(name for name in self.names if name not in set(self.stays))

    def moved(self, name: str, back: bool) -> str | None:
        """The name of a module, tensor or group with the place of its entry after the cut (before it: `back`)."""
        prefix = f"{self.path}."
        entry, dot, rest = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix):
            return name
        former, later = (self.names[: len(self.stays)], self.stays) if back else (self.stays, self.names)
        if entry not in former:
            return name if back or entry not in self.names else None
        return f"{prefix}{later[former.index(entry)]}{dot}{rest}"


def cut_lists(plan: Plan) -> list[CutList]:
    """Lists that lose modules, outer ones first."""
    if not plan.lists:
        return []
    found = []
    for item in plan.axes:
        names = plan.lists.get(item.axis.tensor)
        if names is not None and item.removed.size:
            stays = np.delete(np.arange(len(names)), item.removed)
            found.append(CutList(item.axis.tensor, names, tuple(names[i] for i in stays)))
    return sorted(found, key=lambda cut: len(cut.path))


class Renaming:
    """Names of modules and tensors before and after a plan's cut."""

    def __init__(self, plan: Plan) -> None:
        self._lists = cut_lists(plan)
        self._gone = tuple(f"{part.module}." for part in removed_parts(plan))

    def after(self, name: str) -> str | None:
        """The name that something has in the cut model; None where it is gone."""
        moved: str | None = None if self._gone and name.startswith(self._gone) else name
        for cut in reversed(self._lists):  # inner ones first: their paths are those of before
            moved = None if moved is None else cut.moved(moved, back=False)
        return moved

    def before(self, name: str) -> str:
        """The name that something of the cut model had."""
        for cut in self._lists:
            name = cut.moved(name, back=True) or name
        return name
