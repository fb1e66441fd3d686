"""Operator → rule. Rules register themselves: those of ATen by name (`view`) or by name and overload (`view.dtype`),
others with their namespace (`torchvision::nms`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fairkern.axes.dims import Track
from fairkern.axes.rules._call import Call

Rule = Callable[[Call], "list[Track]"]

_rules: dict[str, Rule] = {}
RULES: Mapping[str, Rule] = MappingProxyType(_rules)  # the whole table, once `fairkern.axes.rules` is imported


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Makes a function the rule for these operators. A second rule for one of them is refused."""

    def register(made: Rule) -> Rule:
        for operator in operators:
            if operator in _rules:
                first = _rules[operator]
                raise ValueError(f"{operator} has a rule already: {first.__name__} in {first.__module__}")
            _rules[operator] = made
        return made

    return register
