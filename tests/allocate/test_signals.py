"""Which scores are read, what they must be, and what follows where nothing is said."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fairkern.allocate import allocate
from fairkern.allocate.options import Allocation
from fairkern.allocate.signals import defaults, levels, name_of, read_signal
from fairkern.errors import InputError
from fairkern.types import AxisGroup, Scores, UnitMap
from tests.plans.maps import heard

GROUPS = (
    AxisGroup("a", "channel", 3, (), heard(3)),
    AxisGroup("b", "channel", 2, (), heard(2), frozen="asked"),
    AxisGroup("c", "channel", 2, (), heard(2), sets=2),
)
UNITS = UnitMap("Net", GROUPS, (), (), (), (), (), {})
ARRAYS = (np.array([3.0, 1.0, 2.0]), np.zeros(0), np.array([1.0, 2.0, 4.0, 3.0]))


def scores(*names: str, **provenance: Any) -> Scores:
    return Scores(UNITS, dict.fromkeys(names, ARRAYS), {}, provenance)


def test_what_follows_from_the_scores() -> None:
    plain, fitted = scores("wasserstein", "taylor"), scores("wasserstein", "taylor", "residual")
    tod, uniform, pooled = Allocation.TOD, Allocation.UNIFORM, Allocation.PRICED  # of a map of which all costs add up
    assert defaults(plain, None, None, False) == (tod, "wasserstein")
    assert defaults(plain, "uniform", None, False) == (uniform, "wasserstein")
    assert defaults(plain, None, "residual", False) == (tod, "residual")
    assert defaults(fitted, None, None, False) == (pooled, "residual")
    assert defaults(fitted, None, "residual", False) == (pooled, "residual")
    assert defaults(fitted, None, "taylor", False) == (tod, "taylor")
    assert defaults(fitted, "uniform", None, False) == (uniform, "residual")
    assert defaults(fitted, "tod", None, False) == (tod, "wasserstein")
    assert defaults(fitted, None, None, True) == (tod, "wasserstein")
    assert defaults(fitted, "tod", "residual", True) == (tod, "residual")


def test_scores_of_groups_that_can_be_cut() -> None:
    found = read_signal(scores("x"), "removal", "x")
    assert list(found) == [0, 2]
    assert found[0].tolist() == [3.0, 1.0, 2.0]
    assert found[2].tolist() == [[1.0, 2.0], [4.0, 3.0]]
    assert found[0].dtype == np.float64
    whole = read_signal(scores(), "removal", lambda group: list(range(group.total)))
    assert whole[2].tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_groups_heard_in_too_few_classes_have_no_wasserstein_score() -> None:
    heard = scores("wasserstein", "taylor", no_classes=["a"])
    assert list(read_signal(heard, "removal", "wasserstein")) == [2]
    assert list(read_signal(heard, "removal", "taylor")) == [0, 2]
    with pytest.raises(InputError, match="removal='wasserstein': every group was heard in fewer than two classes"):
        read_signal(scores("wasserstein", no_classes=["a", "c"]), "removal", "wasserstein")
    plan = allocate(heard, tod=1.0)
    assert [g.removed.size for g in plan.groups] == [0, 2]
    assert plan.result["thresholds"][0] is None


def test_chance_is_drawn_for_each_group_by_the_seed_of_the_scores() -> None:
    found = read_signal(scores(seed=3), "removal", "random")
    for g, shape in ((0, (3,)), (2, (2, 2))):
        expected = np.random.default_rng((3, g)).random(GROUPS[g].total)
        assert found[g].reshape(-1).tolist() == expected.tolist()
        assert found[g].shape == shape
    unsaid = read_signal(scores(), "removal", "random")[0]
    assert unsaid.tolist() == np.random.default_rng((0, 0)).random(3).tolist()
    given = read_signal(scores("random"), "removal", "random")
    assert given[0].tolist() == [3.0, 1.0, 2.0], "a signal of that name is what it says"


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        ("y", "protect='y' is not among the signals of these scores; they hold 'a', 'x'"),
        (7, "protect=7 is not among"),
        (lambda group: [float("nan")] * group.total, "of group 'a' is nan at unit 0"),
        (lambda group: [0.0, 1.0, float("inf")][: group.total], "of group 'a' is inf at unit 2"),
        (lambda group: np.zeros((group.total, 1)), r"shape \(3, 1\); expected \(3,\), one score per unit"),
        (lambda group: np.zeros(group.units), r"of group 'c' has shape \(2,\); expected \(4,\)"),
        (lambda group: object(), "of group 'a' gives a object; expected numbers"),
    ],
)
def test_scores_that_are_none(signal: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_signal(scores("x", "a"), "protect", signal)


def test_a_function_may_give_a_tensor_of_any_kind() -> None:
    for dtype in (torch.float16, torch.float32, torch.int64):
        given = read_signal(scores(), "removal", lambda group, dtype=dtype: torch.arange(group.total).to(dtype))
        assert given[0].tolist() == [0.0, 1.0, 2.0]
    weight = torch.nn.Parameter(torch.ones(4))
    found = read_signal(scores(), "removal", lambda group: weight[: group.total] * 2)
    assert found[2].tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_no_signals_at_all() -> None:
    with pytest.raises(InputError, match="they hold none at all"):
        read_signal(scores(), "removal", "x")


def test_what_a_plan_records() -> None:
    assert name_of("taylor") == "taylor"
    assert name_of(test_what_a_plan_records) == "function test_what_a_plan_records"
    assert name_of(partial(print)) == "function partial"


def test_measured_scores_that_rounding_tells_apart_are_ranked_alike() -> None:
    values = {0: np.array([1.0, 1.0 + 1e-9, 2.0]), 2: np.array([[5.0, 5.0 - 1e-8], [7.0, 6.0]])}
    ranked = levels("taylor", values)
    assert ranked[0].tolist() == [0.0, 0.0, 1.0]
    assert ranked[2].tolist() == [[0.0, 0.0], [1.0, 0.0]]
    for signal in ("random", "residual", len):
        assert levels(signal, values) is values
    assert levels("taylor", {}) == {}


def test_sets_are_ranked_each_for_itself() -> None:
    """Numbers far apart in one set do not make those of another equal."""
    ranked = levels("taylor", {0: np.array([[1e-9, 2e-9, 3e-9], [1e3, 2e3, 3e3]])})
    assert ranked[0].tolist() == [[0.0, 1.0, 2.0]] * 2


def test_a_signal_that_is_protected_may_lack_groups() -> None:
    """A group without one of both signals stays whole under ToD."""
    both = replace(scores("wasserstein", "taylor", no_classes=["c"]))
    plan = allocate(both, tod=1.0, removal="taylor", protect="wasserstein")
    assert [g.removed.size for g in plan.groups] == [2, 0]
