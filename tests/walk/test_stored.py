"""Parameters out of files and back, whatever files make of them."""

from __future__ import annotations

import pytest
import torch

from fairkern.types import FilePart, Files, FileTensor
from fairkern.walk.stored import holding, parameter_of, stored_of

STACK = torch.arange(2 * 6 * 4).reshape(2, 6, 4)  # experts, gate and up, inputs
MATRIX = torch.arange(6 * 3).reshape(6, 3)


def rows(start: int, step: int = 1) -> tuple[int, int, int]:
    return (0, start, step)


EXPERTS = tuple(
    FileTensor(f"experts.{e}.{name}", (3, 4), (FilePart("stack", (e, rows(start), (1, 0, 1)), 3),))
    for e in range(2)
    for name, start in (("gate", 0), ("up", 3))
)
TRANSPOSED = FileTensor("matrix.T", (3, 6), (FilePart("matrix", ((1, 0, 1), rows(0)), 3),))
TURNS = FileTensor(
    "turned", (6, 3), tuple(FilePart("matrix", (rows(start), (1, 0, 1)), 3, turns=2) for start in (0, 3))
)
HALVES = FileTensor(
    "columns",
    (6, 3),
    (FilePart("matrix", (rows(0), (1, 2, 1)), 1), FilePart("matrix", (rows(0), (1, 0, 1)), 2)),
    along=1,
)


@pytest.mark.parametrize(
    ("name", "whole", "tensors", "first"),
    [
        ("stack", STACK, EXPERTS, STACK[0, :3]),
        ("matrix", MATRIX, (TRANSPOSED,), MATRIX.T),
        ("matrix", MATRIX, (TURNS,), MATRIX[[0, 3, 1, 4, 2, 5]]),
        ("matrix", MATRIX, (HALVES,), MATRIX[:, [2, 0, 1]]),
    ],
    ids=["experts", "transposed", "turns", "columns"],
)
def test_there_and_back(name: str, whole: torch.Tensor, tensors: tuple[FileTensor, ...], first: torch.Tensor) -> None:
    stored = {tensor.name: stored_of(tensor, {name: whole}) for tensor in tensors}
    assert torch.equal(stored[tensors[0].name], first)
    assert holding(Files(tensors)) == {name: list(tensors)}
    assert torch.equal(parameter_of(name, whole.shape, tensors, stored.__getitem__), whole)
