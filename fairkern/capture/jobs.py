"""Work in jobs that need none of the others, small ones side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from fairkern.types import FloatArray

TOGETHER = 2**28  # bytes that jobs may take that run at the same time
SMALL = 2**25  # bytes: a larger one has products that fill all cores by itself


@dataclass(frozen=True)
class Job:
    """The units of one set of one group, to be ordered by themselves (`residual.solve`): work that needs no other job.

    `cost`: about how many multiply-adds it takes, `memory`: how many bytes beside the moments, both known before
    anything is heard, to share jobs out by.
    """

    group: int
    part: int | None  # the set; None where the group has one, or is of whole experts or branches
    moments: tuple[str, ...]  # names of the moments and gradient powers that it reads, and no others
    cost: float
    memory: int


def several(
    jobs: Sequence[Job],
    solve: Callable[..., FloatArray],
    device: torch.device,
    told: Callable[[float], None] | None,
    together: int = TOGETHER,
) -> dict[Job, FloatArray]:
    """What `solve(job)` gives for each; `told`: the share of their costs that is done.

    On a CPU the jobs that take no more than `SMALL` bytes run together, as many as there are threads, and as `together`
    bytes hold; then the others, one by one, with all threads each. Which ones do does not depend on time.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    small = [job for job in jobs if job.memory <= SMALL] if threads > 1 else []
    workers = min(threads, len(small), together // max([1, *(job.memory for job in small)]))
    whole, done, made = sum(job.cost for job in jobs), 0.0, {}

    def tell(cost: float) -> None:
        if told is not None:
            told(min(1.0, (done + cost) / whole) if whole else 1.0)

    if workers > 1:
        try:
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                try:
                    for job, found in zip(small, pool.map(solve, small), strict=True):
                        made[job] = found
                        done += job.cost
                        tell(0.0)
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            torch.set_num_threads(threads)  # what threads that start later take
    for job in jobs:
        if job not in made:
            made[job] = solve(job, told=lambda share, cost=job.cost: tell(share * cost))
            done += job.cost
            tell(0.0)
    return made
