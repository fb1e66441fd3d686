"""`python -m bench.gpu.warm --architecture 90`: every shipped configuration compiled into Triton's cache, in parallel.

By the runtime's own path (`kernel.warmup`), so that a launch finds what lies there (`triton.compile` alone keys it
differently); with a driver and tensors that stand in, so that no process takes memory of the device.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from bench import triton_compiled
from bench.triton_compiled import Compiled, Launch


@dataclass(frozen=True)
class Pointer:
    """Of a tensor what a kernel is compiled for."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        return self.address


class Request(NamedTuple):
    """A launch as another process can read it."""

    module: str
    kernel: str
    programs: int
    arguments: Mapping[str, Any]
    options: Mapping[str, int]
    capability: int

    @classmethod
    def of(cls, launch: Launch, capability: int) -> Request:
        arguments = {
            name: Pointer(value.dtype, value.data_ptr() % 16) if isinstance(value, torch.Tensor) else value
            for name, value in launch.arguments.items()
        }
        options = {"num_warps": launch.warps, "num_stages": launch.stages}
        kernel = launch.kernel
        return cls(kernel.__module__, kernel.__name__, launch.programs, arguments, options, capability)


def compiled(request: Request) -> tuple[float, Compiled | str]:
    """Seconds, and what the kernel takes; or the compiler's words, where it cannot be had."""
    kernel = getattr(importlib.import_module(request.module), request.kernel)
    began = time.perf_counter()
    try:
        with compiled_for(request.capability):
            made = kernel.warmup(grid=(request.programs,), **request.arguments, **request.options)
    except Exception as error:
        return time.perf_counter() - began, f"{type(error).__name__}: {error}"[:300]
    return time.perf_counter() - began, triton_compiled.taken(made)


class Driver:
    """What Triton's runtime asks a driver for before it launches, answered for one architecture."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiled_for(capability: int) -> Iterator[None]:
    """Inside, kernels are compiled for that architecture, and none may be launched."""
    from triton.runtime import driver

    before = driver._active  # asking for `active` would look for a device
    driver.set_active(Driver(capability))
    try:
        yield
    finally:
        driver._active = before


def warm(launches: Sequence[Launch], capability: int, processes: int) -> list[tuple[float, Compiled | str]]:
    """Seconds and what each takes, compiled by so many processes; that takes longest is begun first."""
    order = sorted(range(len(launches)), key=lambda i: -len(launches[i].kernel.src))
    requests = [Request.of(launches[i], capability) for i in order]
    context = multiprocessing.get_context("forkserver")  # this one may have opened the device
    context.set_forkserver_preload(["bench.triton_compiled"])
    with context.Pool(processes) as pool:
        found = dict(zip(order, pool.map(compiled, requests, chunksize=1), strict=True))
    return [found[i] for i in range(len(launches))]


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.warm")
    parser.add_argument("--architecture", type=int, required=True, help="as in sm_90")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--every", type=int, default=1, help="a sample: every Nth")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    began = time.perf_counter()
    launches = triton_compiled.launches()[:: given.every]
    found = warm(launches, given.architecture, given.processes)
    for launch, (seconds, took) in sorted(zip(launches, found, strict=True), key=lambda pair: -pair[1][0]):
        print(f"{seconds:7.2f} s  {launch.kernel.__name__}  {launch.case}: {took}")
    total = sum(seconds for seconds, _ in found)
    print(f"{len(launches)} kernels: {total:.1f} s in {time.perf_counter() - began:.1f} s")
    return int(any(isinstance(took, str) or took.spill_bytes for _, took in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
