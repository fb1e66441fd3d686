"""Small models of several kinds, as they are and in shards, with plans for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import fairkern as fk
from fairkern.plans.build import build as planned
from fairkern.results import Plan
from tests.branching import Language, Residual, images, tokens
from tests.experts import Fused, Listed, build, samples


class Tied(nn.Module):
    """The head reads by the embedding's matrix, which is given to a function."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.last = nn.Parameter(torch.randn(6, 5) * 0.3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = x + self.down(torch.tanh(self.up(x)))
        return F.linear(torch.tanh(x @ self.last), self.last) @ self.embedding.weight.T


class Shared(nn.Module):
    """The head has the embedding's matrix, under two names; a frozen table, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.places = nn.Parameter(torch.randn(5, 6), requires_grad=False)
        self.register_buffer("scale", torch.rand(9), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.places[: ids.shape[1]]
        return self.head(x + self.down(torch.tanh(self.up(x)) * self.scale))


class Kind(NamedTuple):
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    depth: bool = False
    inner: Callable[[nn.Module], list[nn.Module]] = lambda model: []


def _seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return make().eval()

    return made


def _blocks(model: Any) -> list[nn.Module]:
    return list(model.blocks)


KINDS = {
    "layers": Kind(_seeded(Language), lambda k: tokens(6, seed=k), inner=_blocks),
    "depth": Kind(_seeded(Language), lambda k: tokens(6, seed=k), depth=True, inner=_blocks),
    "convolutions": Kind(
        _seeded(Residual),
        lambda k: images(6, seed=k),
        inner=lambda m: [*m.stage1, *m.stage2],  # type: ignore[union-attr]
    ),
    "fused experts": Kind(lambda: build(Fused), lambda k: samples(seed=k)[0], inner=lambda m: [m.experts]),
    "listed experts": Kind(lambda: build(Listed), lambda k: samples(seed=k)[0]),
    "shared": Kind(_seeded(Shared), lambda k: tokens(6, seed=k)),
    "a function": Kind(_seeded(Tied), lambda k: tokens(6, seed=k)),
}


def loss(output: Tensor, targets: Tensor) -> Tensor:
    """Of an output [samples, …] and a class per sample."""
    flat = output.flatten(1)
    return F.cross_entropy(flat[:, :3], targets)


def batches(kind: str, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    made = [KINDS[kind].inputs(k) for k in range(count)]
    return [(x, torch.arange(len(x)) % 3) for x in made]


def labels(batch: tuple[Tensor, Tensor]) -> Tensor:
    return batch[1]


def local(tensor: Any) -> Tensor:
    """A copy of what lies here."""
    return tensor.detach().to_local().clone()


@cache
def units(kind: str) -> fk.UnitMap:
    given = KINDS[kind]
    return fk.trace(given.make(), given.inputs(0)[:2], depth=given.depth)


@cache
def scores(kind: str) -> fk.Scores:
    """Of one process by itself."""
    return fk.score(
        KINDS[kind].make(),
        batches(kind),
        loss,
        units=units(kind),
        gram=True,
        progress=False,
        class_of=labels,
        ranks=False,
    )


@cache
def plan(kind: str) -> Plan:
    """Of every group something goes: of branches those of one block, so that it goes whole."""
    groups = [units(kind).groups[g] for g in units(kind).prunable]
    if KINDS[kind].depth:
        gone = [np.array([1]) if g.kind == "branch" else np.arange(0, g.units - 1, 3) for g in groups]
    else:
        gone = [np.stack([(np.arange(0, g.units - 1, 3) + k) % g.units for k in range(g.sets)]) for g in groups]
        gone = [np.sort(rows, -1) if len(rows) > 1 else rows[0] for rows in gone]
    found = dict(zip(units(kind).prunable, gone, strict=True))
    return Plan.of(planned(units(kind), [found.get(g, np.zeros(0, np.int64)) for g in range(len(units(kind).groups))]))


def sharded(kind: str, model: nn.Module | None = None, **options: Any) -> Any:
    """In shards: its inner modules each by itself, the rest together."""
    model = KINDS[kind].make() if model is None else model
    for module in KINDS[kind].inner(model):
        fully_shard(module, **options)
    return fully_shard(model, **options)


def message(call: Callable[[], object]) -> str:
    """Of the InputError that it raises."""
    try:
        call()
    except fk.InputError as error:
        return str(error)
    raise AssertionError("no InputError")


def same(small: nn.Module, other: nn.Module) -> None:
    """Asserts that a model in shards has the tensors of another one, to the bit, and gives what it gives."""
    mine, theirs = small.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        assert torch.equal(whole, theirs[name]), name
