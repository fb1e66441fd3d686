"""How far groups may be cut, and which are not: counts by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fairkern.allocate.options import (
    Allocation,
    Planning,
    Target,
    ignored_groups,
    limits,
    parse_target,
    refuse_unknown,
)
from fairkern.errors import InputError
from fairkern.types import Axis, AxisGroup, GroupAxis, Silence, UnitMap


def layer(units: int, per_unit: int = 1, reads: int = 1, **more: Any) -> AxisGroup:
    """A group whose units are `reads` positions of a consumer and `per_unit` of what produces them."""
    consumer = GroupAxis(Axis("next.weight", 1), units * reads, np.zeros((units, reads), int), Silence.ZERO)
    producer = GroupAxis(Axis("own.weight", 0), units * per_unit, np.zeros((units, per_unit), int))
    return AxisGroup("own", "channel", units, (consumer, producer), (), **more)


def unit_map(*groups: AxisGroup, **shapes: tuple[int, ...]) -> UnitMap:
    return UnitMap("Net", groups, (), (), (), (), (), shapes)


def allowed(group: AxisGroup, ignored: bool = False, **options: Any) -> tuple[int, int, int]:
    """(most, first, step) of a group."""
    limit = limits(unit_map(group), frozenset([0] if ignored else []), Planning(**options))
    assert all(array.dtype == np.int64 for array in (limit.most, limit.first, limit.step))
    return int(limit.most[0]), int(limit.first[0]), int(limit.step[0])


@pytest.mark.parametrize(
    ("group", "options", "expected"),
    [
        (layer(10), {"max_remove": 0.5}, (5, 1, 1)),
        (layer(10), {}, (9, 1, 1)),
        (layer(300), {}, (297, 1, 1)),
        (layer(100), {"max_remove": 0.29}, (29, 1, 1)),
        (layer(10), {"max_remove": 0.1}, (1, 1, 1)),
        (layer(10), {"max_remove": 0.09}, (0, 1, 1)),
        (layer(10), {"min_keep": 4}, (6, 1, 1)),
        (layer(10), {"min_keep": 12}, (0, 1, 1)),
        (layer(10, least=5), {"min_keep": 2}, (5, 1, 1)),
        (layer(10, least=2), {"min_keep": 5}, (5, 1, 1)),
        (layer(10), {"round_to": 4}, (9, 2, 4)),
        (layer(12), {"round_to": 4}, (11, 4, 4)),
        (layer(10, per_unit=2), {"round_to": 4}, (9, 2, 2)),
        (layer(10, per_unit=2, reads=3), {"round_to": 6}, (9, 1, 3)),
        (layer(10, per_unit=8), {"round_to": 4}, (9, 1, 1)),
        (layer(12, multiple=4), {}, (11, 4, 4)),
        (layer(12, multiple=4), {"round_to": 6}, (11, 12, 12)),
        (layer(13, multiple=2), {"round_to": 3}, (12, 1, 6)),
        (layer(10, frozen="asked"), {"round_to": 4}, (0, 1, 1)),
    ],
)
def test_counts_that_may_go(group: AxisGroup, options: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert allowed(group, **options) == expected


def test_an_ignored_group_keeps_all() -> None:
    assert allowed(layer(10), ignored=True, round_to=4) == (0, 2, 4)


def test_units_that_nothing_produces_are_counted_where_they_are_read() -> None:
    read = GroupAxis(Axis("next.weight", 1), 12, np.zeros((6, 2), int), Silence.ZERO)
    assert allowed(AxisGroup("g", "channel", 6, (read,), ()), round_to=4) == (5, 2, 2)
    assert allowed(AxisGroup("g", "channel", 6, (), ()), round_to=4) == (5, 2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_remove": 0.0}, "max_remove=0.0 is not a share"),
        ({"max_remove": 1.0}, "between 0 and 1"),
        ({"max_remove": -0.5}, "between 0 and 1"),
        ({"max_remove": np.bool_(True)}, "max_remove is a bool"),
        ({"min_keep": 0}, "min_keep=0 is too small"),
        ({"min_keep": np.bool_(True)}, "expected a whole number"),
        ({"min_keep": 1.5}, "min_keep=1.5 is a float"),
        ({"round_to": 0}, "round_to=0 is too small"),
        ({"round_to": "8"}, "round_to='8' is a str"),
    ],
)
def test_limits_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        allowed(layer(10), **options)


def test_the_smallest_limits_are_allowed() -> None:
    assert allowed(layer(10), max_remove=np.float32(0.999), min_keep=np.int32(1), round_to=1) == (9, 1, 1)


def test_a_target_and_its_value() -> None:
    tod, uniform = Allocation.TOD, Allocation.UNIFORM
    assert parse_target(tod, 0, None, None) == (Target.TOD, 0.0)
    assert parse_target(tod, 1, None, None) == (Target.TOD, 1.0)
    assert parse_target(uniform, None, 1, None) == (Target.PARAMS, 1.0)
    assert parse_target(uniform, None, None, 0.25) == (Target.FLOPS, 0.25)
    assert parse_target(tod, None, None, None, 0.25) == (Target.LATENCY, 0.25)
    with pytest.raises(InputError, match="keep_latency=2 is not a share"):
        parse_target(tod, None, None, None, 2)
    with pytest.raises(InputError, match="got keep_flops and keep_latency"):
        parse_target(tod, None, None, 0.5, 0.5)


def test_unknown_keywords_are_told_what_is_near() -> None:
    refuse_unknown("plan", {"tod": 1, "ignore": 2}, ["tod"], ["ignore"])
    with pytest.raises(TypeError, match=r"plan got an unexpected keyword argument 'ignor'; did you mean ignore\?"):
        refuse_unknown("plan", {"tod": 1, "ignor": 2}, ["tod", "ignored"], ["ignore"])
    with pytest.raises(TypeError, match="argument 'zzz'; options are ignore, tod"):
        refuse_unknown("plan", {"zzz": 1}, ["tod"], ["ignore"])


def test_patterns_are_held_against_groups_modules_and_their_parents() -> None:
    def group(name: str, producer: str) -> AxisGroup:
        return AxisGroup(name, "channel", 2, (GroupAxis(Axis(f"{producer}.weight", 0), 2, np.zeros((2, 1))),), ())

    units = unit_map(group("a", "enc.0.fc"), group("b", "enc.1.fc"), group("c", "dec"), **{"head.out.weight": (2, 2)})
    for given, hit in (
        ("enc", {0, 1}),
        ("enc.0", {0}),
        ("enc.*", {0, 1}),
        (["a", "dec"], {0, 2}),
        (("b",), {1}),
        ("head", set()),
        ("head.out", set()),
        ([], set()),
    ):
        asked = Planning(ignore=given).ignore
        assert asked == ((given,) if isinstance(given, str) else tuple(given))
        assert ignored_groups(units, asked) == frozenset(hit)
    for wrong in ("ENC", "fc", "head.out.weight", "Net"):
        with pytest.raises(InputError, match=f"{wrong!r} matches no group and no module"):
            ignored_groups(units, ["enc", wrong])
