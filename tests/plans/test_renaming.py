"""Modules of a list that stay move up, and their names with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

import fairkern as fk
from bench.zoo.mixtures import Mixture, OneHot
from fairkern.plans.build import build
from fairkern.plans.renaming import Renaming, cut_lists
from fairkern.types import Axis, Plan, PlanAxis, Silence
from tests.listed import UNEVEN, X, experts_of, net, size


def test_names_move_up_and_back() -> None:
    model = net(OneHot, sizes=UNEVEN)
    units = fk.trace(model, X)
    first = experts_of(units)[0]
    removed = [np.array([0, 3]) if g == first else np.zeros(0, int) for g in range(len(units.groups))]
    renaming = Renaming(build(units, removed))
    assert renaming.after("layers.0.experts.1.up.weight") == "layers.0.experts.0.up.weight"
    assert renaming.after("layers.0.experts.4") == "layers.0.experts.2"
    assert renaming.after("layers.0.experts.3.up.weight") is None
    assert renaming.after("layers.1.experts.3.up.weight") == "layers.1.experts.3.up.weight"
    assert renaming.after("layers.0.experts") == "layers.0.experts"
    assert renaming.before("layers.0.experts.2.down") == "layers.0.experts.4.down"
    assert renaming.before("head.weight") == "head.weight"


def cut(*lists: tuple[str, tuple[str, ...], list[int]]) -> Plan:
    """A plan that takes these out of lists: path, names, places."""
    axes = tuple(PlanAxis(Axis(path, 0), len(names), np.array(gone), Silence.NONE) for path, names, gone in lists)
    return Plan("Net", (), axes, (), {}, lists={path: names for path, names, _ in lists})


def test_names_of_a_list_are_those_that_it_has() -> None:
    """Entries of a `ModuleDict`: what stays takes the names in front."""
    renaming = Renaming(cut(("experts", ("a", "b", "c", "d"), [1])))
    assert [renaming.after(f"experts.{name}.up") for name in "abcd"] == [
        "experts.a.up",
        None,
        "experts.b.up",
        "experts.c.up",
    ]
    assert [renaming.before(f"experts.{name}.up") for name in "abc"] == ["experts.a.up", "experts.c.up", "experts.d.up"]
    assert renaming.after("experts.b") is None
    for other in ("experts", "experts.z.up", "experts2.b.up", "net.experts.b.up", "b"):
        assert renaming.after(other) == other
        assert renaming.before(other) == other
    assert renaming.before("experts.d.up") == "experts.d.up", "no such entry is left"


def test_lists_that_lose_something_are_told_outer_ones_first() -> None:
    names = ("0", "1", "2")
    plan = cut(("net.experts.1.experts", names, [0]), ("experts", names, [0, 2]), ("others", names, []))
    found = cut_lists(plan)
    assert [(c.path, c.stays, c.goes) for c in found] == [
        ("experts", ("1",), ("0", "2")),
        ("net.experts.1.experts", ("1", "2"), ("0",)),
    ]
    assert cut_lists(replace(plan, lists={})) == []


def test_experts_within_experts_are_named_from_outside_in() -> None:
    class Nested(Mixture):
        """Each expert is a mixture of its own."""

        def __init__(self, width: int = 8) -> None:
            super().__init__(width, (4, 4, 4))
            self.experts = nn.ModuleList(OneHot(width, (3, 4, 5, 6)) for _ in range(3))

        forward = OneHot.forward

    model = net(Nested, layers=1).double()
    units = fk.trace(model, X.double())
    names = [units.groups[g].name for g in experts_of(units)]
    assert names == ["layers.0.experts", *(f"layers.0.experts.{e}.experts" for e in range(3))]
    removed = [
        np.array([] if group.kind != "expert" else [0] if group.name == "layers.0.experts" else [1], dtype=np.int64)
        for group in units.groups
    ]
    plan = fk.Plan(**vars(build(units, removed)))
    small = fk.apply(model, plan)
    assert [len(e.experts) for e in small.layers[0].experts] == [3, 3]
    assert size(small) == plan.result["params_after"]
    assert Renaming(plan).after("layers.0.experts.2.experts.3.up.weight") == "layers.0.experts.1.experts.2.up.weight"
    assert Renaming(plan).before("layers.0.experts.1.experts.2.up") == "layers.0.experts.2.experts.3.up"
    with plan.masked(model):
        torch.testing.assert_close(model(X.double()), small(X.double()), rtol=1e-9, atol=1e-12)
