"""What a benchmark asks of the machine that it runs on: time, kernels, clocks, memory.

`Cuda` reads a GPU. `StandIn` answers on the CPU, so that every benchmark's code can be run where there is none.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bench._compare import Timing, host_clock, in_turn

Call = Callable[[], object]
LANES = {(8, 0): 64}  # fp32 lanes per multiprocessor, where they are not 128
LEAD_S = 0.005  # head start of the host at most: what it prepares meanwhile is not counted
BUSY_S = 3.0


@dataclass(frozen=True)
class SmClock:
    """Cycles per second of the multiprocessors, and how that was found out."""

    hz: float
    source: str


class Machine(Protocol):
    device: torch.device
    lanes: int  # fp32 additions per cycle, of all multiprocessors

    def times(self, *calls: Call, rounds: int, warmup: int = 3) -> list[Timing]:
        """Of each call, made in turn with the others, caches cold."""

    def kernels(self, call: Call) -> Mapping[str, float]:
        """Seconds per kernel of one call."""

    def sm_clock(self, call: Call) -> SmClock:
        """While the machine does nothing but this."""

    def peak_bytes(self, call: Call) -> int:
        """Device memory allocated at most during the call, beyond what was allocated before."""

    def facts(self) -> dict[str, Any]: ...


class Cuda:
    """The current CUDA device. `cuda` is `torch.cuda`; a test passes another."""

    def __init__(self, cuda: Any = torch.cuda, device: str = "cuda") -> None:
        self._cuda = cuda
        self._properties = cuda.get_device_properties(0)
        self.device = torch.device(device, 0) if device == "cuda" else torch.device(device)
        capability = (self._properties.major, self._properties.minor)
        self.lanes = self._properties.multi_processor_count * LANES.get(capability, 128)
        self._flush = torch.empty(2 * self._properties.L2_cache_size, dtype=torch.uint8, device=self.device)
        self._spin_hz = self._spin()

    def times(self, *calls: Call, rounds: int, warmup: int = 3) -> list[Timing]:
        return in_turn(calls, rounds, warmup, self._clock)

    def _clock(self, call: Call) -> float:
        """Between two events around the call. The device spins first, so that the host runs ahead as in a pipeline."""
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._cuda.synchronize()
        self._flush.zero_()
        self._cuda._sleep(int(LEAD_S * self._spin_hz))
        start.record()
        call()
        end.record()
        self._cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    def _spin(self) -> float:
        """Cycles per second of a lone thread: how long the device spins for so many cycles."""
        cycles = 100_000_000
        seconds = []
        for _ in range(4):
            start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self._cuda._sleep(cycles)
            end.record()
            self._cuda.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        return cycles / min(seconds)

    def kernels(self, call: Call, repeats: int = 5) -> Mapping[str, float]:
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        call()
        self._cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(repeats):
                self._flush.zero_()
                call()
            self._cuda.synchronize()
        seconds: dict[str, float] = defaultdict(float)
        for event in profiler.events():
            if event.device_type == DeviceType.CUDA and not event.name.startswith(("Memset", "Memcpy")):
                seconds[event.name] += event.time_range.elapsed_us() * 1e-6 / repeats
        return dict(seconds)

    def sm_clock(self, call: Call) -> SmClock:
        asked = [*_smi(self._uuid), "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", "-lms", "20"]
        try:
            sampler = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except OSError:
            return SmClock(self._spin_hz, "a spinning thread; there is no nvidia-smi")
        try:
            end = time.perf_counter() + BUSY_S
            while time.perf_counter() < end:
                call()
                self._cuda.synchronize()
        finally:
            sampler.terminate()
            text = sampler.communicate(timeout=30)[0]
        while_busy = clocks(text)
        if not while_busy:
            return SmClock(self._spin_hz, f"a spinning thread; nvidia-smi says {text.strip()[:80]!r}")
        return SmClock(statistics.median(while_busy) * 1e6, f"nvidia-smi, median of {len(while_busy)} while busy")

    def peak_bytes(self, call: Call) -> int:
        self._cuda.synchronize()
        self._cuda.empty_cache()
        self._cuda.reset_peak_memory_stats()
        before = self._cuda.memory_allocated()
        call()
        self._cuda.synchronize()
        return self._cuda.max_memory_allocated() - before

    def facts(self) -> dict[str, Any]:
        properties = self._properties
        return {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "fp32_lanes": self.lanes,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            "spin_hz": self._spin_hz,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nvidia_smi": _queried(self._uuid),
        }

    @property
    def _uuid(self) -> str | None:
        found = getattr(self._properties, "uuid", None)
        return None if found is None else f"GPU-{str(found).removeprefix('GPU-')}"


class StandIn:
    """Answers on the CPU. What it says of kernels, clocks and memory is made up."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.lanes = 128
        self._asked = 0

    def times(self, *calls: Call, rounds: int, warmup: int = 3) -> list[Timing]:
        return in_turn(calls, rounds, min(warmup, 1), host_clock)

    def kernels(self, call: Call) -> Mapping[str, float]:
        seconds = host_clock(call)
        return {"_sort_4_kernel": seconds / 4, "_square_8_kernel": 3 * seconds / 4}

    def sm_clock(self, call: Call) -> SmClock:
        call()
        return SmClock(1e9, "made up")

    def peak_bytes(self, call: Call) -> int:
        """More from question to question."""
        call()
        self._asked += 1
        return self._asked << 20

    def facts(self) -> dict[str, Any]:
        return {"name": "stand-in"}


def clocks(text: str) -> list[float]:
    """Megahertz that nvidia-smi printed, a number a line, from the middle on: it started before the work did."""
    values = [float(line) for line in text.splitlines() if re.fullmatch(r"\s*\d+(\.\d+)?\s*", line)]
    return values[len(values) // 2 :]


FIELDS = ("name", "driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit", "temperature.gpu", "pstate")


def _smi(uuid: str | None) -> list[str]:
    return ["nvidia-smi", *(["-i", uuid] if uuid else [])]


def _queried(uuid: str | None) -> dict[str, str] | str:
    """What nvidia-smi says of the device, or why it says nothing."""
    try:
        done = subprocess.run(
            [*_smi(uuid), f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return fields(done.stdout) if done.returncode == 0 else (done.stdout + done.stderr).strip()[:200]


def fields(text: str) -> dict[str, str]:
    return dict(zip(FIELDS, (value.strip() for value in text.strip().split(",")), strict=True))


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Without TF32: for comparing with a reference."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
