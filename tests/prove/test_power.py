"""Whether the proof sees what it is for: in a real network as it comes (gammas of one, biases of zero), any seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.axes import solutions
from fairkern.prove import prove


def test_a_bias_cut_one_position_off_is_seen() -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    model = models.mobilenet_v3_small(weights=None)
    inputs = torch.randn(2, 3, 48, 48)
    units = solutions(model, [inputs])[0].units
    assert len(units.prunable) > 20
    assert prove(model, units, inputs) == {}
    for g in units.prunable[::6]:
        group = units.groups[g]
        bias = next(i for i, axis in enumerate(group.axes) if axis.axis.tensor.endswith("bias"))
        axes = list(group.axes)
        axes[bias] = replace(axes[bias], positions=np.roll(axes[bias].positions, 1, axis=0))
        wrong = (*units.groups[:g], replace(group, axes=tuple(axes)), *units.groups[g + 1 :])
        others = {i: "not now" for i in units.prunable if i != g}
        failed = prove(model, replace(units, groups=wrong).freeze(others), inputs)
        assert failed.keys() == {g}, group.name
        assert failed[g].startswith("pruned differs from masked by"), failed[g]


class Shifted(nn.Module):
    """Channels at fixed numbers move in space; a norm ties them into two units, of which the second one may go."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.out = nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.enter(x))
        y = torch.zeros_like(x)
        y[:, :2, :-1], y[:, 2:4, 1:], y[:, 4:] = x[:, :2, 1:], x[:, 2:4, :-1], x[:, 4:]
        return self.out(y.mean((2, 3)))


@pytest.mark.parametrize("seed", range(4))
def test_what_stays_moves_up_whatever_is_drawn(seed: int) -> None:
    torch.manual_seed(0)
    with pytest.raises(fk.InputError, match="is sliced by slice"):
        fk.trace(Shifted(), torch.randn(2, 3, 6, 6), seed=seed)
