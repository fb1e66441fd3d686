"""Everything may be called where autocast has been entered and holds casts of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.model.autocast import Ambient, without_autocast


class Inside(nn.Module):
    """A model that enters autocast itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.second(torch.relu(self.first(x)))


class Counting(nn.Module):
    """Writes to a weight whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 32), nn.Linear(32, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.second(torch.relu(self.first(x))))
        with torch.no_grad():
            self.last.weight.add_(1.0)
        return x


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))


def near(a: Tensor, b: Tensor) -> bool:
    return float((a.float() - b.float()).abs().max().detach()) < 0.02


def far(a: Tensor, b: Tensor) -> bool:
    return float((a.float() - b.float()).abs().max().detach()) > 0.1


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(16, 8)


@pytest.fixture
def warm(x: Tensor) -> Iterator[nn.Module]:
    """A model, within autocast, whose weights have been cast."""
    model = plain().eval()
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
        yield model
        assert torch.is_autocast_enabled("cpu")


def loader(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x, torch.arange(16) % 4), (x.flip(0), torch.arange(16) % 4)]


def test_masked(warm: nn.Module, x: Tensor) -> None:
    plan = fk.trace(warm, x).plan(keep_params=0.3)
    with without_autocast():
        whole = warm(x)
        with plan.masked(warm):
            masked = warm(x)
    assert far(whole, masked)
    for _ in range(2):
        assert near(warm(x), whole)
        with plan.masked(warm):
            assert near(warm(x), masked)
    assert near(warm(x), whole)


@pytest.mark.parametrize("kind", [plain, Inside])
def test_trace(kind: Any, x: Tensor) -> None:
    model = kind().eval()
    expected = fk.trace(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
        found = fk.trace(model, x)
        model(x)
        again = fk.trace(model, x, more=[x[:3]])
    assert found.proven
    for other in (found, again):
        assert [(g.name, g.units, g.frozen) for g in other.groups] == [
            (g.name, g.units, g.frozen) for g in expected.groups
        ]
        assert {f.reason for f in other.frozen} == {f.reason for f in expected.frozen}


def test_what_a_forward_pass_wrote_is_put_back_for_casts_too(x: Tensor) -> None:
    model = Counting().eval()
    expected = nn.Sequential(model.first, nn.ReLU(), model.second, model.last)(x).detach()
    before = model.last.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        fk.trace(model, x)
        assert torch.equal(model.last.weight, before)
        assert near(model(x), expected)


@pytest.mark.parametrize("compensate", ["none", "mean"])
def test_cut_in_place(warm: nn.Module, x: Tensor, compensate: str) -> None:
    scores = fk.score(warm, loader(x), F.cross_entropy, progress=False)
    warm(x)
    plan = scores.plan(keep_params=0.3)
    expected = fk.apply(warm, plan, compensate=compensate, scores=scores)(x)
    warm(x)
    fk.apply(warm, plan, compensate=compensate, scores=scores, inplace=True)
    assert near(warm(x), expected)


def test_scores_are_those_of_the_casted_model_and_no_sum_is_cast(warm: nn.Module, x: Tensor) -> None:
    """So all backends agree as they do without: to more digits than bfloat16 has."""
    made = [
        fk.score(warm, loader(x), F.cross_entropy, backend=b, gram=True, progress=False) for b in ("auto", "reference")
    ]
    for a, b in zip(*(scores.signals.values() for scores in made), strict=True):
        for left, right in zip(a, b, strict=True):
            assert left == pytest.approx(right, rel=1e-5, abs=1e-7)
    with without_autocast():
        exact = fk.score(warm, loader(x), F.cross_entropy, progress=False)
    taylor = made[0].signals["taylor"][0]
    assert taylor == pytest.approx(exact.signals["taylor"][0], rel=0.2, abs=0.02)
    assert (taylor != exact.signals["taylor"][0]).any()


@pytest.mark.parametrize("compensate", ["least_squares", "sequential"])
def test_fits_are_not_cast(warm: nn.Module, x: Tensor, compensate: str) -> None:
    with without_autocast():
        scores = fk.score(warm, loader(x), F.cross_entropy, gram=True, progress=False)
        plan = scores.plan(keep_params=0.5)
        expected = fk.apply(warm, plan, compensate=compensate, scores=scores, loader=loader(x))
    warm(x)
    found = fk.apply(warm, plan, compensate=compensate, scores=scores, loader=loader(x))
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_ambient() -> None:
    cpu = torch.device("cpu")
    assert Ambient.now(cpu).entered == ()
    with torch.autocast("cpu", torch.bfloat16):
        now = Ambient.now(cpu)
        with without_autocast():
            assert not torch.is_autocast_enabled("cpu")
            with now.again():
                assert torch.is_autocast_enabled("cpu")
                assert torch.get_autocast_dtype("cpu") == torch.bfloat16
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
