"""Which operators keep zeros, asked of the operators; and numbers of dimensions, asked of their names."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch

from fairkern.axes.rules import computed, reduce
from fairkern.axes.rules.elementwise import pointwise
from fairkern.axes.rules.registry import RULES

OTHERS = {"_conj_physical", "clone", "conj_physical", "positive", "rrelu"}  # rules of their own, or made of others
KNOWN = computed._ZERO_AT_ZERO | set(computed._ZERO_IF)


def overloads(name: str) -> Iterator[torch._ops.OpOverload]:
    packet = getattr(torch.ops.aten, name, None)
    for overload in packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else ():
        yield getattr(packet, overload)


def at_zero(operator: torch._ops.OpOverload, tensors: int) -> bool | None:
    """Whether an operator of so many tensors and nothing else gives zeros for zeros; None if it is no such operator."""
    needed = [argument for argument in operator._schema.arguments if not argument.has_default_value()]
    takes = [str(argument.type) for argument in operator._schema.arguments if str(argument.type) == "Tensor"]
    if len(takes) != tensors or len(needed) != tensors or operator._schema.name.endswith("_"):
        return None
    try:
        made = operator(*[torch.zeros(3)] * tensors)
    except (RuntimeError, NotImplementedError):  # not of numbers of this type
        return None
    if not isinstance(made, torch.Tensor) or not made.is_floating_point():
        return None
    return bool((made == 0).all())


@pytest.mark.filterwarnings("ignore")
def test_all_operators_that_keep_zero_are_known_and_no_others() -> None:
    keep, lose = set(), set()
    schemas = torch._C._jit_get_all_schemas()  # `dir(torch.ops.aten)` lists what was asked for so far
    for name in {schema.name.removeprefix("aten::") for schema in schemas if schema.name.startswith("aten::")}:
        for operator in overloads(name):
            if torch.Tag.pointwise in operator.tags and (kept := at_zero(operator, 1)) is not None:
                (keep if kept else lose).add(name)
    assert len(keep) > 40
    assert len(lose) > 20
    assert keep - KNOWN <= OTHERS
    assert OTHERS - keep <= {"_conj_physical"}  # which older versions of torch do not call pointwise
    assert lose & KNOWN == set()


def test_operators_of_two_keep_zero_where_both_are() -> None:
    for name in sorted(computed._ZERO_AT_ZEROS - {"where"}):
        assert [kept for operator in overloads(name) if (kept := at_zero(operator, 2)) is not None] == [True], name
    zero = torch.zeros(3)
    assert not torch.where(zero > 0, zero, zero).any()


def test_names_are_those_of_operators() -> None:
    for name in sorted(KNOWN | computed._ZERO_AT_ZEROS):
        assert list(overloads(name)), name


def test_pooling_and_resampling_run_over_as_many_dimensions_as_they_say() -> None:
    for name, spatial in reduce._SPATIAL.items():
        said = re.search(r"(\d)d", name)
        assert said is not None, name
        assert int(said[1]) == spatial, name


@pytest.mark.parametrize("name", ["leaky_relu", "leaky_relu_", "ldexp.Tensor", "ldexp_"])
def test_what_only_newer_versions_of_torch_call_pointwise_has_a_rule_of_its_own(name: str) -> None:
    assert RULES[name] is pointwise
