"""Calls of torch functions that are given a weight and an activation: `F.linear(x, layer.weight * 0.1)`, `x @ table`.

A weight that no module of its own applies can be heard where it is used: at the function call. A call is known by
the weight's name and by how many such calls were given it before, so that trace and capture count alike.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fairkern.model.by_tensor import ByTensor
from fairkern.model.nested import map_tensors, tensors_in
from fairkern.model.sharded import is_sharded
from fairkern.model.tensors import memory_of


@dataclass(frozen=True, eq=False)
class WeightCall:
    """One function call: `numbers` maps each weight given to how many calls were given it before."""

    numbers: Mapping[str, int]
    given: Sequence[Tensor]  # every tensor argument, nested ones too, in order


class WeightCalls(TorchFunctionMode):
    """Shows each such call, in order, to `around(call, run)`, which returns what the function shall return.

    `run(replacements)` calls the function with some tensor arguments (by their place in `call.given`) replaced.
    What is computed from weights and numbers alone is given by the names of those weights.
    What composite functions written in Python call in turn is not seen. Inside `around` no call is seen.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        around: Callable[[WeightCall, Callable[[Mapping[int, Tensor]], Any]], Any],
        model: nn.Module | None = None,
    ) -> None:
        """`model`: that of the tensors, where they may lie in shards, since a pass has others in their places."""
        super().__init__()
        self._around = around
        self._numbers: dict[str, int] = {}
        owners: dict[int, dict[int, str]] = {}
        for name, tensor in tensors.items():
            memory = memory_of(tensor)
            if memory is not None:
                owners.setdefault(memory, {}).setdefault(int(tensor.storage_offset()), name)
        self._owners = {memory: sorted(at.items()) for memory, at in owners.items()}
        self._computed: ByTensor[tuple[str, ...]] = ByTensor()  # from weights: their names
        self._places: list[tuple[nn.Module, str, str]] = []
        if model is not None:
            for name in (name for name, tensor in tensors.items() if is_sharded(tensor)):
                path, _, last = name.rpartition(".")
                self._places.append((model.get_submodule(path), last, name))

    def _names(self, tensor: Tensor) -> tuple[str, ...]:
        """The weight that this tensor is, or is a view of; those that it was computed from; empty for an activation."""
        memory = memory_of(tensor)
        owners = None if memory is None else self._owners.get(memory)
        if owners is None:
            found = next((name for module, last, name in self._places if module._parameters[last] is tensor), None)
            return self._computed.get(tensor, ()) if found is None else (found,)
        place = bisect_right(owners, tensor.storage_offset(), key=lambda item: item[0])
        return (owners[max(place - 1, 0)][1],)

    def _keep(self, result: Any, names: tuple[str, ...]) -> None:
        """Remember what was computed from these weights alone."""
        for tensor in tensors_in(result):
            if not self._names(tensor):
                self._computed[tensor] = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(tensors_in([args, kwargs]))
        owners = [self._names(tensor) for tensor in given]
        if not any(owners):
            return func(*args, **kwargs)
        weights = dict.fromkeys(name for names in owners for name in names)
        if all(names or tensor.dim() == 0 for names, tensor in zip(owners, given, strict=True)):
            result = func(*args, **kwargs)
            self._keep(result, tuple(weights))
            return result
        numbers = {name: self._numbers.get(name, 0) for name in weights}
        for name, number in numbers.items():
            self._numbers[name] = number + 1

        def run(replacements: Mapping[int, Tensor]) -> Any:
            if not replacements:
                return func(*args, **kwargs)
            places = iter(range(len(given)))
            new_args, new_kwargs = map_tensors([args, kwargs], lambda t: replacements.get(next(places), t))
            return func(*new_args, **new_kwargs)

        return self._around(WeightCall(numbers, given), run)
