"""Plans for a share of the parameters that count what compensation is going to add."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn

from fairkern.compensate import Compensation
from fairkern.compensate.added import added_numbers
from fairkern.compensate.intercepts import Biases
from fairkern.errors import BudgetError
from fairkern.results import Plan
from fairkern.types import Scores

SHARE = "keep_params"


def counted(
    solve: Callable[[float], Plan], share: float, model: nn.Module, scores: Scores, method: Compensation, biases: Biases
) -> Plan:
    """A plan for `share` of the parameters of `model`, of which biases that are given to weights without one are some.

    `solve`: the plan for a share without them. Those depend on the plan, so it is made again for as much less, until
    what is left has room for them; its request says what was asked for. Where there are none it is the first plan.

    Raises what `solve` raises. Cost: a second plan where there are any, seldom a third.
    """
    plan, reserve = solve(share), 0
    added = partial(added_numbers, model, scores=scores, method=method, biases=biases)
    room = share * plan.result["params_before"]
    while plan.result["params_after"] + (more := added(plan)) > room and more:
        reserve = max(more, reserve + 1)
        asked = (room - reserve) / plan.result["params_before"]
        biased = f"the {reserve:,} numbers that compensation adds as biases (biases=False adds none)"
        counts = f"{SHARE}={share!r} counts {biased}"
        if asked <= 0:
            raise BudgetError(f"{counts}: it leaves no room for anything else")
        try:
            plan = solve(asked)
        except BudgetError as error:
            theirs = math.ceil(reserve / plan.result["params_before"] * 1e6) / 1e6
            raise BudgetError(f"{counts}, and without them {error}; add {theirs:.6f} to it for the biases") from error
    return replace(plan, request={**plan.request, SHARE: share}) if reserve else plan
