"""Which tensor is what while a model runs: tracks by identity, and what gets past the dispatcher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from fairkern.axes.dims import Dim, Track
from fairkern.axes.graph import Graph
from fairkern.model.by_tensor import ByTensor
from fairkern.model.nested import elements, tensors_in
from fairkern.model.tensors import memory_of

unseen = torch._C.DisableTorchFunction  # what our own code asks of a tensor inside is no call of the model's
_DATA: Any = Tensor.data
_TAKEN = (Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.__dlpack__)


class Tracks:
    """The track of every live tensor; holds no tensor alive."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._by_tensor: ByTensor[Track] = ByTensor()
        self._still: ByTensor[bool] = ByTensor()
        self._by_memory: dict[int, tuple[StorageWeakRef, Track]] = {}  # the weak reference keeps the key unique
        self._filled: ByTensor[list[Dim]] = ByTensor()
        self._picked: ByTensor[bool] = ByTensor()

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._by_tensor

    def put(self, tensor: Tensor, track: Track) -> None:
        self._by_tensor[tensor] = track
        dims = self._filled.get(tensor) if self._filled else None
        if dims is not None and len(dims) == len(track.dims):
            dims[:] = [old if isinstance(old, np.ndarray) else new for old, new in zip(dims, track.dims, strict=True)]
        if track.tracked and memory_of(tensor) is not None:
            storage = tensor.untyped_storage()
            known = self._by_memory.get(storage._cdata)
            self._by_memory[storage._cdata] = (known[0] if known else StorageWeakRef(storage), track)

    def of(self, tensor: Tensor) -> Track:
        """A tensor never seen is constant; on the memory of one that was tracked, that one is frozen."""
        track = self._by_tensor.get(tensor)
        if track is None or track.sizes != tensor.shape:
            memory = memory_of(tensor)
            if memory is not None:
                known = self._by_memory.get(memory)
                if known is not None and not known[0].expired():
                    self._freeze(known[1], "is seen again in a tensor that no operator made")
            track = Track.constant(tensor.shape)
            self.put(tensor, track)
        return track

    def known(self, tensor: Tensor) -> Track | None:
        """The track of a tensor as it was last seen; None if it never was."""
        return self._by_tensor.get(tensor)

    def watch(self, tensor: Tensor) -> list[Dim]:
        """The dimensions of a filled tensor: the list tells what is written into it later."""
        dims: list[Dim] = list(self.of(tensor).dims)
        self._filled[tensor] = dims
        return dims

    def keep_still(self, tensors: Iterable[Tensor], still: bool = True) -> None:
        """Note of tensors whether they are computed from parameters and constants alone: no input changes them."""
        for tensor in tensors:
            if still:
                self._still[tensor] = True
            else:
                self._still.discard(tensor)

    def still(self, tensors: Iterable[Tensor]) -> bool:
        """Whether no input changes any of these."""
        return all(tensor in self._still for tensor in tensors)

    def pick(self, tensors: Iterable[Tensor]) -> None:
        """Note of tensors that they are places of another one that an index picked."""
        for tensor in tensors:
            self._picked[tensor] = True

    def picked(self, tensors: Iterable[Tensor]) -> bool:
        """Whether any of these was picked, or only shows in another way what was."""
        return bool(self._picked) and any(tensor in self._picked for tensor in tensors)

    def stir(self, written: Iterable[Tensor]) -> None:
        """Inputs have been written to these: they change what held constants, and whatever shares its memory."""
        for tensor in written:
            if tensor in self._still:
                self.keep_still([tensor, *(other for other, _ in self.aliases(tensor))], still=False)

    def aliases(self, tensor: Tensor) -> list[tuple[Tensor, Track]]:
        """Other live tensors on the same memory."""
        return [(t, track) for t, track in self._by_tensor.items() if t is not tensor and _same_memory(t, tensor)]

    def freeze(self, tensor: Tensor, reason: str) -> None:
        known = self._by_tensor.get(tensor)
        if known is not None:
            self._freeze(known, reason)

    def _freeze(self, track: Track, reason: str) -> None:
        self.graph.read(track)
        for dim in track.dims:
            self.graph.freeze(dim, reason)


class Escapes(TorchFunctionMode):
    """What does not pass the dispatcher: `.data` aliases a tensor, `.numpy()` and the like take its values away."""

    def __init__(self, tracks: Tracks) -> None:
        super().__init__()
        self._tracks = tracks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        unmoved = func == _DATA.__set__ and elements(args[0]) == elements(args[1])  # a module is cast to what it is
        result = func(*args, **(kwargs or {}))
        if unmoved or isinstance(func, torch._ops.OpOverload):  # scripted code: on its way to the dispatcher
            return result
        with unseen():
            if func == Tensor.__deepcopy__:
                self._tracks.put(result, self._tracks.of(args[0]))
            elif func in _TAKEN:
                self._tracks.freeze(args[0], f"is taken out of torch by {func.__name__}")
            elif func == _DATA.__set__:
                for tensor in args:
                    self._tracks.freeze(tensor, "is put in place of a tensor's data")
                self._tracks.put(args[0], Track.constant(args[0].shape))
            elif isinstance(result, (Tensor, tuple, list)):
                for tensor in tensors_in(result):
                    if tensor not in self._tracks:
                        self._escaped(func, tensor, list(tensors_in([args, kwargs])))
        return result

    def _escaped(self, func: Any, tensor: Tensor, given: Sequence[Tensor]) -> None:
        """A result that no operator made: an argument under another name, or out of sight."""
        for source in given:
            if source in self._tracks and elements(tensor) == elements(source):
                self._tracks.put(tensor, self._tracks.of(source))
                return
        for source in given:
            self._tracks.freeze(source, f"leaves the trace by {getattr(func, '__name__', func)}")


def _same_memory(a: Tensor, b: Tensor) -> bool:
    memory = memory_of(a)
    return memory is not None and memory == memory_of(b)
