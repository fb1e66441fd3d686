"""Where nothing of the inputs arrives in what a cut leaves, fewer groups are tried: one by one only if it has to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.prove import trial
from fairkern.prove.search import Failed
from fairkern.prove.trial import _Trial


def chain(layers: int) -> nn.Sequential:
    torch.manual_seed(0)
    inner = [module for _ in range(layers) for module in (nn.Linear(6, 6), nn.ReLU())]
    return nn.Sequential(*inner, nn.Linear(6, 3)).eval()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many groups went in each trial."""
    sizes: list[int] = []
    failure = _Trial.failure

    def watched(self: _Trial, groups: Sequence[int]) -> Failed | None:
        sizes.append(len(groups))
        return failure(self, groups)

    monkeypatch.setattr(_Trial, "failure", watched)
    return sizes


def test_a_chain_in_which_every_signal_dies_is_not_tried_layer_by_layer(tried: list[int]) -> None:
    """By then what arrives is the biases of the last layers alone, with nothing cut as well."""
    units = fk.trace(chain(60), torch.randn(4, 6))
    assert len(units.prunable) == 60
    assert len(tried) < 5


def test_halves_are_tried_until_something_arrives(tried: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def deaf(results: Iterable[Tensor]) -> bool:
        asked.append(True)
        return tried[-1] > 2

    monkeypatch.setattr(trial, "deaf", deaf)
    units = fk.trace(chain(8), torch.randn(4, 6))
    assert len(units.prunable) == 8
    assert asked
    assert tried[:7] == [8, 4, 2, 2, 4, 2, 2]
