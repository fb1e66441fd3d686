"""Heads of torch's own attention are cut exactly, in classes that take its place."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.model.nested import map_tensors
from fairkern.model.replacements import MultiheadAttention
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.prove import difference
from fairkern.types import Plan
from tests.heads import HEADS, WIDTH, Block

LIMIT = 1e-9


def masked_by_length(attn: nn.Module, x: Tensor) -> Tensor:
    hidden = torch.arange(x.shape[1])[None] >= torch.arange(x.shape[0], 0, -1)[:, None] + 1
    return attn(x, x, x, key_padding_mask=hidden, need_weights=False)[0]


def memory(x: Tensor) -> Tensor:
    return x.flip(1)[:, 1:]


CUT: dict[str, Callable[[], nn.Module]] = {
    "self": lambda: Block(lambda a, x: a(x, x, x)[0], batch_first=True),
    "tokens first": lambda: Block(lambda a, x: a(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1)),
    "without weights": lambda: Block(lambda a, x: a(x, x, x, need_weights=False)[0], batch_first=True),
    "cross": lambda: Block(lambda a, x: a(x, memory(x), memory(x))[0], batch_first=True),
    "cross, other widths": lambda: Block(
        lambda a, x: a(x, x[..., :10], x[..., :14])[0], batch_first=True, kdim=10, vdim=14
    ),
    "key and value biases": lambda: Block(
        lambda a, x: a(x, x, x)[0], batch_first=True, add_bias_kv=True, add_zero_attn=True
    ),
    "no biases": lambda: Block(lambda a, x: a(x, x, x)[0], batch_first=True, bias=False),
    "mask": lambda: Block(
        lambda a, x: a(x, x, x, attn_mask=torch.ones(5, 5, dtype=torch.bool).triu(1))[0], batch_first=True
    ),
    "padding": lambda: Block(masked_by_length, batch_first=True),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 40, batch_first=True), 2),
    "encoder, norm first": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, HEADS, 40, batch_first=True, norm_first=True, activation="gelu"),
        2,
        enable_nested_tensor=False,
    ),
}


def cut(model: nn.Module, inputs: Any, fraction: float) -> tuple[nn.Module, fk.Plan, fk.UnitMap]:
    units = fk.trace(model, inputs)
    plan = fk.Plan(**vars(build(units, random_removal(units, fraction, seed=2))))
    return fk.apply(model, plan), plan, units


@pytest.mark.parametrize("name", CUT)
def test_heads_are_cut_exactly(name: str) -> None:
    torch.manual_seed(0)
    model, x = CUT[name]().double().eval(), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    for fraction in (0.1, 0.6):
        small, plan, units = cut(model, x, fraction)
        assert units.proven
        heads = [g for g in units.groups if g.kind == "head"]
        assert heads
        assert all(g.units == HEADS and g.frozen is None for g in heads)
        assert [type(m) for m in small.modules() if isinstance(m, nn.MultiheadAttention)] == [MultiheadAttention] * len(
            heads
        )
        assert all(m.num_heads == (3 if fraction == 0.1 else 2) for m in small.modules() if hasattr(m, "num_heads"))
        assert all(m.embed_dim == WIDTH for m in small.modules() if hasattr(m, "embed_dim"))
        for grad in (True, False):  # without gradients torch takes its fused path where it can
            with torch.set_grad_enabled(grad), plan.masked(model):
                expected = model(x)
            with torch.set_grad_enabled(grad):
                assert float(((small(x) - expected).abs().max() / expected.abs().max()).detach()) < LIMIT
    assert not any(isinstance(m, MultiheadAttention) for m in model.modules())


def test_encoder_with_padding() -> None:
    """Where nothing is padded, the outputs of torch's nested fast path."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 40, batch_first=True), 2).double().eval()
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    hidden = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    small, plan, _ = cut(model, {"src": x, "src_key_padding_mask": hidden}, 0.5)
    with torch.no_grad(), plan.masked(model):
        expected = model(x, src_key_padding_mask=hidden)
    with torch.no_grad():
        found = small(x, src_key_padding_mask=hidden)
    assert torch.allclose(expected[~hidden], found[~hidden], atol=1e-10)


def test_decoder() -> None:
    torch.manual_seed(0)
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 40, batch_first=True), 2).double().eval()
    inputs = {"tgt": torch.randn(2, 5, WIDTH), "memory": torch.randn(2, 7, WIDTH)}
    inputs = map_tensors(inputs, Tensor.double)
    small, plan, units = cut(model, inputs, 0.5)
    assert [g.kind for g in units.groups if g.frozen is None] == ["head", "head", "neuron"] * 2
    with plan.masked(model):
        assert difference(model, small, inputs) < LIMIT


def test_torchvision_vit() -> None:
    vision = pytest.importorskip("torchvision.models.vision_transformer")
    torch.manual_seed(0)
    model = vision.VisionTransformer(16, 4, 2, 4, WIDTH, 40, num_classes=5).double().eval()
    nn.init.normal_(model.heads.head.weight)  # zero at first
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    small, plan, units = cut(model, x, 0.5)
    assert [g.kind for g in units.groups if g.frozen is None] == ["head", "neuron"] * 2
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT


def test_pruned_twice() -> None:
    torch.manual_seed(0)
    model, x = CUT["encoder"]().double().eval(), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    once, _, _ = cut(model, x, 0.3)
    twice, plan, _ = cut(once, x, 0.4)
    assert [m.num_heads for m in twice.modules() if isinstance(m, nn.MultiheadAttention)] == [2, 2]
    with plan.masked(once):
        assert difference(once, twice, x) < LIMIT


def test_heads_that_stay_keep_their_class() -> None:
    """Where neurons alone are cut, torch's class and its fused path stay."""
    torch.manual_seed(0)
    model, x = CUT["encoder"]().double().eval(), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    units = fk.trace(model, x)
    removed = [
        r if g.kind == "neuron" else r[:0] for g, r in zip(units.groups, random_removal(units, 0.5, 1), strict=True)
    ]
    plan = fk.Plan(**vars(build(units, removed)))
    small = fk.apply(model, plan)
    assert not any(isinstance(m, MultiheadAttention) for m in small.modules())
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT


def test_compile_export_copy_pickle() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 40, batch_first=True), 1).eval()
    x = torch.randn(2, 5, WIDTH)
    small, _, _ = cut(model, x, 0.5)
    with torch.no_grad():
        expected = small(x)
        assert torch.equal(copy.deepcopy(small)(x), expected)
        file = io.BytesIO()
        torch.save(small, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), expected)
        torch.compiler.reset()
        assert torch.equal(torch.compile(small, backend="eager", fullgraph=True)(x), expected)
        assert torch.allclose(torch.export.export(small, (x,)).module()(x), expected, atol=1e-6)


def test_a_plan_with_an_unknown_replacement_is_refused() -> None:
    model = CUT["self"]().double()
    _, plan, _ = cut(model, torch.randn(2, 5, WIDTH, dtype=torch.float64), 0.5)
    (entry,) = plan.replacements
    for other, message in (
        (type(entry)("attn", "Attention"), "unknown here"),
        (type(entry)("norm", entry.name), "norm is a LayerNorm here"),
    ):
        changed: Plan = fk.Plan(**{**vars(plan), "replacements": (other,)})
        with pytest.raises(fk.PlanMismatchError, match=message):
            fk.apply(model, changed)
