"""Code that asks a tensor for its size and divides that by numbers of its own is answered as before the cut."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.compact.sites import SizedForward
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.prove import difference

LIMIT = 1e-9
TOKENS = (2, 5, 24)
Split = Callable[[Tensor], Tensor]


def by_division(x: Tensor) -> Tensor:
    b, n, c = x.shape
    return x.view(b, n, 4, c // 4).transpose(1, 2)


def by_last_size(x: Tensor) -> Tensor:
    return x.reshape(x.size(0), x.size(1), 4, x.size(-1) // 4).transpose(1, 2)


def checked(x: Tensor) -> Tensor:
    size = x.size()
    if size[-1] % 4:
        raise ValueError(f"{size[-1]} is not divisible by 4")
    return x.unflatten(dim=-1, sizes=(4, size[-1] // 4)).transpose(1, 2)


def checked_and_inferred(x: Tensor) -> Tensor:
    """No number follows but the one that is asked for."""
    if x.shape[-1] % 4:
        raise ValueError(f"{x.shape[-1]} is not divisible by 4")
    return x.unflatten(-1, (-1, 6)).transpose(1, 2)


def by_pattern(x: Tensor) -> Tensor:
    einops = pytest.importorskip("einops")
    return einops.rearrange(x, "b n (h d) -> b h n d", h=4)


SPLITS: dict[str, Split] = {
    "divided": by_division,
    "one at a time": by_last_size,
    "checked": checked,
    "checked, and inferred": checked_and_inferred,
    "einops": by_pattern,
}


class Attention(nn.Module):
    def __init__(self, split: Split) -> None:
        super().__init__()
        self.norm, self.split = nn.LayerNorm(24), split
        self.q, self.k, self.v, self.out = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (self.split(part) for part in (self.q(y), self.k(y), self.v(y)))
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return x + self.out(mixed.transpose(1, 2).flatten(2))


@pytest.fixture(params=SPLITS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return attention(request.param)


def attention(name: str = "divided") -> nn.Module:
    torch.manual_seed(0)
    return Attention(SPLITS[name]).double().eval()


def tokens(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def cut(model: nn.Module, fraction: float, units: fk.UnitMap | None = None) -> tuple[nn.Module, fk.Plan, fk.UnitMap]:
    units = units or fk.trace(model, tokens(*TOKENS))
    plan = fk.Plan(**vars(build(units, random_removal(units, fraction, seed=1))))
    return fk.apply(model, plan), plan, units


def test_exact(model: nn.Module) -> None:
    """Also where what is left does not divide, and on other batches."""
    units = None
    for fraction, left in ((0.3, 3), (0.5, 2), (0.8, 1)):
        small, plan, units = cut(model, fraction, units)
        assert [(g.kind, g.units, g.frozen) for g in units.groups] == [("head", 4, None)]
        assert small.get_parameter("q.weight").shape == (6 * left, 24)
        for batch in (tokens(*TOKENS), tokens(5, 3, 24), tokens(1, 5, 24)):
            with plan.masked(model):
                assert difference(model, small, batch) < LIMIT


def test_pruned_twice() -> None:
    model = attention()
    first, _, _ = cut(model, 0.3)
    second, plan, _ = cut(first, 0.5)
    assert second.get_parameter("q.weight").shape == (12, 24)
    with plan.masked(first):
        assert difference(first, second, tokens(*TOKENS)) < LIMIT


def test_copies_and_files(model: nn.Module, tmp_path: Path) -> None:
    small, plan, _ = cut(model, 0.3)
    fk.save_pruned(small, plan, tmp_path / "pruned")
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    read, batch = fk.load_pruned(copy.deepcopy(model), tmp_path / "pruned"), tokens(*TOKENS)
    for other in (copy.deepcopy(small), torch.load(file, weights_only=False), read):
        assert isinstance(other, SizedForward)
        assert torch.equal(other(batch), small(batch))


def test_compiled_around_and_exported(model: nn.Module) -> None:
    """What is compiled leaves the module out, and says so where nothing may be left out."""
    small, _, _ = cut(model, 0.3)
    net, batch = nn.Sequential(nn.Linear(24, 24).double(), small), tokens(*TOKENS)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(net, backend="eager")(batch), net(batch))
    exported = torch.export.export(net, (batch,), strict=False)
    assert torch.equal(exported.module()(batch), net(batch))
    with pytest.raises(Exception, match="answered with those before the cut"):
        torch.compile(small, backend="eager", fullgraph=True)(batch)


def test_questions_that_are_right_stay_unanswered() -> None:
    """Where the code divides by an attribute that follows the cut, nothing is changed."""

    class Follows(Attention):
        def __init__(self) -> None:
            super().__init__(self.by_attribute)
            self.num_heads = 4

        def by_attribute(self, x: Tensor) -> Tensor:
            b, n, c = x.shape
            return x.view(b, n, self.num_heads, c // self.num_heads).transpose(1, 2)

    small, plan, _ = cut(Follows().double().eval(), 0.5)
    assert plan.sites == ()
    assert not isinstance(small, SizedForward)
