"""Costs against counts made without the map's terms."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from fairkern.plans.build import build
from fairkern.plans.cost import Cost, per_unit
from fairkern.plans.removals import random_removal
from fairkern.types import CostTerm, Extent, UnitMap
from tests.synthetic import Sketch, chain, concat, residual, resnet50

SKETCHES = {"chain": chain, "concat": concat, "residual": residual}


def shrunk_params(units: UnitMap, removed: list[np.ndarray]) -> int:
    """Parameters left, counted from the shapes that the plan leaves."""
    shapes = {name: list(shape) for name, shape in units.shapes.items()}
    for axis in build(units, removed).axes:
        shapes[axis.axis.tensor][axis.axis.dim] -= len(axis.removed)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(buffers))


def draw_removal(sketch: Sketch, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [
        np.sort(generator.permutation(g.units)[: generator.integers(0, g.units) if g.frozen is None else 0])
        for g in sketch.groups
    ]


@pytest.mark.parametrize("name", SKETCHES)
@pytest.mark.parametrize("seed", range(8))
def test_cost_equals_a_count_over_shrunken_shapes(name: str, seed: int) -> None:
    sketch = SKETCHES[name]()
    units = sketch.build()
    removed = draw_removal(sketch, seed)
    counts = np.array([len(r) for r in removed])
    assert Cost(units, units.params)(counts) == shrunk_params(units, removed)
    assert Cost(units, units.flops)(counts) == sketch.flops(counts.tolist())


def test_resnet50_is_whole() -> None:
    units = resnet50().build()
    assert Cost(units, units.params)(np.zeros(len(units.groups), np.int64)) == 25_557_032
    assert len(units.shapes) == 320


@pytest.mark.parametrize("name", SKETCHES)
@pytest.mark.parametrize("seed", range(4))
def test_change_is_the_difference_of_two_evaluations(name: str, seed: int) -> None:
    sketch = SKETCHES[name]()
    units = sketch.build()
    generator = np.random.default_rng(seed)
    removed = np.array([len(r) for r in draw_removal(sketch, seed)])
    returned = generator.integers(-1, removed + 1)
    for terms in (units.params, units.flops):
        cost = Cost(units, terms)
        for g, growth in enumerate(cost.change(removed, returned)):
            alone = removed.copy()
            alone[g] -= returned[g]
            assert growth == cost(alone) - cost(removed)


def test_per_unit_of_a_chain_by_hand() -> None:
    units = chain(widths=(8, 12), classes=5, flat=4).build()
    params, flops = per_unit(units)
    # conv 0: a row of 3·9 weights, two norm entries, a column of 12·9 in conv 1
    assert params.tolist() == [3 * 9 + 2 + 12 * 9, 8 * 9 + 2 + 5 * 4]
    assert flops.tolist() == [
        2 * 64 * (3 * 9 + 12 * 9) + 2 * 64,
        2 * 64 * 8 * 9 + 2 * 64 + 2 * 5 * 4,
    ]


def extents_and_terms() -> st.SearchStrategy[tuple[list[Extent], list[CostTerm]]]:
    parts = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=4).map(tuple)
    extents = st.lists(st.builds(Extent, st.integers(100, 200), parts), min_size=1, max_size=6)
    return extents.flatmap(
        lambda found: st.tuples(
            st.just(found),
            st.lists(
                st.builds(
                    CostTerm,
                    st.integers(0, 9).map(float),
                    st.lists(st.integers(0, len(found) - 1), max_size=4).map(tuple),
                ),
                max_size=8,
            ),
        )
    )


@settings(max_examples=150, deadline=None)
@given(extents_and_terms(), st.lists(st.integers(0, 7), min_size=3, max_size=3))
def test_any_terms_equal_the_definition(drawn: tuple[list[Extent], list[CostTerm]], removed: list[int]) -> None:
    """Repeated groups and extents, empty parts, zero weights, products of any arity."""
    extents, terms = drawn
    group = residual().build().groups[0]
    units = UnitMap("Any", (group,) * 3, (), tuple(extents), tuple(terms), (), (), {})
    sizes = [e.length - sum(w * removed[g] for g, w in e.parts) for e in extents]
    expected = sum(t.coefficient * math.prod(sizes[e] for e in t.extents) for t in terms)
    cost = Cost(units, terms)
    assert cost(np.array(removed)) == expected
    back = cost.change(np.array(removed), np.array([1, 0, 0]))
    grown = [e.length - sum(w * (removed[g] - (g == 0)) for g, w in e.parts) for e in extents]
    assert back[0] == sum(t.coefficient * math.prod(grown[e] for e in t.extents) for t in terms) - expected
    assert back[1:].tolist() == [0.0, 0.0]


def test_random_removal_stays_within_the_groups() -> None:
    sketch = residual()
    units = sketch.build()
    for fraction in (0.0, 0.3, 0.7, 1.0):
        removed = random_removal(units, fraction, seed=3)
        for group, gone in zip(units.groups, removed, strict=True):
            expected = min(max(int(fraction * group.units), 1), group.units - 1) if group.frozen is None else 0
            assert len(gone) == expected
            assert (np.diff(gone) > 0).all()
    first, second, other = (random_removal(units, 0.5, seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
