"""Growth of the operators' time: laws at small sizes, the table, the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import documents, growth
from bench.growth import LAWS, Law
from bench.provenance import write_results
from fairkern.ops import _native

# Wide enough for a machine that does other work and for sizes whose ends differ by a factor of ten; narrow enough to
# tell n from n log² n, and n² from either.
SMALL_TOLERANCE = 0.35
SMALL = {
    "U, all pairs of K classes": (30, 100, 300),
    "U, n samples a class, networks": (64, 256, 1024),
    "U, n samples a class, by digits": (12_500, 50_000),
    "U, C channels": (1024, 8192),
    "R, C channels": (64, 512, 4096),
    "second moments, C channels": (256, 512, 1024),
}


compiled = pytest.mark.skipif(_native.unavailable() is not None, reason="laws of the compiled operators")


@compiled
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_a_law_holds_at_small_sizes(law: Law) -> None:
    """Once in some tries: others that use the machine meanwhile bend a line, and make no wrong law hold."""
    rows = (growth.measured(law, SMALL[law.name], seconds=0.05) for _ in range(8))
    apart = []
    for row in rows:
        apart.append(abs(row["slope"] - row["predicted"]))
        if apart[-1] <= SMALL_TOLERANCE:
            return
    pytest.fail(f"slopes are {apart} apart")


@compiled
def test_another_law_would_be_noticed() -> None:
    linear = next(law for law in LAWS if law.name == "R, C channels")
    wrong = Law("", "", "", linear.sizes, lambda n: float(n) ** 2, linear.made)
    row = growth.measured(wrong, SMALL[linear.name], seconds=0.05)
    assert not row["met"]
    assert abs(row["slope"] - row["predicted"]) > SMALL_TOLERANCE


def test_the_slope_is_that_of_a_power() -> None:
    sizes = (3, 10, 100)
    assert growth.slope(sizes, [5 * n**1.5 for n in sizes]) == pytest.approx(1.5)


def test_predicted_slopes_are_those_of_the_laws() -> None:
    predicted = {law.name: growth.slope(law.sizes, [law.work(n) for n in law.sizes]) for law in LAWS}
    assert predicted["second moments, C channels"] == pytest.approx(2)
    assert predicted["R, C channels"] == pytest.approx(1)
    assert 1.2 < predicted["U, n samples a class, networks"] < 1.5
    assert 1.8 < predicted["U, all pairs of K classes"] < 2


def test_counts_of_comparators_are_those_of_the_network() -> None:
    """Half a comparator for every doubling squared: Batcher's own count, to a quarter and closer as samples grow."""

    def merge_exchange(doublings: int) -> float:
        return (doublings**2 - doublings + 4) * 2.0 ** (doublings - 2) - 1

    for doublings in (3, 5, 10, 13):
        assert np.log2(2**doublings) ** 2 / 4 == pytest.approx(merge_exchange(doublings) / 2**doublings, rel=0.25)


def test_the_picture_and_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        {"case": law.name, "over": law.over, "law": law.law, "sizes": list(law.sizes), "slope": 1.3, "predicted": 1.25,
         "seconds": [1e-6 * law.work(n) for n in law.sizes], "target": 0.15, "met": True} for law in LAWS
    ]  # fmt: skip
    monkeypatch.setattr(growth, "PICTURE", tmp_path / "pictures" / "growth.png")
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    assert "not measured" in documents.growth()
    growth.draw(rows)
    assert (tmp_path / "pictures" / "growth.png").read_bytes().startswith(b"\x89PNG")
    write_results(tmp_path / "growth.json", rows=rows)
    table = documents.growth()
    assert table.count("1.25 | 1.30 | 0.05 ≤ 0.15, met |") == len(LAWS)
    assert "8 to 8,192 samples per class" in table
