"""The table of rules: one for an operator, and only for operators that there are."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.axes.rules import elementwise, reduce, registry, views
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


def test_a_rule_that_comes_after_a_trace_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users see what has no rule, say what it does, and trace again."""
    library = torch.library.Library("rules_test", "DEF")
    library.define("lately(Tensor x) -> Tensor")
    library.impl("lately", lambda x: x.flip(0).tanh(), "CompositeExplicitAutograd")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.ops.rules_test.lately(self.first(x)))

    model, x = Model().eval(), torch.randn(2, 3)
    with pytest.raises(fk.InputError, match=r"no rule for rules_test\.lately\.default; "):
        fk.trace(model, x)
    monkeypatch.setitem(registry._rules, "rules_test::lately", elementwise.pointwise)
    assert [group.units for group in fk.trace(model, x).groups] == [6]


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
