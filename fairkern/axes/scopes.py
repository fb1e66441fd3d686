"""Whose code sees what: positions that pass through a module's own code, and who calls a module or reads a tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from fairkern.axes.dims import Track


class Scopes:
    """What was seen in the code of each module, the modules that it calls left out; in eval and in train mode.

    A module is known by its path, code by that of the module whose forward pass it is part of.
    """

    def __init__(self) -> None:
        self._seen: dict[str, dict[int, Track]] = defaultdict(dict)  # by id: the same track comes often
        self._users: dict[str, set[str]] = defaultdict(set)

    def saw(self, code: str, tracks: Iterable[Track]) -> None:
        """Tensors passed through this code: an operator took or made them, or a module that it calls."""
        seen = self._seen[code]
        for track in tracks:
            seen[id(track)] = track

    def uses(self, code: str, name: str) -> None:
        """This code called the module, or read the parameter or buffer, of this name."""
        self._users[name].add(code)

    def streams(self, code: str) -> list[np.ndarray]:
        """The tracked dimensions of all tensors that passed through this code."""
        tracks = self._seen[code].values() if code in self._seen else ()
        return list({id(dim): dim for track in tracks for dim in track.dims if isinstance(dim, np.ndarray)}.values())

    def touched(self, path: str) -> bool:
        """Whether any code used the module at `path` or anything in it."""
        return not path or any(name == path or name.startswith(f"{path}.") for name in self._users)

    def called(self, path: str) -> bool:
        """Whether this module's forward pass ran. That of the model did."""
        return not path or path in self._users

    def users(self, path: str) -> set[str]:
        """Whose code, outside the module at `path`, used it or anything in it."""
        inside = f"{path}." if path else ""
        found = (codes for name, codes in self._users.items() if name == path or name.startswith(inside))
        return {code for codes in found for code in codes if code != path and not code.startswith(inside)}
