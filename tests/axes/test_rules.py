"""The table of rules: one for an operator, and only for operators that there are."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from fairkern.axes.rules import elementwise, reduce, views
from fairkern.axes.rules._call import Call
from fairkern.axes.rules.registry import RULES, rule

# Registered operators that not every supported torch has -> why they are registered all the same.
ABSENT: dict[str, str] = {}


def test_rules_are_known_by_name_and_overload() -> None:
    assert RULES["view"] is RULES["reshape"] is views.reshape
    assert RULES["view.dtype"] is views.bits
    assert (RULES["max"], RULES["max.other"]) == (reduce.best, elementwise.pointwise)


def test_a_second_rule_for_an_operator_is_refused() -> None:
    def another(call: Call) -> list:
        return []

    before = dict(RULES)
    with pytest.raises(ValueError, match=r"view has a rule already: reshape in fairkern\.axes\.rules\.views"):
        rule("view")(another)
    with pytest.raises(TypeError):
        RULES["view"] = another  # type: ignore[index]
    assert dict(RULES) == before


def missing(names: Iterable[str]) -> set[str]:
    """Those that are no ATen operators, or no overload of one."""
    found = set()
    for name in names:
        space, _, rest = f"aten::{name}".rpartition("::")
        operator, _, overload = rest.partition(".")
        packet = getattr(getattr(torch.ops, space.rpartition("::")[2]), operator, None)
        if packet is None or (overload and overload not in packet.overloads()):
            found.add(name)
    return found


def test_every_rule_is_for_an_operator() -> None:
    pytest.importorskip("torchvision")
    assert len(RULES) > 200
    assert missing(RULES) - set(ABSENT) == set()
    assert missing(["view", "view.dtype", "view.other", "viev"]) == {"view.other", "viev"}
