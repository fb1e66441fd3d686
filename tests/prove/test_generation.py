"""A cut model goes on with its cache as the uncut one does: caches hold nothing back, and the proof tries them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import about_half, random_removal
from fairkern.prove import difference

HEADS, SIZE, WIDTH, PLACES = 4, 3, 8, 16


class LayerCache:
    """Keys and values of one layer, from nothing on."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []

    def update(self, *new: Tensor) -> list[Tensor]:
        if not self.held:
            self.held = [torch.tensor([], dtype=t.dtype) for t in new]
        self.held = [torch.cat([old, t], dim=-2) for old, t in zip(self.held, new, strict=True)]
        return self.held


class StaticCache(LayerCache):
    """The same at places of tensors that are as long from the start."""

    def __init__(self, window: int = PLACES) -> None:
        super().__init__()
        self.filled, self.window = 0, window

    def update(self, *new: Tensor) -> list[Tensor]:
        if not self.held:
            b, h, _, d = new[0].shape
            self.held = [torch.zeros((b, h, self.window, d), dtype=t.dtype) for t in new]
        n = new[0].shape[2]
        places = torch.arange(self.filled, self.filled + n)
        self.held[0].index_copy_(2, places, new[0])
        self.held[1][:, :, self.filled : self.filled + n] = new[1]
        self.filled += n
        return [t[:, :, : self.filled] for t in self.held]


class SlidingCache(LayerCache):
    """The last three places."""

    def update(self, *new: Tensor) -> list[Tensor]:
        whole = [
            torch.cat([old, t], dim=2) for old, t in zip(self.held or [t[:, :, :0] for t in new], new, strict=True)
        ]
        self.held = [t[:, :, -3:].clone() for t in whole]
        return whole


class TupleCache:
    """What older code passes: a pair of tensors."""

    @staticmethod
    def update(past: Any, *new: Tensor) -> tuple[Tensor, ...]:
        return new if past is None else tuple(torch.cat([old, t], dim=2) for old, t in zip(past, new, strict=True))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * SIZE) for _ in range(3))
        self.o = nn.Linear(HEADS * SIZE, WIDTH)

    def forward(self, x: Tensor, cache: Any) -> tuple[Tensor, Any]:
        b, t, _ = x.shape
        q, k, v = (p(x).view(b, t, -1, SIZE).transpose(1, 2) for p in (self.q, self.k, self.v))
        if isinstance(cache, LayerCache):
            k, v = cache.update(k, v)
        else:
            k, v = cache = TupleCache.update(cache, k, v)
        scores = q @ k.mT
        mask = torch.ones(t, k.shape[2], dtype=torch.bool).tril(k.shape[2] - t)
        x = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
        return self.o(x.transpose(1, 2).reshape(b, t, -1)), cache


class Language(nn.Module):
    """Two layers of attention and their caches; `form` is how it returns them."""

    def __init__(self, kind: Any, form: str = "pair") -> None:
        super().__init__()
        self.kind, self.form = kind, form
        self.embed = nn.Embedding(11, WIDTH)
        self.layers = nn.ModuleList(Attention() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 11)

    def forward(self, ids: Tensor, past: Any = None) -> Any:
        x = self.embed(ids)
        past = past or [None if self.kind is TupleCache else self.kind() for _ in self.layers]
        caches = []
        for layer, cache in zip(self.layers, past, strict=True):
            y, cache = layer(x, cache)
            x = x + y
            caches.append(cache)
        logits = self.head(self.norm(x))
        return (logits, caches) if self.form == "pair" else {"logits": logits, "past": caches}


def generate(model: nn.Module, ids: Tensor, steps: int = 3) -> Tensor:
    made, past, now = [], None, ids
    with torch.no_grad():
        for _ in range(steps):
            output = model(now, past)
            logits, past = output.values() if isinstance(output, dict) else output
            made.append(logits[:, -1])
            now = logits[:, -1:].argmax(-1)
    return torch.stack(made, 1)


def half(units: fk.UnitMap) -> fk.Plan:
    return fk.Plan(**vars(build(units, random_removal(units, 0.5, seed=1))))


def heads(units: fk.UnitMap) -> list[int]:
    return [g.units for g in units.groups if g.frozen is None and g.kind == "head"]


@pytest.mark.parametrize("form", ["pair", "mapping"])
@pytest.mark.parametrize("kind", [TupleCache, LayerCache, StaticCache, SlidingCache])
def test_heads_go_and_the_cache_goes_on(kind: Any, form: str) -> None:
    torch.manual_seed(0)
    model, ids = Language(kind, form).double().eval(), torch.randint(0, 11, (2, 5))
    units = fk.trace(model, ids)
    assert heads(units) == [HEADS, HEADS]
    plan = half(units)
    small = fk.apply(model, plan)
    with plan.masked(model):
        assert difference(model, small, ids) < 1e-9
        expected = generate(model, ids)
    assert torch.allclose(generate(small, ids), expected, atol=1e-9, rtol=0)


class Counting(Language):
    """Only with a cache it looks at how many heads the first layer has."""

    def forward(self, ids: Tensor, past: Any = None) -> Any:
        if past is not None and past[0][0].shape[1] != HEADS:
            raise ValueError("not the heads that I know")
        return super().forward(ids, past)


def test_what_the_next_call_cannot_do_stays() -> None:
    torch.manual_seed(0)
    model, ids = Counting(TupleCache).double().eval(), torch.randint(0, 11, (2, 5))
    units = fk.trace(model, ids)
    assert [(g.units, g.frozen) for g in units.groups] == [
        (HEADS, "pruned model fails: ValueError: not the heads that I know"),
        (HEADS, None),
    ]
    generate(fk.apply(model, half(units)), ids)


def test_a_given_cache_is_the_reason() -> None:
    torch.manual_seed(0)
    model, ids = Language(TupleCache).double().eval(), torch.randint(0, 11, (2, 5))
    with torch.no_grad():
        past = model(ids)[1]
    with pytest.raises(fk.InputError, match="is held by past, a state that was given as example input"):
        fk.trace(model, {"ids": ids[:, :1], "past": past})


def test_an_empty_cache_may_be_given() -> None:
    torch.manual_seed(0)
    model, ids = Language(LayerCache).double().eval(), torch.randint(0, 11, (2, 5))
    past = [LayerCache(), LayerCache()]
    units = fk.trace(model, {"ids": ids, "past": past})
    assert heads(units) == [HEADS, HEADS]
    assert past[0].held == []


class Recurrent(nn.Module):
    """A state that is kept in an attribute from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gate, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for step in self.inner(x).unbind(1):
            if self.state is None or len(self.state) != len(x):
                self.state = torch.zeros_like(step)
            self.state = 0.5 * self.state + step
            outputs.append(self.state)
        return self.out(torch.stack(outputs, 1) * self.gate(x).sigmoid())


@pytest.mark.parametrize("inplace", [False, True])
def test_a_state_that_a_module_keeps_is_not_cut_along(inplace: bool) -> None:
    torch.manual_seed(0)
    model, x = Recurrent().double().eval(), torch.randn(2, 4, 4).double()
    model(x)  # with gradients: what is kept cannot be copied
    kept = model.state
    units = fk.trace(model, x)
    assert model.state is kept
    assert [g.units for g in units.groups if g.frozen is None] == [6]
    plan = half(units)
    model.state = None
    with plan.masked(model), torch.no_grad():
        expected = model(x)
    model(x)
    small = fk.apply(model, plan, inplace=inplace)
    assert torch.allclose(small(x), expected, atol=1e-9)


class Beside(nn.Module):
    """As many heads as the output has places: only one of the two numbers in its code counts heads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bias = nn.Linear(5, HEADS * SIZE), nn.Linear(HEADS * SIZE, 2), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.a(x).view(len(x), HEADS, SIZE)
        heads = heads * heads.square().sum(-1, keepdim=True)
        made = self.b(heads.reshape(len(x), -1))[:, :, None] + self.bias[:, None].expand(-1, HEADS)
        return made * x[:, None, :HEADS]


def test_a_number_that_fills_a_dimension_may_be_another() -> None:
    torch.manual_seed(0)
    model, x = Beside().double().eval(), torch.randn(3, 5).double()
    units = fk.trace(model, x)
    assert heads(units) == [HEADS]
    assert {site.function for site in units.sites} == {"view"}
    plan = half(units)
    with plan.masked(model):
        assert difference(model, fk.apply(model, plan), x) < 1e-9


def test_a_proof_cuts_layers_of_one_size_unlike() -> None:
    """Layers that only hold together while they lose as many (one tensor of zeros is added to both) so fail."""
    torch.manual_seed(0)
    units = fk.trace(Language(TupleCache).double().eval(), torch.randint(0, 11, (2, 5)))
    first, second = (len(removed) for removed in about_half(units, 0))
    assert first != second
