from __future__ import annotations

import pytest
import torch
from torch import nn

from fairkern.model.raised import in_words, running


class Silent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] == 3
        return x


class Said(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("\n  two lines\nof which one is told " + "x" * 500)


def raised(model: nn.Module) -> Exception:
    with pytest.raises((AssertionError, ValueError)) as caught:
        model(torch.zeros(2, 4))
    return caught.value


def test_an_error_without_a_message_names_the_module_and_the_line() -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(Silent()))
    error = raised(model)
    error.args = ()  # pytest tells what the assertion compared
    said = in_words(error, model)
    assert said.startswith("AssertionError without a message, raised in 1.0 (model/test_raised.py:")
    assert "assert x.shape[-1] == 3" in said
    assert list(running(error, model)) == ["1.0", "1", ""]


def test_an_error_with_a_message_is_told_by_its_first_line() -> None:
    model = nn.Sequential(Said())
    assert in_words(raised(model), model) == "ValueError: two lines"


def test_an_error_that_was_never_raised() -> None:
    assert in_words(AssertionError(), nn.Identity()) == "AssertionError without a message"
