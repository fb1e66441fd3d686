"""A run in train mode is followed for a buffer only where it reads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.axes import trace as tracing


class Buffered(nn.Module):
    def __init__(self, read: bool) -> None:
        super().__init__()
        self.enter, self.out, self.read = nn.Linear(4, 8), nn.Linear(8, 2), read
        self.register_buffer("centre", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        if self.training:
            assert isinstance(self.centre, Tensor)
            x = x + self.centre if self.read else x * 1
        return self.out(x)


@pytest.mark.parametrize("read", [True, False])
def test_buffers(read: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[bool] = []
    run = tracing._run

    def told(*args: Any, **kwargs: Any) -> Any:
        followed.append(kwargs.get("training") is not None)
        return run(*args, **kwargs)

    monkeypatch.setattr(tracing, "_run", told)
    units = fk.trace(Buffered(read), torch.randn(3, 4))
    assert followed == ([False, True] if read else [False])
    assert [axis.axis.tensor for axis in units.groups[0].axes if "centre" in axis.axis.tensor] == ["centre"] * read
