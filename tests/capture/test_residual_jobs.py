"""The residual signal in independent jobs: in any order, and from nothing but the moments that a job names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import nn

import fairkern as fk
from fairkern.capture import residual, run
from tests.capture.networks import loader, loss
from tests.capture.test_residual import flat, mlp, scored
from tests.experts import build, samples

Heard = tuple[nn.Module, fk.UnitMap, dict[str, Any], dict[str, float], dict[int, np.ndarray]]


def mixture() -> None:
    model, batches = build(), loader(*samples(24), 24)
    units = fk.trace(model, batches[0][0][:2], verify=False)
    fk.score(model, batches, loss, units=units, gram=True, projections=3, progress=False)


NETWORKS: dict[str, Callable[[], Any]] = {"mlp": lambda: scored(mlp(), flat()), "experts": mixture}


def heard(monkeypatch: pytest.MonkeyPatch, name: str) -> Heard:
    """What scoring hands to the signal, and what it made of that."""
    seen: list[Any] = []

    def noted(*given: Any) -> Any:
        seen.append((*given, residual.residual(*given)))
        return seen[-1][-1]

    monkeypatch.setattr(run, "residual", noted)
    NETWORKS[name]()
    return seen[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_jobs_know_what_they_read_and_go_in_any_order(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model, units, moments, powers, whole = heard(monkeypatch, name)
    jobs = residual.jobs(units)
    assert sum(units.groups[job.group].units if job.part is not None else units.groups[job.group].total
               for job in jobs) == sum(units.groups[g].total for g in units.scored)  # fmt: skip
    made = {
        job: residual.solve(
            job, model, units, {n: moments[n] for n in job.moments}, {n: powers[n] for n in job.moments}
        )
        for job in reversed(jobs)
    }
    found = residual.signal(units, made)
    assert found.keys() == whole.keys() == set(units.scored)
    for g, values in whole.items():
        np.testing.assert_array_equal(found[g], values)


def test_the_cost_follows_the_width() -> None:
    costs = []
    for width in (8, 16):
        model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
        (job,) = residual.jobs(fk.trace(model, flat()[:2, :4].float()))
        costs.append(job.cost)
    assert costs[1] == 8 * costs[0]
