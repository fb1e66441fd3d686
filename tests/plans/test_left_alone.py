"""What is said of kinds of units of which none goes."""

from __future__ import annotations

from fairkern.plans.left_alone import held_kinds, left_alone
from fairkern.types import KeptUnits
from tests.plans.maps import gone, group, unit_map


def test_kinds_that_cannot_be_cut_are_named_with_their_commonest_reason() -> None:
    units = unit_map(
        group("a", 4),
        group("b", 4, kind="head", frozen="a softmax in b runs over it"),
        group("c", 4, kind="head", frozen="a softmax in c runs over it"),
        group("d", 4, kind="head", frozen="nobody reads it"),
        group("e", 4, frozen="channels that can go make up for it"),
        kept=(KeptUnits("expert", "", "one is chosen by a table"),),
    )
    assert held_kinds(units) == {
        "head": "those of b and 2 more stay: a softmax runs over it (and for 1 further reason)",
        "expert": "those of the model stay: one is chosen by a table",
    }


def test_further_reasons_are_counted() -> None:
    reasons = ("too few", "it is in use", "another")
    units = unit_map(*(group(f"g{i}", 2, kind="head", frozen=reason) for i, reason in enumerate(reasons)))
    assert held_kinds(units) == {"head": "those of g0 and 2 more stay: too few (and for 2 further reasons)"}


def test_only_a_whole_name_is_left_out_of_a_reason() -> None:
    """`in layer` says where; `in layer.1` and `in layers` are other places."""
    for reason, said in (
        ("softmax in layer runs", "softmax runs"),
        ("softmax in layer.1 runs", "softmax in layer.1 runs"),
        ("softmax in layers runs", "softmax in layers runs"),
        ("softmax in layer", "softmax"),
    ):
        units = unit_map(group("layer", 2, kind="head", frozen=reason))
        assert held_kinds(units) == {"head": f"those of layer stay: {said}"}


def test_a_plan_says_what_it_spares_and_what_it_has_to() -> None:
    units = unit_map(
        group("a", 4),
        group("b", 4, kind="head"),
        group("c", 4, kind="head"),
        group("d", 4, kind="head", frozen="it is in use"),
        group("e", 4, kind="expert", frozen="it is in use"),
        group("f", 4, kind="neuron"),
    )
    spared = "no head was cut: the plan spared those of b and 1 more, which could be cut"
    kept = "no expert was cut: those of e stay: it is in use"
    alone = "no neuron was cut: the plan spared those of f, which could be cut"
    assert left_alone(units, gone([0], [], [], [], [], []), {}) == [kept, spared, alone]
    assert left_alone(units, gone([0], [], [1], [], [], [2]), {}) == [kept]
    assert left_alone(units, gone([], [], [], [], [], []), {}) == []


def test_kinds_that_were_not_asked_for_are_not_spoken_of() -> None:
    units = unit_map(group("a", 4), group("b", 4, kind="head"), group("c", 4, kind="expert", frozen="it is in use"))
    assert left_alone(units, gone([0], [], []), {}, {"channel": 1}) == []
    assert left_alone(units, gone([0], [], []), {}, {"channel": 1, "expert": 1}) == [
        "no expert was cut: those of c stay: it is in use"
    ]
