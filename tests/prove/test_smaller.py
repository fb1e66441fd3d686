"""Proofs on smaller images: where a model does the same on them, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.axes import Solution, solutions
from fairkern.deadline import NO_LIMIT
from fairkern.prove import strategy
from fairkern.types import UnitMap

FULL, SMALL = 128, 64
SEEN: list[int] = []  # sides of the images of runs in float64


@pytest.fixture(autouse=True)
def seen() -> Iterator[None]:
    SEEN.clear()
    yield
    SEEN.clear()


class Net(nn.Module):
    """Three convolutions of stride 2 with norms, a mean over space, a linear layer."""

    def __init__(self, strides: int = 2) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, strides, 1), nn.Conv2d(8, 12, 3, strides, 1)
        self.norm, self.third = nn.BatchNorm2d(12), nn.Conv2d(12, 10, 3, strides, 1)
        self.out = nn.Linear(10, 4)

    def features(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(self.first(x).relu())).relu()
        return self.third(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            SEEN.append(x.shape[-1])
        return self.out(self.features(x).mean((2, 3)))


class Sized(Net):
    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        return x * 2 if x.shape[-1] > 8 else x


class Counted(Net):
    """A place of its features counts how many channels it takes; as many as there are."""

    def features(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.third(self.norm(self.second(x[:, : x.shape[-1] // 8])).relu()).relu()


class Numbered(Net):
    """A number of its own that is the number of channels, and that of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 16
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 12, 3, 2, 1)

    def features(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = x.reshape(len(x), self.number, -1).reshape(x.shape)
        return self.third(self.norm(self.second(x)).relu()).relu()


class Crossed(Net):
    """Two layers of one shape, in the other order on smaller images."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(10, 10, 1), nn.Conv2d(10, 10, 1)

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        layers = (self.one, self.other) if x.shape[-1] > 8 else (self.other, self.one)
        return layers[1](layers[0](x).relu()).relu()


class Scaled(Net):
    """A number that is read on smaller images alone, in place of another."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.little = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        return x * (self.scale if x.shape[-1] > 8 else self.little)


class Normed(Net):
    """Statistics that are read on smaller images alone, in place of others."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("little", torch.zeros(1))

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        return x - (self.mean if x.shape[-1] > 8 else self.little)


def images(side: int = FULL) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def whole(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> UnitMap:
    with monkeypatch.context() as patch:
        patch.setattr(strategy, "_on_smaller", lambda *_: None)
        return fk.trace(model, x)


@pytest.mark.parametrize("kind", [Net, Sized, Counted, Numbered])
def test_the_map_is_that_of_a_proof_on_the_inputs(kind: type[Net], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = kind()
    found = fk.trace(model, images())
    sides = set(SEEN)
    expected = whole(model, images(), monkeypatch)
    assert found.proven
    assert found.explain() == expected.explain()
    assert found.notes == expected.notes
    for mine, theirs in zip(found.groups, expected.groups, strict=True):
        assert (mine.name, mine.frozen, mine.units) == (theirs.name, theirs.frozen, theirs.units)
    assert sides == ({SMALL} if kind is Net else {FULL}), "another way, or a number, on smaller ones"


@pytest.mark.parametrize(("kind", "unused"), [(Crossed, []), (Scaled, ["little"]), (Normed, [])])
def test_other_parameters_on_smaller_images_are_seen(kind: type[Net], unused: list[str]) -> None:
    torch.manual_seed(0)
    assert fk.trace(kind(), images(), unused=unused).proven
    assert set(SEEN) == {FULL}, "a proof of what other parameters do"


def test_images_that_would_end_in_one_place_stay() -> None:
    fk.trace(Net(4), images())
    assert set(SEEN) == {FULL}


def test_what_is_small_stays() -> None:
    fk.trace(Net(), images(80))
    assert set(SEEN) == {80}


def test_a_wrong_map_is_seen_on_smaller_images_too() -> None:
    torch.manual_seed(0)
    model = Net()
    certain, _ = solutions(model, [images()], dare=True)
    assert certain.smaller[0].shape == (2, 3, SMALL, SMALL)
    for g, group in enumerate(certain.units.groups):
        for k, held in enumerate(group.axes):
            if held.consumer:
                continue
            wrong = [*group.axes]
            wrong[k] = replace(held, positions=np.roll(held.positions, 1, axis=0))
            groups = [*certain.units.groups]
            groups[g] = replace(group, axes=tuple(wrong))
            mutant: Solution = replace(certain, units=replace(certain.units, groups=tuple(groups)))
            assert strategy._on_smaller(model, mutant, None, [images()], 0, NO_LIMIT) is None, held.axis
            units = strategy.proven(model, mutant, None, [images()], 0, NO_LIMIT)
            assert [h for h, x in enumerate(units.groups) if x.frozen] == [g], held.axis
