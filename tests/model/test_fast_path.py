"""Replaced attention and its layers give what torch's own give in every state: gradients, fast path, masks, nesting."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.model.fast_path import padded, unpadded
from fairkern.model.replacements import MultiheadAttention, TransformerEncoderLayer, replace_modules

WIDTH, HEADS, ROWS, LENGTH = 8, 4, 3, 5
Call = dict[str, Any]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*(nested tensor|enable_nested_tensor|mismatched|dtype to bool)")
        yield
    torch.backends.mha.set_fastpath_enabled(fast)


def replaced(model: nn.Module) -> nn.Module:
    ours = copy.deepcopy(model)
    paths = [path for path, module in ours.named_modules() if type(module) is nn.MultiheadAttention]
    replace_modules(ours, dict.fromkeys(paths, "MultiheadAttention"))
    return ours


def outcome(model: nn.Module, call: Call) -> list[Tensor] | Exception:
    try:
        made = model(**call)
    except (RuntimeError, AssertionError, fk.InputError) as error:
        return error
    made = made if isinstance(made, tuple) else (made,)
    return [t.to_padded_tensor(0.0) if t.is_nested else t for t in made if t is not None]


def compare(model: nn.Module, calls: list[Call]) -> int:
    """In every state ours runs where torch's runs and gives the same; how many calls of them ran."""
    ours, ran = replaced(model), 0
    for call, grad, fast, train in itertools.product(calls, (True, False), (True, False), (True, False)):
        torch.backends.mha.set_fastpath_enabled(fast)
        with torch.set_grad_enabled(grad):
            expected, found = outcome(model.train(train), call), outcome(ours.train(train), call)
        if isinstance(expected, Exception):
            continue
        assert not isinstance(found, Exception), (call, found)
        for a, b in zip(expected, found, strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            assert torch.allclose(a, b, atol=1e-11, equal_nan=True), (call.keys(), grad, fast, train)
        ran += 1
    return ran


def hidden(*lengths: int) -> Tensor:
    return torch.arange(LENGTH)[None] >= torch.tensor(lengths)[:, None]


def data() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Tokens, the same nested, and masks by kind."""
    torch.manual_seed(0)
    x = torch.randn(ROWS, LENGTH, WIDTH, dtype=torch.float64)
    numbers = torch.randn(LENGTH, LENGTH, dtype=torch.float64).masked_fill(torch.rand(LENGTH, LENGTH) > 0.5, 0.0)
    masks = {
        "padding": hidden(5, 3, 4),
        "a row without a token": hidden(5, 0, 4),
        "padded in front": hidden(5, 3, 4).flip(1),
        "numbers": torch.zeros(ROWS, LENGTH, dtype=torch.float64).masked_fill(hidden(4, 3, 5), -torch.inf),
        "causal": torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1),
        "added": numbers,
        "by head": torch.rand(ROWS * HEADS, LENGTH, LENGTH) > 0.6,
    }
    return x, unpadded(x, masks["padding"]), masks


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_first": True},
        {"bias": False},
        {"nhead": 1},
        {"activation": nn.GELU("tanh")},
        {"activation": nn.SiLU()},
    ],
    ids=str,
)
def test_layer(options: dict[str, Any]) -> None:
    x, nested, masks = data()
    kinds: dict[str, Any] = {"nhead": HEADS, "dropout": 0.0, "batch_first": True, **options}
    layer = nn.TransformerEncoderLayer(WIDTH, dim_feedforward=12, dtype=torch.float64, **kinds)
    assert type(replaced(layer)) is TransformerEncoderLayer
    calls: list[Call] = [{"src": x}, {"src": x[0]}, {"src": nested}, {"src": x, "is_causal": True}]
    calls += [{"src": x, "src_key_padding_mask": masks[k]} for k in ("padding", "a row without a token", "numbers")]
    calls += [
        {"src": x, "src_mask": masks[k]} for k in ("causal", "added") + (("by head",) if "nhead" not in options else ())
    ]
    calls += [{"src": x, "src_mask": masks["causal"], "src_key_padding_mask": masks["padding"]}]
    assert compare(layer, calls) > 6 * len(calls)


@pytest.mark.parametrize("options", [{}, {"mask_check": False}, {"enable_nested_tensor": False}], ids=str)
@pytest.mark.parametrize("heads", [HEADS, 1])
def test_encoder(heads: int, options: dict[str, Any]) -> None:
    x, _, masks = data()
    layer = nn.TransformerEncoderLayer(WIDTH, heads, 12, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), **options).double()
    kinds = ("padding", "a row without a token", "padded in front", "numbers")
    calls: list[Call] = [{"src": x}, *({"src": x, "src_key_padding_mask": masks[k]} for k in kinds)]
    calls += [{"src": x, "mask": masks["causal"], "src_key_padding_mask": masks["padding"]}]
    assert compare(model, calls) > 7 * len(calls)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"batch_first": False}, {"add_zero_attn": True}], ids=str)
def test_attention(options: dict[str, Any]) -> None:
    x, nested, masks = data()
    module = nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.float64, **{"batch_first": True, **options})
    calls: list[Call] = []
    for weights in ({}, {"need_weights": False}, {"average_attn_weights": False}):
        x_ = x if module.batch_first else x.transpose(0, 1)
        same = dict.fromkeys(("query", "key", "value"), x_)
        calls += [{**same, **weights}, {**dict.fromkeys(same, nested), **weights}]
        calls += [{**same, **weights, "key_padding_mask": masks[k]} for k in ("padding", "a row without a token")]
        calls += [{**same, **weights, "attn_mask": masks[k]} for k in ("causal", "added", "by head")]
        calls += [{**same, **weights, "attn_mask": masks["causal"], "key_padding_mask": masks["padding"]}]
        calls += [{**same, **weights, "is_causal": True}, {**same, "key": x_.flip(0), "value": x_.flip(0), **weights}]
    assert compare(module, calls) > 5 * len(calls)


def test_hooks_on_a_layer_keep_it_from_the_fused_path() -> None:
    """As of torch's own: numbers added to scores are added there, not taken as hidden keys."""
    x, _, masks = data()
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, 0.0, batch_first=True).double().eval()
    ours = replaced(layer)
    with torch.no_grad():
        fused = ours(x, masks["added"])
        for model in (layer, ours):
            model.linear1.register_forward_hook(lambda *given: None)  # type: ignore[operator,union-attr]
        assert torch.allclose(layer(x, masks["added"]), ours(x, masks["added"]), atol=1e-11)
        assert not torch.allclose(fused, ours(x, masks["added"]), atol=1e-3)


def test_what_the_number_of_heads_was_decides() -> None:
    """Three of four heads are an odd number; the original had an even one, so samples are still nested."""
    x, _, masks = data()
    torch.manual_seed(1)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 12, batch_first=True), 1).double().eval()
    ours = replaced(model)
    attention = ours.get_submodule("layers.0.self_attn")
    assert isinstance(attention, MultiheadAttention)
    attention.num_heads = 3
    assert attention.whole_heads == HEADS
    with torch.no_grad():
        assert torch.equal(
            ours(x, src_key_padding_mask=masks["padding"]) == 0, model(x, src_key_padding_mask=masks["padding"]) == 0
        )


def test_under_autocast_the_layer_gives_the_type_of_the_original() -> None:
    x, _, masks = data()
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, batch_first=True).eval()
    for grad in (True, False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
            call = {"src": x.float(), "src_key_padding_mask": masks["padding"]}
            a, b = layer(**call), replaced(layer)(**call)
        assert a.dtype == b.dtype
        assert float((a - b).abs().max().detach()) < 0.1


def test_nested_where_torch_takes_none() -> None:
    _, nested, _ = data()
    ours = replaced(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64).eval())
    with pytest.raises(fk.InputError, match="padded ones and a mask"):
        ours(nested, nested, nested)


def test_padded_and_back() -> None:
    x, nested, masks = data()
    filled, behind = padded(nested)
    assert torch.equal(behind, masks["padding"])
    assert torch.equal(filled, x.masked_fill(behind[..., None], 0.0))
    for a, b in zip(unpadded(filled, behind).unbind(), nested.unbind(), strict=True):
        assert torch.equal(a, b)
