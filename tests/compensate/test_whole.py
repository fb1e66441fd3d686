"""A copy in full size gets the values that the cut model gets, and keeps its others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fairkern.compact.descriptors import Index
from fairkern.compensate.correction import Correction, fold_whole
from fairkern.types import Axis

ROWS, COLUMNS = torch.tensor([0, 2, 5]), torch.tensor([1, 3])
INDICES = {
    "all stays": {},
    "rows": {0: ROWS},
    "columns": {1: COLUMNS},
    "both": {0: ROWS, 1: COLUMNS},
    "a row of columns each": {1: torch.stack([COLUMNS + k % 2 for k in range(6)])},
    "of rows that stay": {0: ROWS, 1: torch.stack([COLUMNS + k % 2 for k in range(6)])},
}


def spread(cut: Tensor, index: Index, whole: Tensor) -> Tensor:
    """`cut` at the positions that stay of `whole`, number by number."""
    made = whole.clone()
    rows = index.get(0, torch.arange(len(whole))).tolist()
    for r, row in enumerate(rows):
        columns = index.get(1, torch.arange(whole.shape[1]))
        for c, column in enumerate((columns[row] if columns.ndim == 2 else columns).tolist()):
            made[row, column] = cut[r, c]
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_a_convolution(index: Index, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, whole = (nn.Sequential(nn.Conv2d(5, 6, (3, 2), bias=False)).to(dtype) for _ in range(2))
    own, before = model[0].weight.detach(), whole[0].weight.detach().clone()
    shape = [index[d].shape[-1] if d in index else n for d, n in enumerate(own.shape)]
    more = torch.randn(shape, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    added = spread(more.double(), index, torch.zeros(own.shape, dtype=torch.float64))
    stays = spread(torch.ones(shape), index, torch.zeros(own.shape)).bool()
    fold_whole(model, whole, {"0.weight": index}, Correction(Axis("0.weight", 1), more, None, 0.0))
    expected = torch.where(stays, (own.double() + added).to(dtype), before)
    assert torch.equal(whole[0].weight, expected)
    assert torch.equal(model[0].weight, own)
