"""The code behind the figures of memory, at a small size."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")

from bench import _memory, test_memory


@pytest.mark.parametrize("stage", test_memory.STAGES)
def test_every_stage_runs(stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    size = _memory.SIZES["tiny"]
    model, data = _memory.build(size), _memory.batches(size)
    units = _memory.fk.trace(model, {"input_ids": data[0]["input_ids"]})
    found = _memory.STAGES[stage](model, data, units, str(tmp_path))
    weights = sum(p.nbytes for p in model.parameters())

    def measured(name: str, _: str) -> dict[str, Any]:
        return {
            "seconds": 2.0,
            "added_bytes": weights // 2,
            "weights_bytes": weights,
            **(found if name == stage else {}),
        }

    monkeypatch.setattr(test_memory, "measured", measured)
    rows: list[dict[str, Any]] = []
    benchmark: Any = SimpleNamespace(pedantic=lambda *_, **__: None)
    test_memory.row(stage, "tiny", benchmark, lambda _, timed, **what: rows.append({**timed.as_dict(), **what}))
    (row,) = rows
    assert row["added_over_weights"] == 0.5
    assert row["memory"]["met"]
    assert ("met" in row) is stage.startswith("moments")
