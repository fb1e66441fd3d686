"""From removed units to positions of axes and module attributes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fairkern.errors import InputError
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.types import AttributeChange, Axis, AxisGroup, GroupAxis, Plan, Silence, UnitMap
from tests.synthetic import chain, concat, residual, resnet50


def arrays(*lists: list[int]) -> list[np.ndarray]:
    return [np.array(entries, dtype=np.int64) for entries in lists]


def removed(plan: Plan) -> dict[str, list[int]]:
    return {str(a.axis): a.removed.tolist() for a in plan.axes}


def test_a_chain_by_hand() -> None:
    plan = build(chain((3, 2), classes=5, flat=2).build(), arrays([2, 0], [1]), {"by": "hand"}, {"extra": 1})
    vector = ("weight:0", "bias:0", "running_mean:0", "running_var:0")
    assert removed(plan) == {
        "features.0.conv.weight:0": [0, 2],
        **{f"features.0.norm.{name}": [0, 2] for name in vector},
        "features.1.conv.weight:0": [1],
        "features.1.conv.weight:1": [0, 2],
        **{f"features.1.norm.{name}": [1] for name in vector},
        "head.weight:1": [2, 3],
    }
    assert {str(a.axis) for a in plan.axes if a.consumer} == {"features.1.conv.weight:1", "head.weight:1"}
    assert {str(a.axis): a.length for a in plan.axes}["head.weight:1"] == 4
    assert [a.axis for a in plan.axes] == sorted(a.axis for a in plan.axes)
    assert plan.attributes == (
        AttributeChange("features.0.conv", "out_channels", 3, 1),
        AttributeChange("features.0.norm", "num_features", 3, 1),
        AttributeChange("features.1.conv", "in_channels", 3, 1),
        AttributeChange("features.1.conv", "out_channels", 2, 1),
        AttributeChange("features.1.norm", "num_features", 2, 1),
        AttributeChange("head", "in_features", 4, 2),
    )
    assert [(g.name, g.removed.tolist(), g.rate) for g in plan.groups] == [
        ("features.0.conv", [0, 2], 2 / 3),
        ("features.1.conv", [1], 1 / 2),
    ]
    assert plan.request == {"by": "hand"}
    assert plan.result == {
        "params_before": 3 * 3 * 9 + 6 + 3 * 2 * 9 + 4 + 4 * 5 + 5,
        "params_after": 3 * 9 + 2 + 9 + 2 + 2 * 5 + 5,
        "flops_before": 128 * (3 * 3 * 9 + 3 + 3 * 2 * 9 + 2) + 2 * 4 * 5,
        "flops_after": 128 * (3 * 9 + 1 + 9 + 1) + 2 * 2 * 5,
        "groups": 2,
        "groups_cut": 2,
        "units": 5,
        "units_removed": 3,
        "extra": 1,
        "serves": dict.fromkeys(("hf", "vllm", "gguf", "deci"), "no field of a configuration counts what can be cut"),
    }
    assert all(type(v) is int for v in plan.result.values() if not isinstance(v, dict))


def test_an_axis_gathers_positions_of_several_groups() -> None:
    """dense.0 has 3 channels, dense.1 units of two channels: the head reads image, dense.0, dense.1."""
    plan = build(concat((3, 2)).build(), arrays([1], [1]))
    assert removed(plan)["head.weight:1"] == [3 + 1, 3 + 3 + 2, 3 + 3 + 3]
    assert removed(plan)["dense.1.weight:0"] == [2, 3]
    assert removed(plan)["norm.1.weight:0"] == [4, 8, 9]
    only = build(concat((3, 2)).build(), arrays([], [0]))
    assert removed(only)["head.weight:1"] == [6, 7]
    assert "dense.0.weight:0" not in removed(only)


def shared_axis(*held: tuple[list[list[int]], bool]) -> UnitMap:
    """Groups that hold these positions of one axis of ten, each as consumer or not."""
    axis, empty = Axis("w", 0), chain((3,)).build()
    groups = tuple(
        AxisGroup(
            f"g{i}",
            "channel",
            len(places),
            (GroupAxis(axis, 10, np.array(places), Silence.ZERO if consumer else Silence.NONE),),
            (),
        )
        for i, (places, consumer) in enumerate(held)
    )
    return replace(empty, groups=groups, extents=(), params=(), flops=(), attributes=(), shapes={"w": (10,)})


@pytest.mark.parametrize(
    ("held", "gone", "positions", "consumer"),
    [
        ([([[0, 4], [1, 5], [2, 6]], False)], [[0, 2]], [0, 2, 4, 6], False),  # places of units interleave
        ([([[7], [8]], False), ([[0], [1]], True)], [[0], [1]], [1, 7], True),  # a later group lies in front
        ([([[7], [8]], True), ([[0], [1]], False)], [[0], [1]], [1, 7], True),
        ([([[7], [8]], True), ([[0], [1]], False)], [[], [1]], [1], False),  # only groups that are cut count
        ([([[7], [8]], False), ([[7], [1]], False)], [[0], [0]], [7], False),  # one place, held twice
    ],
)
def test_positions_of_one_axis_are_merged(
    held: list[tuple[list[list[int]], bool]], gone: list[list[int]], positions: list[int], consumer: bool
) -> None:
    (axis,) = build(shared_axis(*held), arrays(*gone)).axes
    assert (axis.removed.tolist(), axis.consumer, axis.length) == (positions, consumer, 10)
    assert axis.removed.dtype == np.int64


def test_nothing_removed() -> None:
    units = chain().build()
    plan = build(units, arrays([], [], []))
    assert (plan.axes, plan.attributes) == ((), ())
    assert plan.result["groups_cut"] == plan.result["units_removed"] == 0
    assert plan.shapes == units.shapes


def test_the_callers_arrays_stay_as_they_were() -> None:
    given = arrays([2, 0], [1])
    build(chain((3, 2)).build(), given)
    assert [a.tolist() for a in given] == [[2, 0], [1]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (arrays([0], []), "for 2 groups; the map has 5"),
        (arrays([0, 0], [], [], [], []), "expected distinct numbers from 0 to 11"),
        (arrays([12], [], [], [], []), "run from 12 to 12"),
        (arrays([-1], [], [], [], []), "run from -1"),
        (arrays([], [1], [], [], []), "'frozen' is frozen and cannot be cut: a LayerNorm runs over it"),
        (arrays([], [], list(range(6)), [], []), "6 of the 6 units of group 'layer0.0.conv1' would go"),
        ([np.array([0.0]), *arrays([], [], [], [])], "expected a flat array of integers"),
        ([np.array([True]), *arrays([], [], [], [])], "expected a flat array of integers"),
        ([np.array([[0]]), *arrays([], [], [], [])], "expected a flat array of integers"),
    ],
)
def test_units_that_cannot_go(given: list[np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(residual().build(), given)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(InputError, match="not a share"):
        random_removal(chain().build(), fraction, 0)


def test_positions_of_a_large_plan_match_its_units() -> None:
    units = resnet50().build()
    gone = random_removal(units, 0.4, seed=1)
    plan = build(units, gone)
    expected: dict[Axis, set[int]] = {}
    for group, units_ in zip(units.groups, gone, strict=True):
        for held in group.axes:
            expected.setdefault(held.axis, set()).update(held.positions[units_].ravel().tolist())
    assert {a.axis: set(a.removed.tolist()) for a in plan.axes} == expected
    for axis in plan.axes:
        assert (np.diff(axis.removed) > 0).all()
        assert axis.length == units.shapes[axis.axis.tensor][axis.axis.dim]
