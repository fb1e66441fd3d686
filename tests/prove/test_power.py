"""Whether the proof sees what it is for, in a real network as it comes: gammas of one, biases of zero."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fairkern.axes import solutions
from fairkern.prove import prove

models = pytest.importorskip("torchvision").models


def test_a_bias_cut_one_position_off_is_seen():
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
