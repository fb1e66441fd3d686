"""Small models to be built by their names, with tables that no file has."""

from __future__ import annotations

import socket
from typing import Any

import torch
from torch import Tensor, nn

SETTINGS = {"slope": 0.1}  # of those that are made from now on
CALLS: list[str] = []


class Net(nn.Module):
    """A table by position and a mask are added, and neither is saved; of units that can go and of some that cannot."""

    table: Tensor
    mask: Tensor

    def __init__(self, width: int = 8, slope: float | None = None) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 3)
        self.slope = SETTINGS["slope"] if slope is None else slope
        self.register_buffer("table", torch.arange(width) / 3.0, persistent=False)
        self.register_buffer("mask", torch.tensor([True, False, True]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.norm(self.first(x)), self.slope) * self.table
        return self.last(x).masked_fill(~self.mask, 0.5)


def net(width: int = 8) -> nn.Module:
    CALLS.append("net")
    return Net(width)


def another(width: int = 9) -> nn.Module:
    return Net(width)


def needs(width: int) -> nn.Module:
    return Net(width)


def trained(pretrained: bool = True, weights: Any = "all", width: int = 8) -> nn.Module:
    assert not pretrained
    assert weights is None
    return Net(width)


def fetching() -> nn.Module:
    with socket.socket() as opened:
        opened.connect(("127.0.0.1", 9))
    return Net()


def raising() -> nn.Module:
    raise KeyError("a file that is not there")


def nothing() -> str:
    return "a text"


number = 3
