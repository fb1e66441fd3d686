"""The bench of fits without intercept, on a net that has not been trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import documents, intercepts
from bench.quality.tasks.task import Task
from bench.quality.tasks.text import ALPHABET


def test_the_net_has_no_biases() -> None:
    assert not [name for name, _ in intercepts.bare().named_parameters() if name.endswith("bias")]


def test_both_ways_are_measured_at_every_budget() -> None:
    torch.manual_seed(0)
    model = intercepts.bare().eval()
    windows = torch.randint(len(ALPHABET), (8, 17))
    data = [(part[:, :-1], part[:, 1:]) for part in windows.split(4)]

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def measured(net: nn.Module) -> float:
        return float(loss(net(windows[:, :-1]), windows[:, 1:]))

    task = Task("random", "perplexity", data, loss, measured)
    found = intercepts.cuts_of(model, task)
    assert [cut["keep"] for cut in found] == list(intercepts.KEEPS)
    for cut in found:
        assert cut["biases"] > 0
        assert cut["with"] != cut["without"]
        assert cut["before"] == pytest.approx(cut["with"], rel=0.2)


def test_the_table_says_what_is_missed() -> None:
    text = documents.intercepts()
    assert text.count(" met |") + text.count(" missed |") == len(intercepts.MODELS) * len(intercepts.KEEPS)
