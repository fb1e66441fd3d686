"""Modules that make other calls from one run to the next: a size site knows each way that a trace saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.prove import difference

LIMIT = 1e-9


def cut(model: nn.Module, x: Any, *more: Any, fraction: float = 0.5) -> tuple[nn.Module, fk.Plan, fk.UnitMap]:
    units = fk.trace(model, x, more=more)
    plan = fk.Plan(**vars(build(units, random_removal(units, fraction, seed=1))))
    return fk.apply(model, plan), plan, units


def tokens(n: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, n, 24, dtype=torch.float64)


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(24, 24), nn.Linear(24, 24)


class OneToken(Mixer):
    """Prefill, and one token: other functions, other numbers of sizes."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        if n == 1:
            y = self.up(x).squeeze(1).view(b, 4, 6).softmax(-1)
            return x + self.down(y.reshape(b, 24)).unsqueeze(1)
        a, c = torch.split(self.up(x), [12, 12], dim=-1)
        y = torch.cat([a, c], -1).view(b, n, 4, 6).softmax(-1)
        return x + self.down(y.reshape(b, n, 24))


class Swapped(Mixer):
    """The same functions with as many numbers, the heads in another place."""

    def forward(self, x: Tensor, last: bool = False) -> Tensor:
        b, n, _ = x.shape
        y = self.up(x).view(b, n, 4, 6).softmax(-1) if last else self.up(x).view(b, -1, 1, 24).relu()
        return x + self.down(y.reshape(b, n, 24))


class Loop(Mixer):
    """As many steps as the input is long."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.up(x)
        state = y.new_zeros(b, 4, 6)
        out = []
        for t in range(n):
            state = state * 0.5 + y[:, t].view(b, 4, 6).softmax(-1)
            out.append(state.reshape(b, 24))
        return x + self.down(torch.stack(out, 1))


class Listed(Mixer):
    """A list of pieces whose number depends on the input, each with its own view."""

    def forward(self, x: Tensor) -> Tensor:
        pieces = [piece.view(len(x), -1, 4, 6).softmax(-1) for piece in self.up(x).split(2, dim=1)]
        return x + self.down(torch.cat([piece.reshape(len(x), -1, 24) for piece in pieces], 1))


def piece(x: Tensor, heads: int) -> Tensor:
    return x.view(x.shape[0], -1, heads, 6).softmax(-1).flatten(2)


class Shared(Mixer):
    """One function called for what is cut and for what is not."""

    def forward(self, x: Tensor) -> Tensor:
        return x + piece(x, 4) + self.down(piece(self.up(x), 4))


PATHS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "one token": (OneToken, (tokens(5), tokens(1))),
    "a flag": (Swapped, (tokens(5), {"x": tokens(5), "last": True})),
    "a loop": (Loop, (tokens(5), tokens(3))),
    "a list": (Listed, (tokens(5), tokens(2))),
    "a function that two paths share": (Shared, (tokens(5), tokens(1))),
}


@pytest.mark.parametrize("name", PATHS)
def test_every_path(name: str) -> None:
    make, runs = PATHS[name]
    model = make().double().eval()
    for fraction in (0.3, 0.6):
        small, plan, units = cut(model, *runs, fraction=fraction)
        assert all(g.frozen is None for g in units.groups), units.explain()
        assert plan.sites
        for run in runs:
            with plan.masked(model):
                assert difference(model, small, run) < LIMIT


@pytest.mark.parametrize("name", ["a loop", "a list"])
def test_more_steps_than_were_traced(name: str) -> None:
    """One run is enough where every step takes the same sizes."""
    make, (x, *_) = PATHS[name]
    model = make().double().eval()
    small, plan, _ = cut(model, x)
    for n in (1, 2, 5, 8):
        with plan.masked(model):
            assert difference(model, small, tokens(n)) < LIMIT


@pytest.mark.parametrize("name", PATHS)
def test_saved_and_read(name: str, tmp_path: Any) -> None:
    make, runs = PATHS[name]
    model = make().double().eval()
    small, plan, _units = cut(model, *runs)
    fk.save_pruned(small, plan, tmp_path / "small")
    again = fk.load_pruned(make().double().eval(), tmp_path / "small")
    assert fk.Plan.load(tmp_path / "small" / "plan.json").seen == plan.seen
    for run in runs:
        assert difference(small, again, run) == 0


@pytest.mark.parametrize("name", PATHS)
def test_compiled(name: str) -> None:
    make, runs = PATHS[name]
    model = make().double().eval()
    small, _, _ = cut(model, *runs)
    torch.compiler.reset()
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    for run in runs:
        given = run if isinstance(run, dict) else {"x": run}
        assert torch.equal(compiled(**given), small(**given))


class Unseen(Mixer):
    """A way that no example input takes."""

    def __init__(self, way: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor, other: bool = False) -> Tensor:
        y = self.up(x).view(*x.shape[:2], 4, 6).softmax(-1)
        y = self.way(x, y) if other else y.flatten(2)
        return x + self.down(y)


HARMLESS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "no number that has changed": lambda x, y: y.view(x.shape[0], x.shape[1], -1),
    "numbers that are the tensor's": lambda x, y: y.flatten(2) + x.reshape(-1, 24).sum(),
    "a batch as large as what has changed": lambda x, y: y.flatten(2).view(4, -1, y.shape[2] * y.shape[3]),
    "all numbers given, and right": lambda x, y: y.flatten(2) + x.reshape(x.shape[0] * x.shape[1], 4, 6).amax(),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_an_unseen_path_runs_where_no_number_has_to_change(name: str) -> None:
    model = Unseen(HARMLESS[name]).double().eval()
    small, plan, _ = cut(model, tokens(5))
    run = {"x": tokens(5, batch=4), "other": True}
    with plan.masked(model):
        assert difference(model, small, run) < LIMIT


@pytest.mark.parametrize("way", [lambda x, y: y.reshape(*x.shape[:2], 24), lambda x, y: y.view(-1, 4, 6).flatten(1)])
def test_an_unseen_path_that_cannot_be_known_is_refused(way: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = Unseen(way).double().eval()
    small, _, _ = cut(model, tokens(5))
    with pytest.raises(fk.InputError, match=r"was not made when it was traced, and (24|4) may count.*more="):
        small(tokens(5), other=True)


def test_calls_in_train_mode_only() -> None:
    """The module's own code may make other calls in train mode, before those that were traced."""

    class Dropped(Mixer):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                x = x * x.new_empty(x.shape[0], 1, 1).view(-1, 1, 1).fill_(2.0)
            return x + self.down(self.up(x).view(*x.shape[:2], 4, 6).softmax(-1).reshape(*x.shape[:2], 24))

    model = Dropped().double().eval()
    x = tokens(5)
    small, plan, _ = cut(model, x)
    model.train(), small.train()
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT


def test_a_function_that_train_mode_calls_by_another_way() -> None:
    """The calls that a function makes are known wherever it is called from, if they are all alike."""

    class Other(Mixer):
        def heads(self, x: Tensor) -> Tensor:
            return self.up(x).view(*x.shape[:2], 4, 6).softmax(-1).reshape(*x.shape[:2], 24)

        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                return x + self.down(self.heads(x))
            run = self.heads
            return x + self.down(run(x) * F.relu(x).new_ones(()))

    model = Other().double().eval()
    x = tokens(5)
    small, plan, _ = cut(model, x)
    model.train(), small.train()
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT


def test_modules_added_after_the_cut_are_their_own() -> None:
    """A wrapper around a layer, as adapters are, makes calls of its own code."""

    class Adapter(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x.view(-1, 4, 6).reshape(x.shape))

    model = OneToken().double().eval()
    small, _, _ = cut(model, tokens(5))
    x = tokens(5)
    expected = small(x)
    small.up = Adapter(small.up)
    assert torch.equal(small(x), expected)
