"""What else a plan changes: attributes, configuration, call sites, replacements, lists; and what it reports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fairkern.errors import InputError
from fairkern.plans.build import build
from fairkern.types import (
    AttributeChange,
    Axis,
    AxisGroup,
    ConfigChange,
    ConfigField,
    CostTerm,
    Entries,
    Extent,
    GroupAxis,
    Plan,
    Replacement,
    Silence,
    SizeAttribute,
    SizeSite,
    UnitMap,
)
from tests.plans.maps import gone, group, held, unit_map


def two(**more: object) -> UnitMap:
    """Groups a of 4 and b of 8 units, their extents, and one that does not move."""
    extents = (Extent(4, ((0, 1),)), Extent(16, ((1, 2),)), Extent(7, ()))
    return unit_map(group("a", 4), group("b", 8), extents=extents, **more)


def test_an_attribute_changes_where_all_that_it_stands_for_agree() -> None:
    attributes = (
        SizeAttribute("net", "width", 0),
        SizeAttribute("net", "width", 0),
        SizeAttribute("net", "both", 0),
        SizeAttribute("net", "both", 1),
        SizeAttribute("net", "fixed", 2),
        SizeAttribute("other", "width", 1),
    )
    plan = build(two(attributes=attributes), gone([1], [0, 5]))
    assert plan.attributes == (AttributeChange("net", "width", 4, 3), AttributeChange("other", "width", 16, 12))


def config(*removed: list[int], fixed: bool = False, groups: tuple[int, ...] = (0, 1), size: int = 8) -> Plan:
    return build(two(config=(ConfigField("width", None, size, groups, fixed),)), gone(*removed))


def test_a_field_of_the_configuration_follows_groups_that_agree() -> None:
    assert config([1], [0, 1]).config == (ConfigChange("width", None, 6),)
    assert config([1], [], groups=(0,)).config == (ConfigChange("width", None, 6),)
    assert config([1], [0, 1], fixed=True).config == (ConfigChange("width", None, 8),)
    assert "config_left" not in config([1], [0, 1]).result
    assert config([], []).config == ()


@pytest.mark.parametrize(
    ("removed", "size"),
    [
        (([1], [0]), 8),  # a quarter and an eighth
        (([1], []), 8),
        (([1], [0, 1]), 6),  # four and a half
    ],
)
def test_a_field_that_no_number_fits_is_left_and_said(removed: tuple[list[int], list[int]], size: int) -> None:
    plan = config(*removed, size=size)
    assert plan.config == ()
    assert plan.result["config_left"] == ["width"]


def test_fields_after_one_that_stays_are_changed() -> None:
    fields = (ConfigField("b", 8, 8, (1,)), ConfigField("a", 4, 4, (0,)))
    assert build(two(config=fields), gone([3], [])).config == (ConfigChange("a", 4, 3),)


def test_sites_pass_the_sizes_that_are_left() -> None:
    seen = {"net": ("view",), "other": ("reshape",), "third": ("split",)}
    sites = (
        SizeSite("net", 0, "view", 1, 0, at="here"),
        SizeSite("other", None, "reshape", 2, 1),
        SizeSite("third", 0, "split", 0, 1, outright=True),
        SizeSite("fourth", 0, "split", 0, 1),
    )
    units = two(sites=sites, seen=seen)
    plan = build(units, gone([1], []))
    told = [(s.module, s.call, s.function, s.place, s.before, s.after, s.at, s.outright) for s in plan.sites]
    assert told == [("net", 0, "view", 1, 4, 3, "here", False), ("third", 0, "split", 0, 16, 16, "", True)]
    assert plan.seen == {"net": ("view",), "third": ("split",)}
    assert build(units, gone([], [])).sites == ()
    assert build(units, gone([], [0])).seen == {"other": ("reshape",), "third": ("split",)}


def test_modules_are_replaced_where_something_below_them_is_cut() -> None:
    replacements = (
        Replacement("a", "A"),
        Replacement("b", "B"),
        Replacement("b.weight", "C"),
        Replacement("", "Whole"),
    )
    units = two(replacements=replacements)
    assert [r.name for r in build(units, gone([0], [])).replacements] == ["A", "Whole"]
    assert [r.name for r in build(units, gone([], [0])).replacements] == ["B", "Whole"]
    assert build(units, gone([], [])).replacements == ()


def mixture(**more: object) -> UnitMap:
    """Three experts x, y, z in a list, each with units of its own."""
    names = ("x", "y", "z")
    whole = AxisGroup("experts", "expert", 3, (held("experts", 0, 3),), ())
    return unit_map(
        whole, *(group(f"experts.{n}", 4, kind="neuron") for n in names), lists={"experts": Entries(names, 8)}, **more
    )


def test_what_is_in_an_expert_goes_with_it() -> None:
    extents = (*(Extent(4, ((1 + k, 1),)) for k in range(3)), Extent(3, ((0, 1),)))
    units = mixture(
        extents=extents,
        attributes=(
            *(SizeAttribute(f"experts.{n}", "width", k) for k, n in enumerate("xyz")),
            SizeAttribute("", "n", 3),
        ),
        sites=tuple(SizeSite(f"experts.{n}", 0, "view", 0, k) for k, n in enumerate("xyz")),
    )
    plan = build(units, gone([1], [0], [0, 1], []))
    assert [(str(a.axis), a.removed.tolist()) for a in plan.axes] == [("experts:0", [1]), ("experts.x.weight:0", [0])]
    assert plan.attributes == (AttributeChange("experts.x", "width", 4, 3), AttributeChange("", "n", 3, 2))
    assert [s.module for s in plan.sites] == ["experts.x"]
    assert plan.lists == {"experts": ("x", "y", "z")}
    assert [g.removed.tolist() for g in plan.groups] == [[1], [0], [0, 1], []]
    assert build(units, gone([], [0], [], [])).lists == {}


def test_costs_are_of_the_experts_that_go() -> None:
    """The three of them have 1, 10 and 100 parameters."""
    extents = tuple(Extent(1, ((0, 1),), unit=k) for k in range(3))
    terms = tuple(CostTerm(float(10**k), (k,)) for k in range(3))
    units = mixture(extents=extents, params=terms, flops=(*terms, CostTerm(0.5, ())))
    for removed, left in (([1], 101), ([0, 2], 10), ([], 111)):
        result = build(units, gone(removed, [], [], [])).result
        assert (result["params_before"], result["params_after"]) == (111, left)
        assert (result["flops_before"], result["flops_after"]) == (111.5, left + 0.5)
        assert isinstance(result["params_after"], int)


def sets(*held_places: GroupAxis, units: int = 3, least: int = 1) -> UnitMap:
    return unit_map(AxisGroup("inner", "expert neuron", units, held_places, (), sets=2, least=least))


def test_rows_of_a_group_with_sets_are_kept_apart() -> None:
    pairs = GroupAxis(Axis("up", 1), 6, np.array([[0, 3], [1, 4], [2, 5]]), Silence.NONE)
    plan = build(sets(held("down", 2, 3, Silence.ZERO), pairs), gone([[2, 0], [1, 2]]))
    found = {str(a.axis): (a.removed.tolist(), a.consumer, a.length) for a in plan.axes}
    assert found == {
        "down:2": ([[0, 2], [1, 2]], True, 3),
        "up:1": ([[0, 2, 3, 5], [1, 2, 4, 5]], False, 6),
    }
    (own,) = plan.groups
    assert (own.sets, own.removed.tolist()) == (2, [[0, 2], [1, 2]])
    assert plan.result["units"] == 6
    assert plan.result["units_removed"] == 4


def test_a_group_with_sets_shares_an_axis_with_one_without() -> None:
    """What all sets lose, beside what each loses for itself."""
    inner = AxisGroup("inner", "neuron", 2, (GroupAxis(Axis("w", 1), 5, np.array([[0], [4]])),), (), sets=3)
    common = AxisGroup("common", "neuron", 2, (GroupAxis(Axis("w", 1), 5, np.array([[2], [1]]), Silence.ZERO),), ())
    for units, removed in ((unit_map(inner, common), gone([[0], [1], [0]], [1])),
                           (unit_map(common, inner), gone([1], [[0], [1], [0]]))):  # fmt: skip
        (axis,) = build(units, removed).axes
        assert axis.removed.tolist() == [[0, 1], [1, 4], [0, 1]]
        assert axis.silence is Silence.ZERO


def test_the_first_way_to_silence_an_axis_is_taken() -> None:
    def part(name: str, place: int, silence: Silence) -> AxisGroup:
        return AxisGroup(
            name, "expert", 2, (GroupAxis(Axis("w", 0), 4, np.array([[place], [place + 1]]), silence),), ()
        )

    units = unit_map(part("a", 0, Silence.NONE), part("b", 2, Silence.MINUS_INFINITY))
    assert [a.silence for a in build(units, gone([0], [0])).axes] == [Silence.MINUS_INFINITY]
    assert [a.silence for a in build(units, gone([0], [])).axes] == [Silence.NONE]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[0, 1]], r"expected integers \[2, count\], a row per set"),
        ([[0], [1], [2]], r"int64 of shape \(3, 1\); expected integers \[2, count\]"),
        ([[0, 1], [1, 1]], "distinct numbers from 0 to 2"),
        ([[0, 1, 2], [0, 1, 2]], "3 of the 3 units of group 'inner' would go; at least 1 must stay"),
    ],
)
def test_units_of_sets_that_cannot_go(given: list[list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(sets(held("up", 1, 3)), gone(given))


def test_as_many_stay_as_a_group_needs() -> None:
    units = replace(two(), groups=(group("a", 4, least=2), group("b", 8)))
    assert build(units, gone([0, 3], [])).result["units_removed"] == 2
    with pytest.raises(InputError, match="at least 2 must stay"):
        build(units, gone([0, 1, 3], []))


def test_a_place_that_does_not_exist_is_told_with_the_range() -> None:
    for wrong in ([4], [-1, 0], [2, 2]):
        with pytest.raises(
            InputError, match=f"from {min(wrong)} to {max(wrong)}; expected distinct numbers from 0 to 3"
        ):
            build(two(), gone(wrong, []))
    assert build(two(), gone([0, 2, 1], [])).groups[0].removed.tolist() == [0, 1, 2]


def test_what_was_asked_is_copied() -> None:
    request = {"keep_params": 0.5}
    plan = build(two(shapes={"a.weight": (4, 2)}), gone([], []), request)
    request["keep_params"] = 0.1
    assert plan.request == {"keep_params": 0.5}
    assert plan.shapes == {"a.weight": (4, 2)}
    assert build(two(), gone([], [])).request == {}
