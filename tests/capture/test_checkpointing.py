"""Models that compute parts of themselves again in the backward pass have the scores that they would have without."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import checkpoint as torch_checkpoint
from torch.utils.checkpoint import checkpoint

import fairkern as fk

ORIGINALS = torch_checkpoint.CheckpointFunction, torch_checkpoint._checkpoint_hook


class Blocks(nn.Module):
    """Two residual blocks, the second one twice, each run by `around`."""

    def __init__(self, around: Callable[..., Tensor], first: bool) -> None:
        super().__init__()
        self.enter = None if first else nn.Linear(6, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 8)) for _ in range(2))
        self.out, self.around = nn.Linear(8, 3), around

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.enter is None else self.enter(x)
        for block in (*self.blocks, self.blocks[1]):
            x = x + self.around(block, x)
        return self.out(x)


class Own(torch.autograd.Function):
    """Somebody's own checkpointing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: nn.Module) -> Tensor:
        ctx.block = block
        ctx.save_for_backward(x)
        return block(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(ctx.block(x), x, gradient)[0], None


def scores(around: Callable[..., Tensor], first: bool) -> fk.Scores:
    torch.manual_seed(0)
    model = Blocks(around, first)
    batches = [(torch.randn(6, 8 if first else 6), torch.tensor([0, 1] * 3)) for _ in range(2)]
    return fk.score(model, batches, lambda out, _: out.square().mean(), projections=4, progress=False)


@pytest.mark.parametrize("first", [False, True], ids=["behind a layer", "on the inputs"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_scores_are_those_without_checkpointing(reentrant: bool, first: bool) -> None:
    expected = scores(lambda block, x: block(x), first)
    found = scores(partial(checkpoint, use_reentrant=reentrant), first)
    for name, of in expected.signals.items():
        for a, b in zip(of, found.signals[name], strict=True):
            assert a.size == 0 or a.any()
            np.testing.assert_array_equal(a, b)
    assert (torch_checkpoint.CheckpointFunction, torch_checkpoint._checkpoint_hook) == ORIGINALS


def test_a_function_that_hides_its_modules_is_refused() -> None:
    with pytest.raises(fk.InputError, match="inside Own, a torch"):
        scores(lambda block, x: Own.apply(x, block), first=False)
    assert (torch_checkpoint.CheckpointFunction, torch_checkpoint._checkpoint_hook) == ORIGINALS


def test_what_runs_without_gradients_by_itself_is_heard_without_them() -> None:
    def frozen(block: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            return block(x)

    found = scores(frozen, first=False)
    assert [bool(of.any()) for of in found.signals["taylor"]] == [True, False, False]
