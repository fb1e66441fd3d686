"""Buffers that a forward pass fills for itself, by its own code or in methods that it calls."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairkern.model.filled import filled_buffers


class Kept(nn.Module):
    """Keeps a table that `forward` makes, one that a method of its makes, and one that somebody else may set."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("own", None, persistent=False)
        self.register_buffer("by_method", None, persistent=False)
        self.register_buffer("given", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.own = torch.ones(3)
        return x + self.table().sum()

    def table(self) -> Tensor:
        self.register_buffer("by_method", torch.ones(2), persistent=False)
        return self.inner()

    def inner(self) -> Tensor:
        return self.by_method

    def load_table(self, table: Tensor) -> None:
        self.given = table


def test_methods_that_forward_calls_fill_as_it_does() -> None:
    module = Kept()
    assert list(filled_buffers([module])) == [], "nothing is kept yet"
    module(torch.ones(2))
    module.load_table(torch.ones(4))
    assert [name for _, name in filled_buffers(nn.Sequential(module).modules())] == ["by_method", "own"]
