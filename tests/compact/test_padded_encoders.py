"""Encoders with padded samples: whatever torch's own do in a state, nested samples or not, the cut ones do as well."""

from __future__ import annotations

import copy
import io
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal

WIDTH, HEADS = 16, 4
LIMIT = 1e-9


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*(nested tensor|enable_nested_tensor|dtype to bool)")
        yield
    torch.backends.mha.set_fastpath_enabled(True)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 24, **{"batch_first": True, "dropout": 0.0, **options})


class Pooled(nn.Module):
    """A classifier that reads the mean over all places, also the padded ones."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.TransformerEncoder(layer(), 2), nn.Linear(WIDTH, 3)

    def forward(self, src: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        return self.head(self.encoder(src, src_key_padding_mask=src_key_padding_mask).mean(1))


class OwnLayer(nn.TransformerEncoderLayer):
    """A user's class with torch's forward."""


class Sized(nn.Module):
    """An encoder behind code that passes on a size, and so runs under a mode once it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)
        self.encoder, self.layer = nn.TransformerEncoder(layer(), 1), layer()

    def forward(self, src: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        rows, length, width = src.shape
        x = self.first(src.reshape(rows * length, width)).relu().reshape(rows, length, 24)
        x = self.encoder(self.second(x), src_key_padding_mask=src_key_padding_mask)
        return self.layer(x, torch.ones(length, length, dtype=x.dtype).tril(-2))


class Nested(nn.Module):
    """Attention that is given samples of several lengths as one nested tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(WIDTH), nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, src: Tensor) -> Tensor:
        x = self.norm(src)
        if not torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled():
            x = torch.nested.as_nested_tensor([sample[: 6 - k] for k, sample in enumerate(x)])
            return src + self.attn(x, x, x)[0].to_padded_tensor(0.0, src.shape)
        return src + self.attn(x, x, x)[0]


PADDING = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
CUT: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor]]] = {
    "encoder": (lambda: nn.TransformerEncoder(layer(), 2), {}),
    "not nested": (lambda: nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False), {}),
    "normed": (lambda: nn.TransformerEncoder(layer(activation="gelu"), 1, nn.LayerNorm(WIDTH)), {}),
    "a layer": (lambda: layer(), {}),
    "norm first": (lambda: nn.TransformerEncoder(layer(norm_first=True), 2), {}),
    "an own layer": (
        lambda: nn.TransformerEncoder(OwnLayer(WIDTH, HEADS, 24, dropout=0.0, batch_first=True), 2),
        {},
    ),
    "pooled": (Pooled, {}),
    "transformer": (
        lambda: nn.Transformer(WIDTH, HEADS, 1, 1, 24, 0.0, batch_first=True),
        {"tgt": noise(2, 5, WIDTH), "memory_key_padding_mask": PADDING},
    ),
    "memory whole": (
        lambda: nn.Transformer(WIDTH, HEADS, 1, 1, 24, 0.0, batch_first=True),
        {"tgt": noise(2, 5, WIDTH)},
    ),
}


def cut(model: nn.Module, inputs: Any, *, odd: bool = False) -> tuple[nn.Module, fk.Plan, fk.UnitMap]:
    units = fk.trace(model, inputs)
    removed = random_removal(units, 0.5, seed=2)
    if odd:  # three of four heads are left
        removed = [np.arange(1) if g.kind == "head" else r for g, r in zip(units.groups, removed, strict=True)]
    plan = fk.Plan(**vars(build(units, removed)))
    return fk.apply(model, plan), plan, units


@pytest.mark.parametrize("name", CUT)
def test_cut_is_masked_in_every_state(name: str) -> None:
    torch.manual_seed(0)
    made, others = CUT[name]
    inputs = {"src": noise(2, 6, WIDTH), "src_key_padding_mask": PADDING, **others}
    model = made().double().eval()
    small, plan, units = cut(model, inputs, odd=True)
    assert units.proven
    assert {g.kind for g in units.groups} == {"head", "neuron"}
    assert all(g.frozen is None for g in units.groups)
    for grad, fast, inference, train in itertools.product((True, False), repeat=4):
        torch.backends.mha.set_fastpath_enabled(fast)
        with torch.inference_mode(inference), torch.set_grad_enabled(grad and not inference):
            with plan.masked(model):
                expected = model.train(train)(**inputs)
            found = small.train(train)(**inputs)
        assert found.shape == expected.shape
        assert float(((found - expected).abs().max() / expected.abs().max()).detach()) < LIMIT


def test_modes_of_ours_are_not_seen_by_an_encoder() -> None:
    """Torch takes no fused path under a function mode, and size sites are substituted under one."""
    torch.manual_seed(0)
    model, x = Sized().double().eval(), noise(2, 6, WIDTH)
    small, plan, units = cut(model, x)
    assert plan.sites
    assert all(g.frozen is None for g in units.groups)
    for grad, padding in itertools.product((True, False), (PADDING, None)):
        with torch.set_grad_enabled(grad):
            with plan.masked(model):
                expected = model(x, padding)
            assert float((small(x, padding) - expected).abs().max().detach()) < LIMIT
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    with torch.no_grad():
        for other in (copy.deepcopy(small), torch.load(file, weights_only=False)):
            assert torch.equal(other(x, PADDING), small(x, PADDING))


def test_nested_samples_given_to_attention_alone() -> None:
    torch.manual_seed(0)
    model, x = Nested().double().eval(), noise(2, 6, WIDTH)
    small, plan, units = cut(model, x)
    assert [(g.kind, g.frozen) for g in units.groups] == [("head", None)]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            with plan.masked(model):
                expected = model(x)
            assert float((small(x) - expected).abs().max().detach()) < LIMIT
    assert float(small(x)[1, 5].abs().max().detach()) > 0


def test_what_was_decided_by_is_kept(tmp_path: Any) -> None:
    """By copies, pickles, a second cut and a plan from a file."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(layer(), 2).double().eval()
    inputs = {"src": noise(2, 6, WIDTH), "src_key_padding_mask": PADDING}
    small, plan, _ = cut(model, inputs, odd=True)
    plan.save(tmp_path / "plan.safetensors")
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    again = fk.apply(model, fk.Plan.load(tmp_path / "plan.safetensors"))
    with torch.no_grad():
        expected = small(**inputs)
        assert float(expected[1, 4:].abs().max()) == 0
        for other in (copy.deepcopy(small), torch.load(file, weights_only=False), again):
            assert torch.equal(other(**inputs), expected)
    twice, plan, _ = cut(small, inputs)
    with torch.no_grad(), plan.masked(small):
        expected = small(**inputs)
    with torch.no_grad():
        assert float((twice(**inputs) - expected).abs().max()) < LIMIT
