"""How the states that a recurrent layer's own weights read are heard: no call of a module shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.capture.points import Point
from fairkern.model.recurrent import hidden_states
from fairkern.types import CallSite, Side


class StateReader:
    """Reads the states at those of `points` that lie within recurrent layers, call by call.

    `hear` is given them and says whether the weights that read them may have been changed by it.
    """

    def __init__(self, points: Iterable[Point], hear: Callable[[Point, Tensor], bool]) -> None:
        self._points = {p.name: p for p in points if p.side is Side.HIDDEN}
        self._hear = hear

    @property
    def paths(self) -> list[str]:
        """The layers, once each."""
        return list(dict.fromkeys(p.sites[0].module for p in self._points.values()))

    def heard(
        self, site: CallSite, module: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Hears all states of one call, in order. Returns its output, by the weights that it has then."""
        states = hidden_states(module, args, kwargs, output)
        for name in states:
            point = self._points.get(f"{site}:{name}")
            if point is not None and self._hear(point, states[name]):
                with torch._C.DisableTorchFunction():
                    output = module.forward(*args, **kwargs)
                states = hidden_states(module, args, kwargs, output)
        return output
