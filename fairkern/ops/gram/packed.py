"""Half of a symmetric matrix: what Gram matrices of many batches are summed up in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fairkern.ops import _triton
from fairkern.ops._registry import Backend, resolve
from fairkern.ops.gram import native, reference
from fairkern.ops.gram.reference import ROWS
from fairkern.surroundings import uncast


class Packed:
    """A symmetric matrix [n, n] in float64, as blocks of rows of its upper triangle, each from its diagonal on, one
    after the other in a flat tensor. What lies below the diagonal within a block counts for nothing.

    `length(n)` numbers: n² / 2 and a little. (A float32 sum with a second float32 for what it loses takes as many
    bytes, holds fewer digits, and takes longer.)
    """

    def __init__(self, n: int, flat: Tensor) -> None:
        self.n, self.flat = n, flat

    @staticmethod
    def length(n: int) -> int:
        """How many numbers it takes."""
        return sum(min(ROWS, n - first) * (n - first) for first in range(0, n, ROWS))

    @classmethod
    def zeros(cls, n: int, device: torch.device) -> Packed:
        return cls(n, torch.zeros(cls.length(n), dtype=torch.float64, device=device))

    @classmethod
    def of(cls, matrix: Tensor) -> Packed:
        """The upper triangle of [n, n]."""
        made = cls.zeros(len(matrix), matrix.device)
        for first, block in made.blocks():
            block.copy_(matrix[first : first + len(block), first:])
        return made

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """The first row of every block, and a view of it, [rows, n - first]."""
        at = 0
        for first in range(0, self.n, ROWS):
            shape = (min(ROWS, self.n - first), self.n - first)
            yield first, self.flat[at : at + shape[0] * shape[1]].view(shape)
            at += shape[0] * shape[1]

    def full(self) -> Tensor:
        """The matrix [n, n], exactly symmetric, in memory of its own."""
        matrix = torch.empty(self.n, self.n, dtype=self.flat.dtype, device=self.flat.device)
        for first, block in self.blocks():
            stop = first + len(block)
            square, rest = block[:, : len(block)], block[:, len(block) :]
            matrix[first:stop, first:stop] = square.triu() + square.triu(1).T
            matrix[first:stop, stop:] = rest
            matrix[stop:, first:stop] = rest.T
        return matrix

    def diagonal(self) -> Tensor:
        """That of the matrix, [n], in memory of its own."""
        return torch.cat([block.diagonal() for _, block in self.blocks()] or [self.flat])

    def add_outer(self, a: Tensor, b: Tensor) -> None:
        """`a bᵀ + b aᵀ` of float64 vectors [n]."""
        for first, block in self.blocks():
            rows = slice(first, first + len(block))
            block.addr_(a[rows], b[first:]).addr_(b[rows], a[first:])

    @uncast
    def add_gram(self, x: Tensor, fits: Tensor | None = None, *, total: Tensor | None = None) -> None:
        """Add `Σ a aᵀ` over all dimensions of `x` but the first, that of the units; products are summed in its dtype,
        float32 or float64. `fits`, bool []: whether they are added at all, without looking at it on another device.
        `total`, float64 [n]: what `Σ a` is added to.

        Cost: as `gram`. Memory: 4 MB or 256 vectors, whichever is more, with the extension; without, a block of rows;
        where Triton runs, a float32 matrix [n, n].
        """
        chosen = resolve("gram", "auto", x.device, {Backend.TRITON: _triton.unsupported(x.dtype)})
        if chosen is Backend.NATIVE:
            if fits is None or bool(fits):
                native.add(x, self.flat, total)
            return
        whole, vectors = None, x
        if chosen is Backend.TRITON:
            from fairkern.ops.gram import triton_kernel

            whole, made = triton_kernel.gram(x, 0)
        else:
            vectors = x.reshape(len(x), -1)
            made = vectors.sum(1)
        if total is not None:
            total.add_(made if fits is None else made.masked_fill(~fits, 0))
        for first, block in self.blocks():
            rows = slice(first, first + len(block))
            made = vectors[rows] @ vectors[first:].T if whole is None else whole[rows, first:]
            block.add_(made if fits is None else made.masked_fill_(~fits, 0))

    @uncast
    def add_shifted(self, x: Tensor, shift: Tensor, total: Tensor, held: tuple[float, float]) -> int:
        """Add what `add_gram` does of the vectors less `shift`, of the dtype that `x` widens to, [n], on a CPU.

        Returns how many were added: all, or those before the first chunk with which the largest `Σ a²` of a unit so
        far is not from the first number of `held` up to the second: products would overflow, or be lost.
        Cost: one read of `x` beside the products; without the extension, and a copy.
        """
        if resolve("gram", "auto", x.device) is Backend.NATIVE:
            return native.add(x, self.flat, total, shift, held)
        vectors = reference.less(x, shift)
        if not bool(reference.holds_squares(vectors, held)):
            return 0
        self.add_gram(vectors, total=total)
        return vectors[0].numel()
