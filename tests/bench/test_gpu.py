"""The code behind the figures of `pytest -m gpu`, run on the CPU at small sizes, so that on a GPU it runs at once."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from bench import documents
from bench.gpu import operators, scoring, suite, whole
from bench.gpu.cases import Bench, Case, Measured
from bench.gpu.llama import LLAMA_1B, llama
from bench.gpu.machine import FIELDS, Cuda, StandIn, clocks, fields
from bench.gpu.results import Results
from bench.gpu.workloads import (
    FULL,
    TINY,
    additions,
    half,
    llama_activations,
    llama_cut,
    moved,
    read_by_consumers,
    resnet_cut,
)
from bench.models import cnn, images, resnet18, resnet50
from fairkern import ops

ROOT = Path(__file__).resolve().parents[2]
CASES = (*operators.CASES, *scoring.CASES, *whole.CASES)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(StandIn(), TINY)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_row_runs_and_is_plain_json(case: Case, bench: Bench) -> None:
    row = json.loads(json.dumps(case.row(bench), allow_nan=False))
    assert row["value"] > 0 or case.name == "sequential"  # at that size, less than what rounds differ by
    expected = None
    if case.target is not None:
        expected = row["value"] >= case.target if case.at_least else row["value"] <= case.target
    assert row["met"] is expected
    assert {"case", "what", "measure", "target", "at_least"} < row.keys()


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(("at_least", "value", "met"), [(True, 2.0, True), (True, 1.9, False), (False, 2.1, False)])
def test_a_missed_target_is_said(at_least: bool, value: float, met: bool, bench: Bench) -> None:
    case = Case("name", "what", "measure", 2.0, at_least, lambda _: Measured(value, {"ours_s": {}}))
    assert case.row(bench)["met"] is met


def test_a_wrong_result_is_not_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.machine, "times", lambda *_, **__: pytest.fail("it was timed"), raising=False)
    right = ops.project

    def wrong(x: torch.Tensor, directions: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        return right(x, directions, **options).mul_(1.001)

    monkeypatch.setattr(operators.ops, "project", wrong)
    with pytest.raises(AssertionError, match="not close"):
        next(case for case in CASES if case.name == "project-llama").run(bench)


# results file


def test_the_results_file_is_whole_after_every_row(bench: Bench, tmp_path: Path) -> None:
    results = Results(tmp_path / "results" / "gpu.json", "abc")
    for number in (1, 2):
        results.add({"case": f"row {number}"}, bench, {"passed": 5, "failed": number})
        found = json.loads(results.path.read_text())
        assert [row["case"] for row in found["rows"]] == [f"row {i}" for i in range(1, number + 1)]
    assert found["tests_before"] == {"passed": 5, "failed": 1}  # before the first row
    assert {"commit", "date", "torch", "triton", "numpy", "machine", "copy", "cuda_extension"} < found.keys()
    assert found["copy"]["bytes_per_s"] > 0
    assert list(tmp_path.rglob("*.partial")) == []


def test_documents_without_and_with_results(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    nothing = documents.gpu().splitlines()
    assert sum("not measured" in line for line in nothing) == len(CASES)
    results = Results(tmp_path / "gpu.json", "abc")
    for case in CASES[:-1]:
        results.add(case.row(bench), bench, {"passed": 5, "failed": 0})
    lines = documents.gpu().splitlines()
    assert [sum(word in line for line in lines) for word in ("not measured", "stand-in")] == [1, 1]
    for case in CASES:
        (line,) = [line for line in lines if line.startswith(f"| {case.what} |") and case.measure in line]
        bound = "" if case.target is None else f"{'≥' if case.at_least else '≤'} {case.target:g}"
        assert f"| {bound} |" in line
    assert all(line.count("|") == lines[1].count("|") for line in lines if line.startswith("|"))


# shapes


@pytest.mark.parametrize(
    ("build", "parameters", "name"), [(resnet18, 11_689_512, "resnet18"), (resnet50, 25_557_032, "resnet50")]
)
def test_the_networks_are_those_of_imagenet(build: object, parameters: int, name: str) -> None:
    mine = build()
    assert sum(p.numel() for p in mine.parameters()) == parameters
    if importlib.util.find_spec("torchvision") is None:
        return
    import torchvision

    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None)
    assert sorted(p.shape for p in mine.parameters()) == sorted(p.shape for p in theirs.parameters())


def test_resnet50_is_read_where_it_should_be() -> None:
    shapes = read_by_consumers(resnet50(), 224, 64)
    assert shapes[0] == (64, 64, 56, 56)
    assert shapes[-1] == (64, 2048)
    assert (64, 512, 7, 7) in shapes


def test_llama_shapes() -> None:
    assert llama_activations(FULL)[:2] == [(8, 512, 14336), (8, 512, 4096)]
    assert len(llama_activations(FULL)) == 8
    shapes = {tuple(weight.shape) for weight, _ in llama_cut(TINY, CPU)}
    assert shapes == {(24, 8), (8, 24), (8, 8), (4, 8)}


def test_the_llama_has_the_parameters_of_its_name_and_reads_the_past_alone() -> None:
    whole = llama(LLAMA_1B, 8, torch.device("meta"))
    assert sum(p.numel() for p in whole.parameters()) == 1_100_048_384
    small = llama(TINY.language, 8, CPU, torch.float32)
    ids = torch.arange(8)[None] % 5
    with torch.no_grad():
        logits, changed = small(ids), small(torch.cat([ids[:, :7], ids[:, 7:] + 1], 1))
    assert torch.equal(logits[:, :7], changed[:, :7])
    assert not torch.equal(logits[:, 7], changed[:, 7])


def test_half_keeps_runs_together() -> None:
    kept = half(32, 0, CPU, run=4)
    assert len(kept) == 16
    assert torch.equal(kept.view(4, 4) % 4, torch.arange(4).expand(4, 4))
    assert torch.equal(kept, kept.sort().values)


@pytest.mark.parametrize(
    ("shape", "indices", "dtype", "expected"),
    [
        ((8, 64), {0: [1, 5]}, torch.float32, 2 * 256 + 2 * 256),  # whole rows
        ((8, 64), {1: [0, 1, 63]}, torch.float32, 8 * 2 * 32 + 8 * 3 * 4),  # two sectors a row
        ((8, 64), {0: [0], 1: [8, 16]}, torch.float32, 1 * 2 * 32 + 2 * 4),
        ((4, 8, 3, 3), {0: [0, 1], 1: [0]}, torch.float32, 2 * 2 * 32 + 2 * 36),  # 36 bytes touch two sectors
        ((16,), {0: [0, 1, 2]}, torch.bfloat16, 32 + 6),
        ((2, 16), {}, torch.float32, 128 + 128),
    ],
)
def test_bytes_that_a_gather_must_move(shape, indices, dtype, expected) -> None:
    kept = {dim: torch.tensor(index) for dim, index in indices.items()}
    assert moved(torch.zeros(shape, dtype=dtype), kept) == expected


def test_additions_are_two_per_element_of_every_pair() -> None:
    assert additions(FULL) == 2 * 4950 * 32 * 2048 * 128


def test_a_cut_of_resnet_keeps_about_a_quarter_of_every_inner_weight() -> None:
    jobs = resnet_cut(TINY, CPU)
    assert all(len(index) == weight.shape[dim] // 2 for weight, kept in jobs for dim, index in kept.items())
    assert any(set(kept) == {0, 1} for _, kept in jobs)


def test_images_are_balanced_and_repeat() -> None:
    x, y = images(20, 6, 1, 8)
    assert y.bincount().tolist() == [4, 4, 3, 3, 3, 3]
    assert torch.equal(x, images(20, 6, 1, 8)[0])
    assert cnn(6)(x).shape == (20, 6)


def test_the_eager_rival_is_the_reference() -> None:
    x = torch.randn(5 * 4, 3, 2, generator=torch.Generator().manual_seed(0))
    expected = ops.class_wasserstein(x, torch.arange(20) % 5, backend="reference")
    torch.testing.assert_close(operators.eager_class_wasserstein(x, 5), expected)
    torch.testing.assert_close(operators.eager_class_wasserstein(x, 5, at_once=1), expected)


# the CUDA side, over a device that is made up


class FakeEvent:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeCuda.log.append("event")

    def elapsed_time(self, end: FakeEvent) -> float:
        return 2.0  # milliseconds


class FakeCuda:
    log: list[str] = []  # noqa: RUF012
    Event = FakeEvent

    @staticmethod
    def get_device_properties(index: int) -> SimpleNamespace:
        return SimpleNamespace(
            name="made up",
            major=9,
            minor=0,
            multi_processor_count=132,
            L2_cache_size=64,
            total_memory=1 << 37,
            uuid="1-2",
        )

    @staticmethod
    def _sleep(cycles: int) -> None:
        FakeCuda.log.append(f"sleep {cycles}")

    @staticmethod
    def synchronize() -> None:
        FakeCuda.log.append("synchronize")

    @staticmethod
    def empty_cache() -> None: ...

    @staticmethod
    def reset_peak_memory_stats() -> None: ...

    @staticmethod
    def memory_allocated() -> int:
        return 1000

    @staticmethod
    def max_memory_allocated() -> int:
        return 1700


def test_times_are_between_two_events_behind_a_spinning_device() -> None:
    machine = Cuda(FakeCuda, "cpu")
    assert machine.lanes == 132 * 128
    assert machine.facts()["spin_hz"] == 100_000_000 / 2e-3
    FakeCuda.log.clear()
    (timing,) = machine.times(lambda: FakeCuda.log.append("call"), rounds=1, warmup=0)
    assert timing.p50 == 2e-3
    assert FakeCuda.log == ["synchronize", f"sleep {int(0.005 * 5e10)}", "event", "call", "event", "synchronize"]
    assert machine.peak_bytes(lambda: None) == 700


def test_the_profiler_is_asked_as_this_torch_wants_it() -> None:
    assert Cuda(FakeCuda, "cpu").kernels(lambda: None, repeats=1) == {}


@pytest.mark.parametrize("there", [True, False])
def test_the_clock_comes_from_nvidia_smi_or_from_spinning(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    if there:
        program.write_text("#!/bin/sh\nprintf '345\\n345\\n1900\\n1950\\n1980\\n'\nexec sleep 60\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("bench.gpu.machine.BUSY_S", 0.3)
    clock = Cuda(FakeCuda, "cpu").sm_clock(lambda: None)
    assert (clock.hz == 1950e6) is there
    assert ("spinning" in clock.source) is not there


def test_what_nvidia_smi_prints_is_read() -> None:
    assert clocks("345\n1980\n [N/A]\n1965\n") == [1980, 1965]
    assert clocks("No devices were found\n") == []
    line = "NVIDIA H200, 580.159.04, 1980 MHz, 3201 MHz, 700.00 W, 34, P0\n"
    assert fields(line) == dict(zip(FIELDS, [v.strip() for v in line.split(",")], strict=True))


# the command


def test_one_command_collects_tests_and_then_benchmarks_without_optional_packages(tmp_path: Path) -> None:
    """As on a machine that has torch, Triton and pytest, and nothing that only other tests need."""
    (tmp_path / "without.py").write_text(
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "gone = {'hypothesis', 'torchvision', 'sklearn', 'matplotlib', 'timm', 'transformers', 'ot'}\n"
        "class Others:\n"
        "    @staticmethod\n"
        "    def find_spec(name, *rest):\n"
        "        return None if name.partition('.')[0] in gone else PathFinder.find_spec(name, *rest)\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = Others\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            "--commit=abc",
            "--collect-only",
            "-q",
            "-p",
            "without",
            "-p",
            "no:cacheprovider",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    found = [line for line in done.stdout.splitlines() if re.match(r"(tests|bench)/\S+::", line)]
    benches = [number for number, line in enumerate(found) if line.startswith("bench/")]
    assert benches == list(range(len(found) - len(CASES), len(found)))
    assert len(found) > 500
    files = {line.partition(".py::")[0] for line in found[: -len(CASES)]}
    assert files == {f"tests/{name}" for name in (*suite.KERNELS, *suite.PIPELINE)}  # none that `run.sh` leaves out


def test_every_row_is_skipped_where_there_is_no_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider", "bench/test_gpu.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"{len(CASES)} skipped" in done.stdout, done.stdout
    assert "no CUDA device" in done.stdout


def test_the_module_lists_the_same_rows() -> None:
    from bench import test_gpu

    assert test_gpu.CASES == CASES
