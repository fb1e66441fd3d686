"""`python -m bench.gpu.warm --architecture 90`: every shipped configuration compiled into Triton's cache, in parallel.

By the runtime's own path (`kernel.warmup`), so that a launch finds what lies there; on CPU tensors and with a driver
that stands in, so that processes are forked, and none of them takes memory of the device.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bench import triton_compiled
from bench.triton_compiled import Launch


def compile_it(launch: Launch) -> float:
    """Seconds."""
    began = time.perf_counter()
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    launch.kernel.warmup(grid=(launch.programs,), **launch.arguments, **options)
    return time.perf_counter() - began


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


def warm(launches: list[Launch], capability: int, processes: int) -> list[float]:
    """Seconds of each, compiled by so many processes."""
    forked = multiprocessing.get_context("fork")
    with compiled_for(capability), forked.Pool(processes, _taken.extend, (launches,)) as pool:
        return pool.map(_compiled, range(len(launches)), chunksize=1)


_taken: list[Launch] = []  # in a forked process: what its parent recorded, since kernels cannot be pickled


def _compiled(number: int) -> float:
    return compile_it(_taken[number])


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.warm")
    parser.add_argument("--architecture", type=int, required=True, help="as in sm_90")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--every", type=int, default=1, help="a sample: every Nth")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    began = time.perf_counter()
    launches = triton_compiled.launches()[:: given.every]
    launches.sort(key=lambda launch: -len(launch.kernel.src))  # what takes longest is begun first
    seconds = warm(launches, given.architecture, given.processes)
    for launch, took in sorted(zip(launches, seconds, strict=True), key=lambda pair: -pair[1]):
        print(f"{took:7.2f} s  {launch.kernel.__name__}  {launch.case}")
    print(f"{len(launches)} kernels: {sum(seconds):.1f} s in {time.perf_counter() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
