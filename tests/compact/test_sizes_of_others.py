"""A number that code takes from the shape of another tensor, which shrinks otherwise: the size is given outright."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.compact.sites import install
from fairkern.plans.build import build
from fairkern.plans.removals import NONE, random_removal
from fairkern.prove import difference
from fairkern.types import SizeChange

LIMIT = 1e-9
IMAGE = (2, 3, 6, 6)


class Attention(nn.Module):
    """Attention over places, whose heads together are as wide as the stream: it views by the stream's width."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.key_dim = heads, 24 // heads, 12 // heads
        self.qkv, self.proj = nn.Conv2d(24, 48, 1), nn.Conv2d(24, 24, 1)
        self.pe = nn.Conv2d(24, 24, 3, padding=1, groups=24)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.num_heads, self.key_dim * 2 + self.head_dim, h * w)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        mixed = v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)
        return self.proj(mixed.view(b, c, h, w) + self.pe(v.reshape(b, c, h, w)))


class Net(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.attn, self.out = Attention(heads), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.out(x + self.attn(x))


def net(heads: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return Net(heads).double().eval()


def images(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def planned(units: fk.UnitMap, fraction: float, *groups: str) -> fk.Plan:
    """Of these groups, all without names, a share goes."""
    drawn = random_removal(units, fraction, seed=1)
    chosen = (r if not groups or g.name in groups else NONE for g, r in zip(units.groups, drawn, strict=True))
    return fk.Plan(**vars(build(units, list(chosen))))


@pytest.mark.parametrize(("heads", "left"), [(4, 4), (2, 2), (1, 24)], ids=["heads", "two", "one: what is in it"])
@pytest.mark.parametrize("samples", [1, 2])
def test_exact(heads: int, left: int, samples: int) -> None:
    """The stream and the heads go each by itself, and both; also on larger batches and images."""
    model = net(heads)
    units = fk.trace(model, images(samples, 3, 6, 6))
    assert [(g.name, g.units, g.frozen) for g in units.groups] == [("stem", 24, None), ("attn.qkv", left, None)]
    for groups in ((), ("stem",), ("attn.qkv",)):
        for fraction in (0.2, 0.5, 0.8):
            plan = planned(units, fraction, *groups)
            small = fk.apply(model, plan)
            for batch in (images(*IMAGE), images(5, 3, 4, 8)):
                with plan.masked(model):
                    assert difference(model, small, batch) < LIMIT


def test_only_what_needs_it_is_given_outright() -> None:
    """The number of heads is put right by its attribute; the two views by the stream's width are not."""
    units = fk.trace(net(), images(*IMAGE))
    assert [(s.at, s.place, s.outright) for s in units.sites] == [("view.2", 1, True), ("reshape.1", 1, True)]
    plan = planned(units, 0.5, "stem")
    assert [(s.before, s.after) for s in plan.sites] == [(24, 24), (24, 24)]
    assert build(units, [NONE, NONE]).sites == ()


def test_files(tmp_path: Path) -> None:
    model = net()
    units = fk.trace(model, images(*IMAGE))
    loader = [(images(*IMAGE), torch.arange(2)) for _ in range(2)]
    scores = fk.score(model, loader, units=units, loss_fn=lambda out, y: out.mean((2, 3)).logsumexp(1).sum())
    scores.save(tmp_path / "scores.safetensors")
    assert fk.Scores.load(tmp_path / "scores.safetensors").units.sites == units.sites
    assert all(s.outright for s in fk.Scores.load(tmp_path / "scores.safetensors").units.sites)
    plan = planned(units, 0.5, "stem")
    small = fk.apply(model, plan)
    fk.save_pruned(small, plan, tmp_path / "pruned")
    batch = images(*IMAGE)
    assert torch.equal(fk.load_pruned(net(), tmp_path / "pruned")(batch), small(batch))


def test_compiled() -> None:
    model, batch = net(), images(*IMAGE)
    plan = planned(fk.trace(model, batch), 0.5)
    small = fk.apply(model, plan)
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    assert torch.equal(compiled(batch), small(batch))


class Folded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 48, 3)


def test_a_multiple_is_refused() -> None:
    """More than there was before the cut cannot be the size of something else: something was folded into it."""
    model = nn.ModuleDict({"attn": Folded()})
    change = SizeChange("attn", None, "view", 1, 24, 12, "view.1", outright=True)
    install(model, [change], {"attn": [change.at]})
    with pytest.raises(fk.InputError, match=r"view\(2, 48, 3\)"):
        model["attn"](images(2, 48, 3))
