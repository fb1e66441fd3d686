"""Rows that arrive piece by piece, in one buffer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class GrowingRows:
    """Rows `[n, units, P]` that arrive piece by piece, in one buffer that has room for what is expected, and else grows
    by a quarter. `tight`: on a CPU it grows and shrinks where it lies, so that it is never there twice."""

    def __init__(self, tight: bool = False) -> None:
        self._buffer: Tensor | None = None
        self._tight, self._flat = tight, np.empty(0, dtype=np.uint8)
        self.count = 0

    @property
    def values(self) -> Tensor:
        assert self._buffer is not None
        return self._buffer[: self.count]

    @property
    def bytes(self) -> int:
        """With the room for more."""
        return 0 if self._buffer is None else self._buffer.nbytes

    def room(self, n: int, expect: int) -> int:
        """Rows that there is room for once `n` more have come, where `expect` in all are likely to come."""
        if self._buffer is not None and self.count + n <= len(self._buffer):
            return len(self._buffer)
        return max(expect, self.count + max(n, self.count // 4))

    def extend(self, n: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device, room: int) -> Tensor:
        """`n` more rows, to be written by the caller, in a buffer of `room` rows at least."""
        if self._buffer is None or room > len(self._buffer):
            like = torch.empty(0, *shape, dtype=dtype, device=device) if self._buffer is None else self._buffer
            self._buffer = self._resized(like, room)
        self.count += n
        return self._buffer[self.count - n : self.count]

    @property
    def form(self) -> tuple[torch.Size, torch.dtype]:
        """Of one row."""
        return self.values.shape[1:], self.values.dtype

    @property
    def held(self) -> int:
        """Bytes that the rows themselves take."""
        return 0 if self._buffer is None else self.values.nbytes

    def trim(self) -> None:
        """Give back the room that holds nothing."""
        if self._buffer is not None and self.count < len(self._buffer):
            self._buffer = self._resized(self._buffer, self.count)

    def _resized(self, buffer: Tensor, rows: int) -> Tensor:
        """A buffer of so many rows; those that hold something are in it. The one before is not to be used any more."""
        shape, dtype = (rows, *buffer.shape[1:]), buffer.dtype
        if self._tight and buffer.device.type == "cpu":
            self._flat.resize(math.prod(shape) * dtype.itemsize, refcheck=False)
            return torch.from_numpy(self._flat).view(dtype).view(shape)
        made = torch.empty(shape, dtype=dtype, device=buffer.device)
        made[: self.count] = buffer[: self.count]
        return made
