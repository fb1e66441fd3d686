"""The committed results files: bounds are judged as they are written, and what is missed is explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import documents
from bench._compare import Comparison, Timing, bound
from bench.provenance import provenance

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "bench" / "results").glob("*.json"))


def rows(path: Path) -> list[dict[str, Any]]:
    """What has a bound; of scoring the floor may have one beside it."""
    found = json.loads(path.read_text()).get("rows", [])
    floors = [{"case": row["case"], **row["floor"]} for row in found if "floor" in row]
    return [row for row in (*found, *floors) if "at_least" in row]


def unexplained(found: list[dict[str, Any]], page: str) -> list[str]:
    """Cases that are missed, and that the page's last part does not name."""
    explained = page.partition("## Not reached")[2]
    return [row["case"] for row in found if not row["met"] and f"`{row['case']}`" not in explained]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_bounds_are_judged_by_the_figures(path: Path) -> None:
    for row in rows(path):
        value = row[row["bounded"]] if "bounded" in row else row["value"]
        assert bound(value, row["target"], row["at_least"]).items() <= row.items(), row["case"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_missed_is_explained(path: Path) -> None:
    assert unexplained(rows(path), (ROOT / "docs" / "performance.md").read_text()) == []


def test_an_unexplained_miss_is_seen() -> None:
    missed = {"case": "slow", "met": False}
    assert unexplained([missed, {"case": "fast", "met": True}], "`slow`\n## Not reached\n") == ["slow"]
    assert unexplained([missed], "## Not reached\n`slow` waits for memory") == []


@pytest.mark.parametrize(
    ("of", "target", "at_least", "met"),
    [("ratio", 2.0, True, True), ("ratio", 2.1, True, False), ("relative_cost", 0.5, False, True)],
)
def test_a_bound_holds_either_way(of: str, target: float, at_least: bool, met: bool) -> None:
    timed = Comparison(Timing.of([1.0, 1.0]), Timing.of([2.0]))
    assert timed.bound(of, target, at_least) == {"bounded": of, "target": target, "at_least": at_least, "met": met}


def test_a_row_with_a_bound_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    assert "not measured" in documents.network_pruner()
    timed = Comparison(Timing.of([1.0]), Timing.of([20.0]))
    passes = {"ordinary_passes": {"ours": 1.2, "rival": 97.0}}
    row = {"case": "a", "shape": "a CNN", "rival": "the package", **passes, **timed.as_dict()}
    rows = [row, {**row, **timed.bound("ratio", 15.0, True)}, {**row, **timed.bound("relative_cost", 0.01, False)}]
    (tmp_path / "network_pruner.json").write_text(json.dumps({**provenance(), "rows": rows}))
    text = documents.network_pruner()
    assert [word in text for word in ("against 97)", "| ≤ 0.0667, met |", "| ≤ 0.01, missed |")] == [True] * 3
