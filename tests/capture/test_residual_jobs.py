"""The residual signal in independent jobs: in any order, and from nothing but the moments that a job names."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.capture import jobs, orders, residual
from fairkern.capture.jobs import Job
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
    moments: dict[str, Any] = {}

    def noted(job: Job, model: Any, units: Any, given: Any, powers: Any, **more: Any) -> Any:
        moments.update((name, given[name]) for name in job.moments)
        seen[:] = [model, units, moments, powers]
        return residual.solve(job, model, units, given, powers, **more)

    monkeypatch.setattr(orders, "solve", noted)
    NETWORKS[name]()
    model, units, moments, powers = seen
    return model, units, moments, powers, residual.residual(model, units, moments, powers)


@pytest.mark.parametrize("name", NETWORKS)
def test_jobs_know_what_they_read_and_go_in_any_order(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model, units, moments, powers, whole = heard(monkeypatch, name)
    work = residual.jobs(units)
    assert sum(units.groups[job.group].units if job.part is not None else units.groups[job.group].total
               for job in work) == sum(units.groups[g].total for g in units.scored)  # fmt: skip
    made = {
        job: residual.solve(
            job, model, units, {n: moments[n] for n in job.moments}, {n: powers[n] for n in job.moments}
        )
        for job in reversed(work)
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


def test_small_jobs_run_side_by_side_and_large_ones_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, threads = set[int](), [0], dict[int, int]()
    together = threading.Barrier(2, timeout=10)

    def solve(job: Job, told: Any = None) -> np.ndarray:
        running.add(job.group)
        most[0] = max(most[0], len(running))
        threads[job.group] = torch.get_num_threads()
        if job.memory <= jobs.SMALL:
            together.wait()  # for another one
        running.discard(job.group)
        return np.array([job.group])

    work = [Job(g, None, (), 1.0, 2 * jobs.SMALL if g == 1 else 8) for g in range(5)]
    before, shares = torch.get_num_threads(), list[float]()
    torch.set_num_threads(2)
    try:
        found = jobs.several(work, solve, torch.device("cpu"), shares.append)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {job.group: int(values) for job, (values,) in found.items()} == {g: g for g in range(5)}
    assert most[0] == 2
    assert threads == {0: 1, 1: 2, 2: 1, 3: 1, 4: 1}
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_what_a_job_raises_is_raised_and_threads_stay() -> None:
    def solve(job: Job, told: Any = None) -> np.ndarray:
        raise fk.NonFiniteError(f"group {job.group}")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(fk.NonFiniteError, match="group 0"):
            jobs.several([Job(g, None, (), 1.0, 8) for g in range(3)], solve, torch.device("cpu"), None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_progress_is_told_and_the_memory_is_two_matrices_a_moment() -> None:
    """What torch allocates is known to its profiler alone."""
    n = 512
    model = nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 2)).eval()
    units = fk.trace(model, torch.randn(2, 4))
    (job,) = residual.jobs(units)
    a = torch.randn(2 * n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = {name: fk.types.Moments(a.T @ a, a.sum(0), len(a)) for name in job.moments}
    shares: list[float] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        residual.solve(job, model, units, moments, dict.fromkeys(moments, 1.0), told=shares.append)
    held, peak = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert peak <= job.memory * 1.3 + 2**20
    assert job.memory == 2 * 8 * n * n
    assert shares[-1] == 1
