"""BatchNorm statistics taken anew, and everything else left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4, momentum=0.3)
    ).double()


X = torch.randn(24, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_statistics_are_means_over_the_batches() -> None:
    model = network().train()
    model[4].eval()
    assert fk.recalibrate(model, [(x, torch.zeros(8, dtype=torch.int64)) for x in X.split(8)]) == 2

    def of(layer: nn.Module, batches: list[Tensor]) -> tuple[Tensor, Tensor]:
        means = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
        return means, torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in batches]).mean(0)

    with torch.no_grad():
        first = [model[0](x) for x in X.split(8)]
        normal = [nn.functional.batch_norm(b, None, None, model[1].weight, model[1].bias, True) for b in first]
        for layer, batches in ((model[1], first), (model[4], [model[3](b) for b in normal])):
            mean, variance = of(layer, batches)
            torch.testing.assert_close(layer.running_mean, mean)
            torch.testing.assert_close(layer.running_var, variance)
    assert [m.training for m in model] == [True, True, True, True, False]
    assert [m.momentum for m in (model[1], model[4])] == [0.1, 0.3]


def test_nothing_changes_where_it_cannot_be_done() -> None:
    model = network()
    before = {name: t.clone() for name, t in model.state_dict().items()}

    def broken() -> object:
        yield X[:8], torch.zeros(8, dtype=torch.int64)
        raise KeyboardInterrupt

    with pytest.raises(fk.InputError, match="yields no batch"):
        fk.recalibrate(model, [])
    with pytest.raises(KeyboardInterrupt):
        fk.recalibrate(model, broken())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    with pytest.raises(fk.InputError, match="no BatchNorm"):
        fk.recalibrate(nn.Linear(3, 3), [X])


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.calls = nn.BatchNorm2d(2, dtype=torch.float64), [0]
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.calls[0] += 1
        return self.norm(x)


def test_what_the_forward_pass_counts_is_put_back() -> None:
    model = Counting()
    assert fk.recalibrate(model, [(X, torch.zeros(24, dtype=torch.int64))]) == 1
    assert (float(model.count), model.calls) == (0, [0])
    torch.testing.assert_close(model.norm.running_mean, X.mean((0, 2, 3)))
