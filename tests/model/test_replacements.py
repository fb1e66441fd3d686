"""Classes that take the place of torch's are equal to them in function."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.model.replacements import MultiheadAttention, in_place, replace_modules
from tests.heads import HEADS, WIDTH, L, N, S, attention


def masks(kind: str | None, shape: tuple[int, ...]) -> Tensor | None:
    if kind is None:
        return None
    if kind == "float":
        return torch.randn(shape, dtype=torch.float64)
    mask = torch.rand(shape) > 0.6
    mask[..., 0] = False  # no row without a key
    return mask


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"add_bias_kv": True, "add_zero_attn": True},
        {"kdim": 10, "vdim": 14},
        {"kdim": 10, "vdim": 14, "add_bias_kv": True, "bias": False},
    ],
    ids=str,
)
def test_equal_in_function(options: dict[str, Any], batched: bool, batch_first: bool, need_weights: bool) -> None:
    """Self- and cross-attention, with every kind of mask: outputs and weights of torch's own class."""
    original = attention(batch_first=batch_first, **options)
    ours = copy.deepcopy(original)
    replace_modules(ours, {"": "MultiheadAttention"})
    assert type(ours) is MultiheadAttention
    assert list(ours.state_dict()) == list(original.state_dict())

    def data(length: int, width: int) -> Tensor:
        shape = (length, width) if not batched else (N, length, width) if batch_first else (length, N, width)
        return torch.randn(shape, dtype=torch.float64)

    rows = N if batched else 1
    for cross, per_head, kind, padding in itertools.product(
        (True, False), (False, True), (None, "bool", "float"), (None, "same")
    ):
        if "kdim" in options and not cross:
            continue
        query = data(L, WIDTH)
        key = data(S, options.get("kdim", WIDTH)) if cross else query
        value = data(S, options.get("vdim", WIDTH)) if cross else query
        last = S if cross else L
        arguments: dict[str, Any] = {
            "attn_mask": masks(kind, (rows * HEADS, L, last) if per_head else (L, last)),
            "key_padding_mask": masks(padding and (kind or "bool"), (N, last) if batched else (last,)),
            "need_weights": need_weights,
        }
        for average in (True, False):
            expected = original(query, key, value, **arguments, average_attn_weights=average)
            found = ours(query, key, value, **arguments, average_attn_weights=average)
            for a, b in zip(expected, found, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    assert a.shape == b.shape
                    assert torch.allclose(a, b, atol=1e-12)


def test_causal_hint() -> None:
    original = attention(batch_first=True)
    ours = copy.deepcopy(original)
    replace_modules(ours, {"": "MultiheadAttention"})
    x = torch.randn(N, L, WIDTH, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64)
    for need_weights in (True, False):
        given = {"attn_mask": mask, "is_causal": True, "need_weights": need_weights}
        assert torch.allclose(original(x, x, x, **given)[0], ours(x, x, x, **given)[0], atol=1e-12)
    with pytest.raises(fk.InputError, match="attn_mask too"):
        ours(x, x, x, is_causal=True)


def test_dropout_is_drawn_in_train_mode_only() -> None:
    module = attention(batch_first=True, dropout=0.5)
    replace_modules(module, {"": "MultiheadAttention"})
    x = torch.randn(N, L, WIDTH, dtype=torch.float64)
    assert torch.equal(module(x, x, x)[0], module(x, x, x)[0])
    for need_weights in (True, False):
        module.train()
        first, second = (module(x, x, x, need_weights=need_weights)[0] for _ in range(2))
        assert not torch.allclose(first, second)


def test_in_place_puts_classes_back_after_an_error() -> None:
    class Own(nn.MultiheadAttention):
        """A subclass keeps its own forward."""

    model = nn.ModuleList([attention(), Own(WIDTH, HEADS)])

    def fail() -> None:
        assert [type(m) for m in model] == [MultiheadAttention, Own]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), in_place(model):
        fail()
    assert [type(m) for m in model] == [nn.MultiheadAttention, Own]
