"""Parameters that files hold in parts, under other names."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fairkern.artefacts.shards import open_shards
from fairkern.artefacts.tensors import write_tensors
from fairkern.types import FilePart, Files, FileTensor
from fairkern.walk.stored import Stored


def kept(folder: Path, tensors: dict[str, Tensor]) -> Path:
    write_tensors(folder / "model.safetensors", {name: x.contiguous() for name, x in tensors.items()}, {})
    return folder


def test_experts_halves_turns_and_transposed_ones(tmp_path: Path) -> None:
    up, out, row = torch.randn(2, 6, 4), torch.randn(5, 3), torch.randn(8, 3)
    mixed, plain = torch.randn(6, 2), torch.randn(3)
    files = {f"experts.{e}.{half}": up[e, h * 3 : h * 3 + 3] for e in range(2) for h, half in enumerate(("gate", "up"))}
    turned = torch.stack([row[:4], row[4:]], 1).flatten(0, 1)  # rows of both halves in turn
    files |= {"out.t": out.T, "rows": turned, "mixed": torch.cat([mixed, row[:1, :2]]), "plain": plain}
    parts = [
        FileTensor(f"experts.{e}.{half}", (3, 4), (FilePart("up", (e, (0, h * 3, 1), (1, 0, 1)), 3),))
        for e in range(2)
        for h, half in enumerate(("gate", "up"))
    ]
    halves = tuple(FilePart("row", ((0, start, 1), (1, 0, 1)), 4, 2) for start in (0, 4))
    parts += [
        FileTensor("out.t", (3, 5), (FilePart("out", ((1, 0, 1), (0, 0, 1)), 3),)),
        FileTensor("rows", (8, 3), halves),
        FileTensor("mixed", (7, 2), (FilePart("mixed", ((0, 0, 1), (1, 0, 1)), 6), FilePart("a", ((1, 0, 1),), 1))),
    ]
    shapes = {"up": (2, 6, 4), "out": (5, 3), "row": (8, 3), "mixed": (6, 2), "a": (2,), "plain": (3,)}
    with open_shards(kept(tmp_path, files)) as shards:
        stored = Stored(shards, shapes, Files(tuple(parts)))
        for name, want in {"up": up, "out": out, "row": row, "mixed": mixed, "a": row[0, :2], "plain": plain}.items():
            assert name in stored, name
            assert torch.equal(stored.read(name), want), name
        assert "rows" not in stored


def test_what_files_hold_in_part_only_is_not_there(tmp_path: Path) -> None:
    part = FileTensor("first", (3, 4), (FilePart("up", (0, (0, 0, 1), (1, 0, 1)), 3),))
    with open_shards(kept(tmp_path, {"first": torch.ones(3, 4)})) as shards:
        assert "up" not in Stored(shards, {"up": (2, 3, 4)}, Files((part,)))
        assert "first" in Stored(shards, {"first": (3, 4)})


def test_columns_that_lie_beside_each_other(tmp_path: Path) -> None:
    a, b = torch.randn(2, 3).bfloat16(), torch.randn(2, 4).bfloat16()
    parts = tuple(FilePart(name, ((0, 0, 1), (1, 0, 1)), n) for name, n in (("a", 3), ("b", 4)))
    files = Files((FileTensor("both", (2, 7), parts, along=1),))
    with open_shards(kept(tmp_path, {"both": torch.cat([a, b], 1)})) as shards:
        stored = Stored(shards, {"a": (2, 3), "b": (2, 4)}, files)
        assert torch.equal(stored.read("a"), a)
        assert torch.equal(stored.read("b"), b)
