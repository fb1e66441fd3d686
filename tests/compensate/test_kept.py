"""Models that keep tensors of a batch in their modules, and convolutions that pad in their own way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.compensate.borders import kernel_shares


class Causal(nn.Conv1d):
    """Pads in front only."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(F.pad(x, (2 * self.padding[0], 0)), self.weight, self.bias)


class Remembering(nn.Module):
    """Hands a part of its first layer's output on to the second by way of an attribute."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.keeps, self.mean = keeps, None
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        made = self.a(x).relu()
        if self.keeps:
            self.mean = x.mean(1, keepdim=True)
        shift = self.mean if self.keeps else x.mean(1, keepdim=True)
        return self.c((self.b(made) + shift).relu())


def batches() -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(3, 16, 6, generator=torch.Generator().manual_seed(0))
    return [(part, torch.arange(16) % 3) for part in x]


@pytest.mark.parametrize(("keeps", "expected"), [(False, "sequential"), (True, "least_squares")])
def test_models_that_keep_tensors_of_a_batch_are_not_walked_through_together(keeps: bool, expected: str) -> None:
    torch.manual_seed(0)
    model = Remembering(keeps)
    _, report = fk.prune(model, batches(), F.cross_entropy, keep_params=0.6, progress=False)
    assert report.choices["compensation"] == expected
    scores = fk.score(model, batches(), F.cross_entropy, gram=True, progress=False)
    assert scores.provenance.get("keeps", []) == (["mean"] if keeps else [])
    plan = scores.plan(keep_params=0.6)
    if keeps:
        with pytest.raises(fk.InputError, match="keeps what is of one batch in its modules"):
            fk.apply(model, plan, compensate="sequential", scores=scores, loader=batches())
    fk.apply(model, plan, compensate=expected, scores=scores, loader=batches())


def test_of_a_convolution_that_pads_in_its_own_way_the_whole_kernel_counts() -> None:
    assert kernel_shares(Causal(3, 4, 3, padding=1), {(7,): 2}) is None
    assert kernel_shares(nn.Conv1d(3, 4, 3, padding=1), {(7,): 2}) is not None
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 8, 1), nn.ReLU(), Causal(8, 5, 3, padding=1), nn.ReLU(), nn.Conv1d(5, 3, 1))
    short = [(torch.randn(4, 2, 1), torch.arange(4) % 2) for _ in range(2)]  # a grid smaller than the kernel
    loss = lambda output, y: F.cross_entropy(output.mean(2), y)  # noqa: E731
    fk.prune(model, short, loss, keep_params=0.7, progress=False)
