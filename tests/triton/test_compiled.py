"""Every Triton kernel compiles for the GPUs it is meant for, without spilling a register, and without a GPU.

`pytest tests/triton -m targets` compiles every configuration for every target; by default each kernel once, for sm_90.
"""

from __future__ import annotations

import json
from importlib import metadata

import pytest

pytest.importorskip("triton")

from bench import triton_compiled
from bench.triton_compiled import TARGETS, Launch, compile_for
from fairkern import env
from fairkern.ops import _tuned
from fairkern.ops.wasserstein.generated import __main__ as generator

if env.triton_interpreted():
    pytest.skip("TRITON_INTERPRET=1: kernels are not compiled", allow_module_level=True)

LAUNCHES = triton_compiled.launches()
TUNED = triton_compiled.tuned_launches()
ONCE = list({launch.kernel.__name__: launch for launch in reversed(LAUNCHES)}.values())


@pytest.mark.parametrize("launch", ONCE, ids=lambda launch: launch.name)
def test_kernels_do_not_spill(launch: Launch) -> None:
    assert compile_for(launch, "sm_90").spill_bytes == 0


@pytest.mark.targets
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: launch.name)
def test_no_configuration_spills_on_any_target(launch: Launch, target: str) -> None:
    spilled = compile_for(launch, target).spill_bytes
    if 0 < spilled <= 8 and metadata.version("triton").startswith("3.5."):
        pytest.xfail(f"Triton 3.5 spills {spilled} bytes, which later ones do not")
    assert spilled == 0


@pytest.mark.targets
@pytest.mark.parametrize(("target", "launch"), TUNED, ids=lambda part: part.name if isinstance(part, Launch) else part)
def test_no_tuned_setting_spills_where_it_is_used(target: str, launch: Launch) -> None:
    assert compile_for(launch, target).spill_bytes == 0


def test_a_table_reaches_the_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "gather": {"1024 elements": {"elements": 512, "warps": 2}},
        "gram": {"many channels": {"positions": 16}},
    }
    monkeypatch.setattr(_tuned, "table", lambda: {"sm_90": {"made": {}, "settings": settings}})
    found = triton_compiled.tuned_launches()
    assert {(target, launch.kernel.__name__) for target, launch in found} == {
        ("sm_90", "_gather_kernel"),
        ("sm_90", "_gram_partial_kernel"),
    }
    gathers = [launch for _, launch in found if launch.kernel.__name__ == "_gather_kernel"]
    assert {(launch.constants["ELEMENTS"], launch.warps) for launch in gathers} == {(512, 2)}
    assert compile_for(gathers[0], "sm_90").spill_bytes == 0


def test_the_committed_results_are_of_these_kernels() -> None:
    rows = json.loads(triton_compiled.RESULTS.read_text())["rows"]
    expected = {(launch.case, launch.kernel.__name__, target) for launch in LAUNCHES for target in TARGETS}
    expected |= {(launch.case, launch.kernel.__name__, target) for target, launch in TUNED}
    assert {(row["case"], row["kernel"], row["target"]) for row in rows} == expected
    assert all(row["spill_bytes"] == 0 for row in rows)


def test_the_committed_networks_are_what_the_generator_writes() -> None:
    assert generator.PATH.read_text() == generator.source()


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_the_network_sorts_every_pattern_of_zeros_and_ones(n: int) -> None:
    """The 0-1 principle: then it sorts everything."""
    for pattern in range(2**n):
        wires = [pattern >> i & 1 for i in range(n)]
        for i, j in generator.comparators(n):
            wires[i], wires[j] = min(wires[i], wires[j]), max(wires[i], wires[j])
        assert wires == sorted(wires)


@pytest.mark.parametrize(("n", "count"), [(32, 191), (64, 543)])
def test_large_networks_have_the_known_size(n: int, count: int) -> None:
    assert len(list(generator.comparators(n))) == count
