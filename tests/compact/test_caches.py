"""What a module computes once from its weights and keeps is computed anew after a cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.prove import difference


class Biased(nn.Module):
    """A table that is gathered once per device and kept, as the attention biases of LeViT are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(8, 2))
        self.table_cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = str(x.device)
        if key not in self.table_cache:
            self.table_cache[key] = self.table[:, torch.tensor([1, 0])].sum(1)
        return self.last(self.first(x) + self.table_cache[key])


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_exact_after_a_run(inplace: bool, grad: bool) -> None:
    torch.manual_seed(0)
    model, x = Biased().double().eval(), torch.randn(4, 6, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        model(x)  # fills the cache
    kept = model.table_cache["cpu"]
    units = fk.trace(model, x)
    assert [g.units for g in units.groups if g.frozen is None] == [8]
    assert model.table_cache["cpu"] is kept
    plan = fk.Plan(**vars(build(units, random_removal(units, 0.5, seed=1))))
    with torch.no_grad(), plan.masked(model):
        expected = model(x)
    small = fk.apply(model, plan, inplace=inplace)
    assert torch.allclose(small(x), expected, atol=1e-12)
    if not inplace:
        assert model.table_cache["cpu"] is kept
        with plan.masked(model):
            assert difference(model, small, x) < 1e-9
