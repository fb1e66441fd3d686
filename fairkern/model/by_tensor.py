"""What is known of tensors, by identity, for as long as they live."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar, overload

from torch import Tensor
from torch.utils.weak import WeakIdRef

Value = TypeVar("Value")


class ByTensor(Generic[Value]):
    """A dictionary whose keys are tensors as objects, none of which it keeps alive.

    As torch's `WeakIdKeyDictionary`, with one look-up by number: an entry goes with its tensor, so that no other tensor
    meets it.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[WeakIdRef, Value]] = {}
        me = weakref.ref(self)  # no cycle, which would keep values alive

        def gone(reference: Any) -> None:
            owner = me()
            held = None if owner is None else owner._held.get(reference._id)
            if owner is not None and held is not None and held[0] is reference:
                del owner._held[reference._id]

        self._gone = gone

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._held

    @overload
    def get(self, tensor: Tensor) -> Value | None: ...
    @overload
    def get(self, tensor: Tensor, default: Value) -> Value: ...
    def get(self, tensor: Tensor, default: Value | None = None) -> Value | None:
        held = self._held.get(id(tensor))
        return default if held is None else held[1]

    def __setitem__(self, tensor: Tensor, value: Value) -> None:
        held = self._held.get(id(tensor))
        self._held[id(tensor)] = (WeakIdRef(tensor, self._gone) if held is None else held[0], value)

    def discard(self, tensor: Tensor) -> None:
        self._held.pop(id(tensor), None)

    def items(self) -> Iterator[tuple[Tensor, Value]]:
        """Those alive, in the order in which they were first put in."""
        for reference, value in list(self._held.values()):
            tensor = reference()
            if tensor is not None:
                yield tensor, value
