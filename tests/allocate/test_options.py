"""What may be asked, and what every wrong question is told."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from fairkern.allocate import allocate
from fairkern.errors import BudgetError, InputError
from fairkern.types import Scores
from tests.synthetic import Fixed, Sketch, chain, concat, random_scores, residual

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of tod=, keep_params=, keep_flops=, keep_latency=, drop=; got none"),
        ({"tod": 0.1, "keep_params": 0.5}, "got tod and keep_params"),
        ({"keep_params": 0.5, "keep_flops": 0.5}, "got keep_params and keep_flops"),
        ({"tod": 0.1, "allocation": "uniform"}, "no meaning with allocation='uniform'"),
        ({"tod": 0.1, "allocation": "global"}, "no meaning with allocation='global'"),
        ({"tod": -0.1}, "from 0 to 1"),
        ({"tod": 1.01}, "from 0 to 1"),
        ({"tod": NAN}, "not finite"),
        ({"tod": True}, "tod=True is a bool"),
        ({"tod": "0.1"}, "tod='0.1' is a str"),
        ({"tod": np.array([0.1, 0.2])}, "is a ndarray"),
        ({"keep_params": 0.0}, "above 0, at most 1"),
        ({"keep_params": -0.5}, "above 0, at most 1"),
        ({"keep_params": 1.5}, "above 0, at most 1"),
        ({"keep_params": 50}, "above 0, at most 1"),
        ({"keep_params": INF}, "not finite"),
        ({"keep_params": False}, "keep_params=False is a bool"),
        ({"keep_flops": NAN}, "not finite"),
        ({"keep_flops": [0.5]}, "keep_flops=\\[0.5\\] is a list"),
        (
            {"tod": 0.1, "allocation": "even"},
            "allocation is 'even'; expected one of 'tod', 'uniform', 'global', 'normalized', 'priced'",
        ),
        ({"keep_params": 0.5, "removal": lambda group: "many"}, "function <lambda> of group .* gives a str"),
        ({"keep_params": 0.5, "removal": lambda group: [1.0]}, r"has shape \(1,\)"),
        ({"tod": 0.1, "allocation": ["tod"]}, "expected one of"),
        ({"keep_params": 0.5, "allocation": "Price"}, r"'priced'; did you mean 'priced'\?$"),
        ({"tod": 0.1, "removal": "wassertein"}, "removal='wassertein' is not .* they hold 'taylor', 'wasserstein'"),
        ({"tod": 0.1, "removal": 3}, "removal=3 is not among"),
        ({"tod": 0.1, "protect": "l1"}, "protect='l1' is not among"),
        ({"tod": 0.1, "protect": None}, "protect=None is not among"),
        ({"tod": 0.1, "round_to": 0}, "round_to=0 is too small"),
        ({"tod": 0.1, "round_to": -8}, "round_to=-8 is too small"),
        ({"tod": 0.1, "round_to": 8.0}, "round_to=8.0 is a float"),
        ({"tod": 0.1, "round_to": True}, "round_to=True is a bool"),
        ({"tod": 0.1, "min_keep": 0}, "min_keep=0 is too small"),
        ({"tod": 0.1, "min_keep": 1.5}, "min_keep=1.5 is a float"),
        ({"tod": 0.1, "min_keep": NAN}, "min_keep=nan is a float"),
        ({"tod": 0.1, "max_remove": 0.0}, "between 0 and 1"),
        ({"tod": 0.1, "max_remove": 1.0}, "between 0 and 1"),
        ({"tod": 0.1, "max_remove": 99}, "between 0 and 1"),
        ({"tod": 0.1, "max_remove": NAN}, "not finite"),
        ({"tod": 0.1, "max_remove": True}, "max_remove=True is a bool"),
        ({"tod": 0.1, "ignore": 3}, "not a list of name patterns"),
        ({"tod": 0.1, "ignore": ["stem", 3]}, "not a list of name patterns"),
        ({"tod": 0.1, "ignore": None}, "not a list of name patterns"),
        ({"tod": 0.1, "ignore": ["layer1.0.conv9"]}, "matches no group and no module; near names: layer1.0.conv"),
        ({"tod": 0.1, "ignore": ["zzz"]}, "matches no group and no module"),
        ({"tod": 0.1, "ignore": [""]}, "matches no group"),
        ({"tod": 0.1, "ignore": ["*"]}, "leaves no group to cut"),
    ],
)
def test_a_wrong_option_is_told(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        allocate(random_scores(residual().build()), **options)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), 1])
def test_numbers_of_other_types_are_numbers(number: object) -> None:
    plan = allocate(random_scores(chain().build()), keep_params=number, round_to=np.int64(2))
    assert type(plan.request["keep_params"]) is float
    assert type(plan.request["round_to"]) is int


@pytest.mark.parametrize("measure", ["keep_params", "keep_flops"])
@pytest.mark.parametrize(
    "options", [{}, {"max_remove": 0.3}, {"min_keep": 5}, {"round_to": 8}, {"ignore": ["features.[123]"]}]
)
def test_an_unreachable_budget_names_the_range_and_its_end_is_reachable(measure: str, options: dict) -> None:
    scores = random_scores(chain((8, 12, 16, 9)).build())
    said = r"(in \[|reachable shares: )(0\.\d+), "
    with pytest.raises(BudgetError, match=rf"{measure}=1e-06 cannot be reached.* {said}") as caught:
        allocate(scores, **{measure: 1e-6}, **options)
    found = re.search(said, str(caught.value))
    assert found is not None
    least = float(found[2])
    plan = allocate(scores, **{measure: least}, **options)
    assert plan.result["tolerance"] is not None
    with pytest.raises(BudgetError):
        allocate(scores, **{measure: least - 2e-6}, **options)


def test_a_budget_of_all_removes_nothing() -> None:
    for allocation in ("tod", "uniform", "global", "normalized", "priced"):
        plan = allocate(random_scores(concat().build()), keep_params=1.0, allocation=allocation)
        assert plan.axes == ()
        assert plan.attributes == ()
        assert plan.result["params_after"] == plan.result["params_before"]
        assert (plan.result["tolerance"], set(plan.result["thresholds"])) == (None, {None})


def test_no_prunable_group() -> None:
    units = chain().build()
    frozen = units.freeze(dict.fromkeys(range(len(units.groups)), "a softmax runs over it"))
    with pytest.raises(InputError, match="no group of Chain can be cut"):
        allocate(random_scores(frozen), tod=0.1)


def test_a_map_without_flops() -> None:
    units = replace(chain().build(), flops=())
    with pytest.raises(InputError, match="keep_flops= needs costs above zero"):
        allocate(random_scores(units), keep_flops=0.5)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("signal", ["wasserstein", "taylor"])
def test_scores_that_are_not_finite(bad: float, signal: str) -> None:
    scores = random_scores(chain().build())
    scores.signals[signal][1][4] = bad
    with pytest.raises(InputError, match=f"signal '{signal}' of group 'features.1.conv' is {bad} at unit 4"):
        allocate(scores, keep_params=0.5)


def test_scores_of_another_map() -> None:
    units = chain().build()
    with pytest.raises(InputError, match="scores for 2 groups; the map has 3"):
        allocate(Scores(units, random_scores(chain((8, 12)).build()).signals, {}), tod=0.1)
    with pytest.raises(InputError, match=r"group 'features.0.conv' has shape \(9,\); expected \(8,\)"):
        allocate(Scores(units, random_scores(chain((9, 12, 16)).build()).signals, {}), tod=0.1)


@pytest.mark.parametrize(
    ("ignore", "whole"),
    [
        (["stem"], {"stem"}),
        ("stem", {"stem"}),
        (["layer1"], {"stem", "layer1.0.conv1"}),  # the stream is produced in every layer too
        (["layer1.*"], {"stem", "layer1.0.conv1"}),
        (["layer1.0.bn1"], {"layer1.0.conv1"}),
        (["layer?.0.conv1"], {"layer0.0.conv1", "layer1.0.conv1", "layer2.0.conv1"}),
        (["layer0.0.conv1", "layer2.0.conv1"], {"layer0.0.conv1", "layer2.0.conv1"}),
        (["head"], set()),  # a module that produces no group: known, so no complaint
        (("frozen",), set()),
        ([], set()),
    ],
)
def test_patterns_protect_what_they_name(ignore: object, whole: set[str]) -> None:
    plan = allocate(random_scores(residual().build()), tod=1.0, ignore=ignore)
    assert {g.name for g in plan.groups if not len(g.removed)} == whole
    assert plan.request["ignore"] == ([ignore] if isinstance(ignore, str) else list(ignore))


@pytest.mark.parametrize(
    ("units", "per_unit", "round_to", "removed"),
    [
        (64, 1, 8, 56),
        (60, 1, 8, 52),  # first 4 go, so that 56 stay, and so on
        (64, 4, 8, 62),  # two units of four channels make eight
        (64, 3, 8, 56),
        (6, 1, 8, 0),  # no multiple of 8 below 6
        (10, 5, 5, 9),
        (7, 1, 7, 0),
        (100, 1, 1, 99),
    ],
)
def test_what_stays_is_a_multiple(units: int, per_unit: int, round_to: int, removed: int) -> None:
    sketch = Sketch()
    group = [sketch.channels("conv", units, per_unit)]
    sketch.conv("conv", [Fixed(3)], group)
    sketch.linear("head", group, [Fixed(2)], flat=3)
    plan = allocate(random_scores(sketch.build()), tod=1.0, round_to=round_to)
    assert len(plan.groups[0].removed) == removed


def test_limits_hold() -> None:
    scores = random_scores(chain((100, 10, 3)).build())
    for max_remove, counts in ((0.29, [29, 2, 0]), (0.5, [50, 5, 1]), (0.7, [70, 7, 2])):
        plan = allocate(scores, tod=1.0, max_remove=max_remove)
        assert [len(g.removed) for g in plan.groups] == counts
    plan = allocate(scores, tod=1.0, min_keep=6)
    assert [len(g.removed) for g in plan.groups] == [94, 4, 0]
