"""How a model is called on what a user or a loader holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, List, Optional, Union  # noqa: UP035

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.model.nested import as_call, call_model
from fairkern.model.own_calls import call_of, handed_on, training_call
from tests.detectors import Detector, TakesBatches, Unannotated, images

A, B = torch.zeros(2, 3), torch.ones(2, 3)


def module(forward: Any) -> nn.Module:
    return type("Made", (nn.Module,), {"forward": forward})()


def one_list(self: Any, xs: list[Tensor], ys: Any = None) -> Any: ...
def one_old_list(self: Any, xs: Optional[List[Tensor]] = None) -> Any: ...  # noqa: UP006, UP045
def one_sequence(self: Any, xs: Sequence[Tensor] | None, mask: Any = None) -> Any: ...
def one_quoted(self: Any, xs: "list[Tensor]", ys: "Tensor | None" = None) -> Any: ...  # noqa: UP037
def tensors(self: Any, x: Tensor, y: Tensor | None = None) -> Any: ...
def either(self: Any, x: Union[Tensor, List[Tensor]], y: Any = None) -> Any: ...  # noqa: UP006, UP007
def silent(self, x, y=None): ...  # type: ignore[no-untyped-def]
def two(self, x, y): ...  # type: ignore[no-untyped-def]
def one(self, x): ...  # type: ignore[no-untyped-def]
def any_number(self, *xs): ...  # type: ignore[no-untyped-def]
def keywords(self, **named): ...  # type: ignore[no-untyped-def]
def one_and_keywords(self, x, *args, **named): ...  # type: ignore[no-untyped-def]


CASES: dict[str, tuple[Any, Any, Any]] = {
    "a tensor": (tensors, A, (A,)),
    "a tuple": (one_list, (A, B), (A, B)),
    "a list where one is taken": (one_list, [A, B], ([A, B],)),
    "of one item": (one_list, [A], ([A],)),
    "a list in a list": (one_list, [[A, B]], ([A, B],)),
    "in the old spelling": (one_old_list, [A, B], ([A, B],)),
    "a sequence": (one_sequence, [A, B], ([A, B],)),
    "in quotes": (one_quoted, [A, B], ([A, B],)),
    "a list of arguments": (tensors, [A, B], (A, B)),
    "two are needed": (two, [A, B], (A, B)),
    "more than are taken": (one, [A, B], ([A, B],)),
    "more than are taken, annotated": (tensors, [A, B, A], ([A, B, A],)),
    "nothing is said": (silent, [A, B], None),
    "both are said": (either, [A, B], None),
    "one, and nothing is said": (one, [A], None),
    "any number": (any_number, [A, B], None),
    "names": (tensors, {"x": A}, {"x": A}),
    "some names": (tensors, {"x": A, "z": B}, {"x": A, "z": B}),
    "no names": (tensors, {"img": A, "cls": B}, ({"img": A, "cls": B},)),
    "no names, beside keywords": (one_and_keywords, {"img": A}, ({"img": A},)),
    "any names": (keywords, {"img": A}, {"img": A}),
    "no names, and two are needed": (two, {"img": A}, {"img": A}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_model_is_called_with(name: str) -> None:
    forward, given, expected = CASES[name]
    assert as_call(module(forward), given) == expected


def test_a_list_of_which_nothing_is_known_is_given_to_the_model() -> None:
    xs = images((16, 16), (16, 24))
    model = Unannotated().double().eval()
    assert call_of(model, xs) == (xs,)
    pairs = module(lambda self, x, y=None: x.mul(2) if y is None else x.mul(y))
    assert call_of(pairs, [A, B]) == (A, B)
    with pytest.raises(fk.InputError, match=r"list of 2, which Made.forward could take whole.*pass a tuple"):
        call_model(pairs, [A, B])
    with pytest.raises(fk.InputError, match=r"both run: pass a tuple, \(inputs,\) for the one list"):
        call_of(module(lambda self, x, y=None: x), [A, B])
    with pytest.raises(fk.InputError, match=r"neither runs \(.*AttributeError.*; ValueError: no"):
        call_of(module(lambda self, x, y=None: x.shape and exec("raise ValueError('no')")), [A, B])


@pytest.mark.parametrize("kind", [Detector, Unannotated])
def test_a_bare_list_is_the_call_of_the_models_own_loop(kind: type[nn.Module]) -> None:
    model, xs = kind().double(), images((16, 16), (16, 24))
    units = fk.trace(model, xs)
    assert units.shapes == fk.trace(model, (xs,)).shapes
    assert units.proven
    assert fk.latency(model, xs) > 0
    assert units.prunable == (0, 1, 2)


def test_what_a_model_hands_on_to_itself() -> None:
    model = TakesBatches().train()
    batch = {"img": torch.rand(2, 3, 8, 8), "cls": torch.zeros(2, 1), "batch_idx": torch.arange(2)}
    inner = handed_on(model, batch)
    assert inner is not None
    assert inner[0] is batch["img"]
    assert "forward" not in vars(model)
    assert model.training
    assert handed_on(nn.Sequential(), batch) is None


class Noisy(nn.Module):
    """All that drops something or sums up statistics in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, 0.5, batch_first=True)
        self.lstm = nn.LSTM(8, 8, 2, dropout=0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, bool]:
        x = self.drop(self.norm(x))[None]
        x = self.layer(self.attention(x, x, x)[0])
        x = F.scaled_dot_product_attention(x, x, x, None, 0.5 if self.training else 0.0)
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)
        x = torch.dropout(F.dropout(self.lstm(x)[0], 0.5, self.training), 0.5, self.training)
        return x, self.training


def test_the_training_call_drops_nothing_and_sums_up_no_statistics() -> None:
    torch.manual_seed(0)
    model, x = Noisy().eval(), torch.randn(6, 8)
    model.norm.running_mean.normal_()
    expected, _ = model(x)
    before = model.norm.running_mean.clone()
    with torch.enable_grad(), training_call(model):
        found, training = model(x)
    assert training
    assert not any(m.training for m in model.modules())
    torch.testing.assert_close(found, expected)
    assert torch.equal(model.norm.running_mean, before)
