"""What is left of a model's segments into shards, as the segments are done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from fairkern.artefacts.shard_writer import LARGEST, MANIFEST, ShardWriter
from fairkern.compact.stored import Stored
from fairkern.plans.renaming import Renaming
from fairkern.types import Files, FileTensor, Plan
from fairkern.walk.cutting import left_of
from fairkern.walk.stored import holding, stored_of

_UNFINISHED = ".shards"


class SegmentWriter:
    """Shards of the model that a plan leaves, in a folder. They come to be there once all are done (`finish`).

    Args:
        folder: where.
        model: the uncut one; it may lie on meta.
        small: the cut one on meta, with all its biases.
        plan: its `files` say what tensors the files have.
        zeros: biases that are there because a field of the configuration brings them, and are zero.
        largest: bytes of tensors in a shard.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: nn.Module,
        small: nn.Module,
        plan: Plan,
        zeros: Iterable[str],
        largest: int = LARGEST,
    ) -> None:
        self._folder, self._own = Path(folder), Path(folder) / _UNFINISHED
        self._own.mkdir()
        stored, own = Stored(plan), model.state_dict()
        self._tensors = {tensor: cut for tensor in _tensors(plan, own) if (cut := stored.cut(tensor)) is not None}
        renaming = Renaming(plan)
        added = {
            name: tensor for name, tensor in small.state_dict().items() if renaming.before(name) not in plan.shapes
        }
        self._added = set(added)
        self._zeros = [name for name in zeros if name in added]
        self._expected = {
            **{cut.name: (own[tensor.parts[0].parameter].dtype, cut.left) for tensor, cut in self._tensors.items()},
            **{name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in added.items()},
        }
        self._writer = ShardWriter(self._own, self._expected, job={}, largest=largest)

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, changed: nn.Module, plan: Plan) -> None:
        """What stays of a part in full size, by its part of the plan."""
        there = changed.state_dict()
        for tensor in [t for t in self._tensors if all(part.parameter in there for part in t.parts)]:
            cut = self._tensors.pop(tensor)
            left = cut.of_rows(stored_of(tensor, there), 0)
            self._writer.write(cut.name, left.to(self._expected[cut.name][0]))
        for name, bias in left_of({n: t for n, t in there.items() if n not in plan.shapes}, changed, plan):
            if name in self._added:
                self._added.discard(name)
                self._writer.write(name, bias.to(self._expected[name][0]))

    def finish(self) -> None:
        """Writes what nobody gave and is zero, and the index. Raises InputError where something else is missing."""
        for name in self._added.intersection(self._zeros):
            dtype, shape = self._expected[name]
            self._writer.write(name, torch.zeros(shape, dtype=dtype, device="cpu"))
        self._writer.finish()
        (self._own / MANIFEST).unlink()
        for path in sorted(self._own.iterdir()):
            path.rename(self._folder / path.name)
        self._own.rmdir()


def _tensors(plan: Plan, state: Iterable[str]) -> Iterator[FileTensor]:
    """What files hold of a model, in the order of its state."""
    files, stored = plan.files or Files(), Stored(plan)
    held, seen = holding(files), set[str]()
    for name in state:
        if name in files.absent:
            continue
        plain = stored.tensor(name)
        for tensor in held.get(name, [] if plain is None else [plain]):
            if tensor.name not in seen:
                seen.add(tensor.name)
                yield tensor
