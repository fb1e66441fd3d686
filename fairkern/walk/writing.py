"""What is left of a model's segments into shards, as the segments are done."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from fairkern.artefacts.shard_writer import LARGEST, MANIFEST, ShardWriter
from fairkern.model.tensors import named_tensors
from fairkern.types import Plan
from fairkern.walk.cutting import left_of

_UNFINISHED = ".shards"


class SegmentWriter:
    """Shards of the model that a plan leaves, in a folder. They come to be there once all are done (`finish`).

    Args:
        folder: where.
        small: that model on meta, with all its biases: names, dtypes and shapes, in the order of the shards.
        zeros: biases that are there because a field of the configuration brings them, and are zero.
        largest: bytes of tensors in a shard.
    """

    def __init__(
        self, folder: str | os.PathLike[str], small: nn.Module, zeros: Iterable[str], largest: int = LARGEST
    ) -> None:
        self._folder, self._own, self._zeros = Path(folder), Path(folder) / _UNFINISHED, list(zeros)
        self._own.mkdir()
        first = named_tensors(small)  # a tensor that several names share is written under the first
        state = {name: tensor for name, tensor in small.state_dict().items() if name in first}
        described = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
        self._expected = described
        self._left = set(described)
        self._writer = ShardWriter(self._own, described, job={}, largest=largest)

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, changed: nn.Module, plan: Plan) -> None:
        """What stays of a part in full size, by its part of the plan."""
        for name, tensor in left_of(changed, plan):
            if name in self._left:
                self._left.discard(name)
                self._writer.write(name, tensor.to(self._expected[name][0]))

    def finish(self) -> None:
        """Writes what nobody gave and is zero, and the index. Raises InputError where something else is missing."""
        for name in self._zeros:
            if name in self._left:
                self._left.discard(name)
                dtype, shape = self._expected[name]
                self._writer.write(name, torch.zeros(shape, dtype=dtype, device="cpu"))
        self._writer.finish()
        (self._own / MANIFEST).unlink()
        for path in sorted(self._own.iterdir()):
            path.rename(self._folder / path.name)
        self._own.rmdir()
