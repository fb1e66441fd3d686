"""Compile every Triton kernel in its shipped configurations, without a GPU, and count registers and spills.

`python -m bench.triton_compiled` writes `bench/results/triton_compiled.json`. A configuration is what a launcher asks
for on representative input: the launchers run on CPU tensors, and their launches are recorded instead of started.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.provenance import ROOT, provenance, write_results
from fairkern.ops import _triton, _tuned

RESULTS = ROOT / "bench" / "results" / "triton_compiled.json"
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "sm_120": ("cuda", 120, 32),
    "gfx942": ("hip", "gfx942", 64),
}
_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Launch:
    """One kernel as a launcher asks for it, specialised as Triton's runtime would."""

    case: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...]  # arguments that are multiples of 16
    warps: int
    stages: int
    programs: int
    arguments: Mapping[str, Any]  # all of them, as they were given

    @property
    def name(self) -> str:
        return f"{self.case} · {self.kernel.__name__}"

    @property
    def configuration(self) -> dict[str, Any]:
        """Warps, and the compile-time arguments."""
        return {"warps": self.warps, **{key: str(value) for key, value in self.constants.items() if key.isupper()}}

    @property
    def key(self) -> tuple[Any, ...]:
        """Launches of the same key are the same machine code."""
        constants = tuple((name, str(value)) for name, value in self.constants.items())
        return self.kernel.__name__, tuple(self.signature.items()), constants, self.divisible, self.warps, self.stages


@dataclass(frozen=True)
class Compiled:
    """What a compiled kernel takes per thread (registers, spilled bytes) and per program (shared bytes)."""

    registers: int
    spill_bytes: int
    shared_bytes: int


@contextmanager
def recorded(case: str) -> Iterator[list[Launch]]:
    """Launches inside the block, in order."""
    seen: list[Launch] = []

    def record(
        kernel: Any, programs: int, device: torch.device, arguments: Mapping[str, Any], warps: int, stages: int = 1
    ) -> None:
        assert programs > 0
        seen.append(specialised(case, kernel, programs, arguments, warps, stages))

    original = _triton.launch
    _triton.launch = record
    try:
        yield seen
    finally:
        _triton.launch = original


def specialised(case: str, kernel: Any, programs: int, arguments: Mapping[str, Any], warps: int, stages: int) -> Launch:
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible: list[str] = []
    assert set(arguments) == set(kernel.arg_names), set(arguments) ^ set(kernel.arg_names)
    for parameter in kernel.params:
        name, value = parameter.name, arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
            if value.data_ptr() % 16 == 0:
                divisible.append(name)
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                divisible.append(name)
    return Launch(case, kernel, signature, constants, tuple(divisible), warps, stages, programs, dict(arguments))


def compile_for(launch: Launch, target: str) -> Compiled:
    """Machine code for `target`; nothing is run."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    attributes = {(launch.kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in launch.divisible}
    source = ASTSource(launch.kernel, launch.signature, constexprs=launch.constants, attrs=attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return taken(triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options))


def taken(made: Any) -> Compiled:
    """What a kernel that Triton compiled takes."""
    if "amdgcn" in made.asm:
        text = made.asm["amdgcn"]
        counts = {key: int(re.search(rf"\.{key}:\s+(\d+)", text)[1]) for key in ("vgpr_count", "vgpr_spill_count")}
        return Compiled(counts["vgpr_count"], 4 * counts["vgpr_spill_count"], made.metadata.shared)
    usage = _resources(made.asm["cubin"])
    spilled = _spilled(made.asm["ptx"]) if usage["STACK"] + usage["LOCAL"] else 0  # the stack holds other things too
    return Compiled(usage["REG"], spilled, made.metadata.shared)


def _resources(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_tool("cuobjdump"), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def _spilled(ptx: str) -> int:
    """Bytes of spill stores that the assembler reports."""
    architecture = re.search(r"\.target (sm_(\d+)a?)", ptx)
    assert architecture is not None
    assembler = _tool("ptxas-blackwell" if int(architecture[2]) >= 100 else "ptxas")
    if not Path(assembler).exists():  # Triton 3.5 has one for all
        assembler = _tool("ptxas")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [assembler, "-v", f"-arch={architecture[1]}", str(source), "-o", str(source.with_suffix(".cubin"))]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(count) for count in re.findall(r"(\d+) bytes spill stores", text))


def _tool(name: str) -> str:
    """A tool that comes with Triton."""
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def _class_wasserstein(units: int, projections: int, counts: list[int], dtype: torch.dtype, reduce: str) -> None:
    from fairkern.ops.wasserstein import group_by_class, triton_kernel

    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    order, offsets = group_by_class(labels, len(labels), labels.device)
    triton_kernel.class_wasserstein(_zeros(len(labels), units, projections, dtype=dtype), order, offsets, reduce)


def _taylor(
    *layers: tuple[tuple[int, ...], int],
    dtype: torch.dtype = torch.float32,
    last: bool = False,
    running: torch.dtype | None = None,
) -> None:
    from fairkern.ops import TaylorSums
    from fairkern.ops.taylor import triton_kernel

    layout = torch.channels_last if last else torch.contiguous_format
    jobs = []
    for shape, dim in layers:
        x = _zeros(*shape, dtype=dtype).contiguous(memory_format=layout)
        jobs.append((x, x, dim, None if running is None else TaylorSums.zeros(shape[dim], dtype=running).fields))
    triton_kernel.taylor_many(jobs, scale=1.0)


def _project(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False, directions: int = 128) -> None:
    from fairkern.ops.project import triton_kernel

    x = _zeros(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    onto, rows = _zeros(torch.Size(shape[2:]).numel(), directions), torch.arange(0, shape[0], 2)
    triton_kernel.project(x, onto, rows, _zeros(len(rows), shape[1], directions))


def _gram(*shape: int, dim: int = 1, dtype: torch.dtype = torch.float32) -> None:
    from fairkern.ops.gram import triton_kernel

    triton_kernel.gram(_zeros(*shape, dtype=dtype), dim)


def _gather(*shape: int, dtype: torch.dtype = torch.float32, dims: tuple[int, ...] = (0, 1)) -> None:
    from fairkern.ops.gather import triton_kernel

    triton_kernel.gather(_zeros(*shape, dtype=dtype), {dim: torch.arange(0, shape[dim], 2) for dim in dims})


CASES: dict[str, Callable[[], object]] = {
    "class_wasserstein K=10 n=32 P=128": lambda: _class_wasserstein(64, 128, [32] * 10, torch.float32, "max"),
    "class_wasserstein K=100 n=32 P=128": lambda: _class_wasserstein(32, 128, [32] * 100, torch.float32, "max"),
    "class_wasserstein K=100 n=16 P=1": lambda: _class_wasserstein(512, 1, [16] * 100, torch.float32, "max"),
    "class_wasserstein K=8 n=64 P=1": lambda: _class_wasserstein(64, 1, [64] * 8, torch.float32, "max"),
    "class_wasserstein K=4 n=8 P=16": lambda: _class_wasserstein(64, 16, [8] * 4, torch.float32, "max"),
    "class_wasserstein K=5 n=3, 4 P=1": lambda: _class_wasserstein(64, 1, [4, 4, 3, 4, 4], torch.float32, "max"),
    "class_wasserstein K=20 bfloat16 mean": lambda: _class_wasserstein(64, 16, [32] * 20, torch.bfloat16, "mean"),
    "class_wasserstein K=20 float16 pairs": lambda: _class_wasserstein(64, 16, [32] * 20, torch.float16, "pairs"),
    "taylor contiguous": lambda: _taylor(((4, 64, 56, 56), 1), ((4, 256, 28, 28), 1), ((4, 64, 14, 14), 1)),
    "taylor 7×7 and small": lambda: _taylor(((4, 512, 7, 7), 1), ((4, 8, 3, 3), 1)),
    "taylor channels-last": lambda: _taylor(((4, 64, 28, 28), 1), last=True),
    "taylor channels-last bfloat16": lambda: _taylor(((4, 64, 28, 28), 1), last=True, dtype=torch.bfloat16),
    "taylor contiguous bfloat16": lambda: _taylor(((4, 64, 56, 56), 1), ((4, 64, 14, 14), 1), dtype=torch.bfloat16),
    "taylor tokens": lambda: _taylor(((4, 128, 1024), 2), ((4, 128, 512), 2)),
    "taylor tokens float16": lambda: _taylor(((4, 128, 1024), 2), dtype=torch.float16),
    "taylor running sums": lambda: _taylor(((4, 64, 28, 28), 1), ((4, 256, 14, 14), 1), running=torch.float64),
    "taylor running sums float32": lambda: _taylor(((4, 64, 28, 28), 1), running=torch.float32),
    "taylor linear": lambda: _taylor(((256, 1024), 1)),
    "project contiguous": lambda: _project(8, 64, 28, 28),
    "project channels-last": lambda: _project(8, 64, 28, 28, last=True),
    "project bfloat16": lambda: _project(8, 64, 28, 28, dtype=torch.bfloat16),
    "project few": lambda: _project(8, 16, 7, 7, directions=16),
    "gram linear": lambda: _gram(256, 512),
    "gram contiguous": lambda: _gram(8, 128, 28, 28),
    "gram bfloat16": lambda: _gram(256, 512, dtype=torch.bfloat16),
    "gram float16 few": lambda: _gram(8, 32, 28, 28, dtype=torch.float16),
    "gather rows × columns": lambda: _gather(256, 256),
    "gather rows × columns bfloat16": lambda: _gather(256, 256, dtype=torch.bfloat16),
    "gather rows": lambda: _gather(256, 2048, dims=(0,)),
    "gather convolution": lambda: _gather(64, 64, 3, 3),
    "gather experts": lambda: _gather(8, 64, 64, dims=(0, 1, 2)),
    "gather bytes": lambda: _gather(256, 255, dtype=torch.int8, dims=(1,)),
}


def launches() -> list[Launch]:
    """Every kernel in every configuration of `CASES`, each machine code once."""
    found: dict[tuple[Any, ...], Launch] = {}
    for case, call in CASES.items():
        with recorded(case) as seen:
            call()
        for launch in seen:
            found.setdefault(launch.key, launch)
    return list(found.values())


def tuned_launches() -> list[tuple[str, Launch]]:
    """What the table of launch settings changes of these, with the architecture that it is for."""
    found = []
    plain = {launch.key for launch in launches()}
    for architecture, entry in _tuned.table().items():
        with _tuned.using(entry["settings"]):
            found += [(architecture, launch) for launch in launches() if launch.key not in plain]
    return found


def main() -> None:
    import triton

    rows = []
    everywhere = [(target, launch) for launch in launches() for target in TARGETS]
    for target, launch in (*everywhere, *tuned_launches()):
        row = {"case": launch.case, "kernel": launch.kernel.__name__, "target": target, **launch.configuration}
        rows.append({**row, **asdict(compile_for(launch, target))})
        print(launch.name, target, rows[-1]["registers"], rows[-1]["spill_bytes"], file=sys.stderr)
    found = provenance()
    source = {key: found[key] for key in ("commit", "uncommitted_changes", "date", "python", "torch")}  # on any device
    write_results(RESULTS, source=source, triton=triton.__version__, rows=rows)


if __name__ == "__main__":
    main()
