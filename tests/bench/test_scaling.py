"""What scoring takes as things grow: cases at small sizes, the model of cost, the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.scaling import document, one
from bench.scaling.__main__ import CASES, measured
from bench.scaling.cost import Machine, cost
from bench.scaling.decoder import NAMED, Decoder

SMALL = Decoder("small", layers=2, hidden=8, inner=20, heads=4, key_heads=2, head=2, vocabulary=11)
MIXED = Decoder("mixed", 3, 8, 20, 4, 2, 2, 11, mixtures=1, experts=4, active=2, expert=6, shared=5)


def test_parameters_and_widths_are_those_of_a_model() -> None:
    attention = 2 * 8 * 8 + 2 * 8 * 4
    assert SMALL.parameters == 2 * (attention + 3 * 8 * 20) + 2 * 11 * 8
    assert SMALL.multiply_adds == SMALL.parameters - 11 * 8
    assert SMALL.orders == {8: 2, 20: 2}
    assert SMALL.read == {8: 2 + 4, 20: 2}
    assert MIXED.parameters == 3 * attention + 3 * 8 * (2 * 20 + 4 * 6 + 5) + 2 * 11 * 8
    assert MIXED.multiply_adds == MIXED.parameters - 11 * 8 - 3 * 8 * 2 * 6
    assert MIXED.orders == {8: 3, 20: 2, 6: 4, 5: 1}
    assert MIXED.block == attention + 3 * 8 * (4 * 6 + 5)


@pytest.mark.parametrize(("name", "billions"), [("8B", 8.03), ("70B", 70.55), ("400B", 400.7)])
def test_named_sizes_are_those_that_are_published(name: str, billions: float) -> None:
    (decoder,) = (d for d in NAMED if d.name.startswith(name))
    assert decoder.parameters / 1e9 == pytest.approx(billions, rel=5e-3)


def test_cost_is_work_over_rates() -> None:
    machine = Machine("one", passes=2.0, moments=4.0, orders=8.0, disk=16.0)
    found = cost(SMALL, 10, machine, keep=0.5).seconds
    taps = 10 * (6 * 8**2 + 2 * 20**2)
    assert found["forwards"] == 10 * SMALL.multiply_adds / 2
    assert found["second moments"] == taps / 2 / 4
    assert found["orders"] == (2 * 8**3 + 2 * 20**3) / 8
    assert found["reading and writing"] == 3.5 * 2 * SMALL.parameters / 16
    eight = cost(SMALL, 10, Machine(**{**vars(machine), "devices": 8}), keep=0.5).seconds
    assert eight["orders"] == found["orders"] / 8
    assert eight["forwards in both, refitted"] > found["forwards in both, refitted"] / 8  # refits are not shared out


def small() -> list[dict[str, Any]]:
    """Every case of the bench, smaller."""
    sizes = {"layers": 1, "width": 32, "tokens": 256, "units": 32, "count": 4}
    rows = []
    for over, case in CASES:
        little = {name: sizes.get(name, value) for name, value in case.items()}
        kind = little.pop("kind")
        if little.get("ranks", 1) == 1:
            more = {"rates": {"rows": 8, "width": 16, "inner": 24, "disk": 2**12}, "classes": {"samples": 64}}
            rows.append({"over": over, **case, **getattr(one, kind)(**little, **more.get(kind, {}))})
    return rows


def test_all_cases_run_and_the_page_has_them(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    rows = small()
    assert torch.get_num_threads() == threads
    results = {"date": "2026-01-02T03", "device": "a machine", "threads": 1, "torch": "2.9", "commit": "0123456789"}
    document.write({**results, "rows": rows}, tmp_path / "scaling.md")
    text = (tmp_path / "scaling.md").read_text()
    assert all(f"| {decoder.name} | " in text for decoder in NAMED)
    assert text.count("| eight H100 |") == len(NAMED)
    assert "not measurements" in text


def test_a_case_in_two_processes() -> None:
    found = measured({"kind": "decoder", "layers": 1, "width": 32, "tokens": 256, "ranks": 2})
    assert found["score_s"] > 0
    assert found["forward_backward_s"] is None
