"""The rows of the GPU table: what is run, what it is held against, and what it must reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench._compare import Timing, bound
from bench.gpu.machine import Call, Machine
from bench.gpu.workloads import Scale, noise


@dataclass(frozen=True)
class Case:
    """One row. `run` measures it; `value` is then what `measure` names, and `target` its bound (None: none was set)."""

    name: str
    what: str
    measure: str
    target: float | None
    at_least: bool
    run: Callable[[Bench], Measured]

    def row(self, bench: Bench) -> dict[str, Any]:
        """Measured, as it stands in the results file."""
        found = self.run(bench)
        none: dict[str, Any] = {"target": None, "at_least": self.at_least, "met": None}
        return {
            "case": self.name,
            "what": self.what,
            "measure": self.measure,
            "value": found.value,
            **(none if self.target is None else bound(found.value, self.target, self.at_least)),
            **found.more,
        }


@dataclass(frozen=True)
class Measured:
    value: float
    more: dict[str, Any] = field(default_factory=dict)  # plain JSON content


@dataclass
class Bench:
    """A machine, a scale, and the ceiling that several rows share."""

    machine: Machine
    scale: Scale

    @cached_property
    def copy(self) -> dict[str, Any]:
        """A large copy within the device: bytes read and written per second."""
        count = self.scale.copy_bytes // 4
        (source,) = noise([(count,)], torch.float32, self.machine.device, seed=0)
        target = source.clone()
        timing = self.machine.times(lambda: target.copy_(source), rounds=self.scale.rounds)[0]
        return {"bytes": 8 * count, "seconds": timing.as_dict(), "bytes_per_s": 8 * count / timing.p50}

    @property
    def bandwidth(self) -> float:
        return self.copy["bytes_per_s"]

    def streamed(self, call: Call, moved: int, operations: int = 0) -> Measured:
        """A call whose least traffic is `moved` bytes, against the bandwidth of a copy.

        The fraction is that of the whole call; beside it that of its kernels alone, by the profiler, and with
        `operations` (float32 multiply-adds) the fraction of what the lanes could do in the call's time.
        """
        timing = self.machine.times(call, rounds=self.scale.rounds)[0]
        kernels = self.machine.kernels(call)
        alone = sum(kernels.values())
        more: dict[str, Any] = {
            "ours_s": timing.as_dict(),
            "bytes": moved,
            "copy_bytes_per_s": self.bandwidth,
            "kernels_s": kernels,
            "value_of_kernels": moved / alone / self.bandwidth if alone else None,
        }
        if operations:
            clock = self.machine.sm_clock(call)
            more["multiply_adds"] = operations
            more["fraction_of_multiply_adds"] = operations / timing.p50 / (self.machine.lanes * clock.hz)
            more["sm_hz"] = clock.hz
            more["sm_hz_from"] = clock.source
        return Measured(moved / timing.p50 / self.bandwidth, more)


def against(ours: Timing, theirs: Timing, rival: str, **more: Any) -> dict[str, Any]:
    return {"rival": rival, "ours_s": ours.as_dict(), "rival_s": theirs.as_dict(), **more}


def size_of(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
