"""Every part of the reliability benchmark, small: it runs, finds what is wrong, and finds nothing wrong today."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fairkern as fk
from bench.provenance import ROOT
from bench.reliability import __main__ as command
from bench.reliability import (
    coverage,
    damage,
    fuzz,
    interrupts,
    isolated,
    kills,
    native_fuzz,
    options,
    page,
    soak,
    threads,
)
from bench.reliability.damages import BYTES, JSON_WAYS, TENSOR_WAYS, damaged
from bench.reliability.rows import Row, Tally
from bench.reliability.signing import signed
from bench.reliability.subjects import KINDS, Made, make, mirrored, retrained


@pytest.fixture(scope="module")
def made() -> Made:
    return make("convolutions")


def right(rows: list[Row]) -> None:
    for row in rows:
        assert not row.wrong, row.examples
        assert row.count > 0 or row.not_run


@pytest.mark.parametrize("name", KINDS)
def test_readers_tell_files_apart(name: str, made: Made, tmp_path: Path) -> None:
    """Otherwise the reading of a damaged file would count as right."""
    kind, texts = KINDS[name], []
    for i, version in enumerate((made, made, mirrored(made), retrained(made))):
        (tmp_path / str(i)).mkdir()
        kind.write(version, tmp_path / str(i))
        texts.append(kind.read(tmp_path / str(i), made.name))
    assert texts[0] == texts[1]
    pruned = kind.load.__name__ == "_load_pruned"
    assert (texts[0] != texts[2]) == (pruned or name == "plan")
    assert (texts[0] != texts[3]) == pruned


@pytest.mark.parametrize("name", ["weights", "plan"])
def test_every_way_damages_and_a_seed_says_how(name: str, made: Made, tmp_path: Path) -> None:
    kind, files = KINDS[name], []
    for i, version in enumerate((made, mirrored(made))):
        (tmp_path / str(i)).mkdir()
        kind.write(version, tmp_path / str(i))
        files.append((tmp_path / str(i) / kind.file).read_bytes())
    ways = JSON_WAYS if name == "plan" else TENSOR_WAYS
    for number in range(200):
        way, data = damaged(kind.file, *files, np.random.default_rng([7, number]))
        assert (way, data) == damaged(kind.file, *files, np.random.default_rng([7, number]))
    for way in set(ways):
        changed = [way(*files, np.random.default_rng(number)) != files[0] for number in range(20)]
        assert sum(changed) > 10, way.__name__
    assert set(BYTES) < set(ways)


def test_damaged_files() -> None:
    rows = list(damage.run(seed=1, count=140))
    right(rows)
    assert sum(row.count for row in rows) == 140
    assert all(row.outcomes[damage.REFUSED] > row.count / 4 for row in rows)


def test_a_reader_that_believes_everything_is_found_out(made: Made, tmp_path: Path) -> None:
    kind = KINDS["plan"]
    kind.write(made, tmp_path)
    whole = kind.read(tmp_path, made.name)
    assert damage._outcome(kind, tmp_path, made.name, {whole}) == (damage.SAME, "")
    assert damage._outcome(kind, tmp_path, made.name, {"another"}) == (damage.DIFFERENT, "")


def test_killed_writers_and_readers_beside_a_writer() -> None:
    right(list(kills.run(seed=1, count=12)))


def test_interrupts() -> None:
    right(list(interrupts.run(seed=1, count=10)))


def test_two_threads() -> None:
    right(list(threads.run(seed=1, count=6)))


def test_wrong_options() -> None:
    right(list(options.run(seed=1, count=40)))


def test_a_soak() -> None:
    right(list(soak.run(seed=1, count=8)))


@pytest.mark.parametrize("kind", ["plan", "weights"])
def test_readers_under_the_fuzzer(kind: str) -> None:
    pytest.importorskip("atheris")
    row = fuzz._reader(kind, seed=1, count=300)
    right([row])
    assert row.count >= 300
    assert row.measured["edges"] > 50


@pytest.mark.slow
def test_native_entry_points_under_the_fuzzer(tmp_path: Path) -> None:
    try:
        native_fuzz.compiler()
    except native_fuzz.Unavailable as missing:
        pytest.skip(str(missing))
    rows = list(native_fuzz.run(seed=1, count=6000, folder=tmp_path))
    right(rows)
    assert [row.case for row in rows] == [f"native: {name}" for name in native_fuzz.SHARES]


def test_what_cannot_run_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native_fuzz.shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rows = list(fuzz.run(count=10))
    assert [bool(row.not_run) for row in rows] == [True, True]
    assert all(row.not_run in page.page({"fuzz": rows}, source(), None) for row in rows)


def test_what_the_fuzzer_found_is_told() -> None:
    said = "INFO: ok\nWRONG: gather\n==1== ERROR\nBase64: AAEC\nstat::number_of_executed_units: 812\n"
    assert native_fuzz.outcome(said, 77) == (812, "WRONG: gather | Base64: AAEC")
    assert native_fuzz.outcome("stat::number_of_executed_units: 5\n", 0) == (5, "")
    assert native_fuzz.outcome("cannot link", 1) == (0, "exit code 1: cannot link")


def dying(count: int) -> Iterator[int]:
    import os

    yield from range(count)
    os._exit(3)


def test_a_process_that_dies_is_told_of() -> None:
    found = []
    with pytest.raises(isolated.Died, match="exit code 3"):
        found.extend(isolated.items(dying, 2))


def test_lines_that_no_test_ran() -> None:
    assert list(coverage._spans([3, 5, 6, 7, 9])) == ["3", "5–7", "9"]


def source() -> dict[str, Any]:
    return {"packages": {"torch": "2"}, "date": "2026-01-01T00:00", "device": "some"}


def test_parts_that_are_not_run_keep_their_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def part(name: str, outcome: str) -> Any:
        tally = Tally(("bad",))
        tally.add(outcome, "case 3: why | so")
        row = tally.row(name, "some", seed=4)
        return type("Part", (), {"run": staticmethod(lambda seed=4, count=1: iter([row]))})

    monkeypatch.setattr(command, "RESULTS", tmp_path / "reliability.json")
    monkeypatch.setattr(command, "MUTATION", tmp_path / "mutation.json")
    monkeypatch.setattr(command, "PAGE", tmp_path / "reliability.md")
    monkeypatch.setattr(command, "PARTS", {"kills": part("kills", "good"), "threads": part("threads", "bad")})
    assert command.main(["kills"]) == 0
    assert command.main(["threads", "--seed", "9"]) == 1
    rows = json.loads((tmp_path / "reliability.json").read_text())["rows"]
    assert [(row["part"], row["outcomes"]) for row in rows] == [("kills", {"good": 1}), ("threads", {"bad": 1})]
    text = (tmp_path / "reliability.md").read_text()
    assert "| threads | 1 | 4 | 1 |" in text
    assert "- some: bad: case 3: why \\| so" in text
    with pytest.raises(SystemExit):
        command.main(["--count", "3"])


def test_the_document_is_what_the_results_say() -> None:
    assert command.PAGE.read_text() == command.written(), "run `python -m bench.reliability --document`"
    assert set(command.stored()) == set(command.PARTS)
    assert all(asdict(row)["part"] == part for part, rows in command.stored().items() for row in rows)


def test_what_was_tried_came_out_right() -> None:
    rows = [row for found in command.stored().values() for row in found]
    assert [(row.case, row.examples) for row in rows if row.wrong] == []


def test_as_much_was_tried_as_was_asked_for() -> None:
    rows = command.stored()
    tried = {part: sum(row.count for row in found) for part, found in rows.items()}
    asked = {"damage": 20_000, "fuzz": 10**6, "kills": 300, "interrupts": 360, "graphs": 2000}
    assert {part: tried[part] for part, count in asked.items() if tried[part] < count} == {}
    assert [(row.case, row.not_run) for found in rows.values() for row in found if row.not_run] == []


def test_the_page_speaks_of_every_part() -> None:
    assert set(command.PARTS) == set(page.ABOUT)
    text = (ROOT / "docs" / "reliability.md").read_text()
    assert re.findall(r"^## (\w+)", text, re.MULTILINE)[: len(command.PARTS)] == [p.capitalize() for p in command.PARTS]


@pytest.mark.parametrize("name", KINDS)
def test_sums_are_made_anew(name: str, made: Made, tmp_path: Path) -> None:
    kind, path = KINDS[name], tmp_path / KINDS[name].file
    kind.write(made, tmp_path)
    data = path.read_bytes()
    path.write_bytes(signed(kind.file, data))
    expected = kind.read(tmp_path, made.name)
    was, becomes = {"latency table": (b"3.25", b"3.26"), "report": (b'"cut": 0.5', b'"cut": 0.6')}.get(
        name, (b"Convolutions", b"Konvolutions")
    )
    changed = data.replace(was, becomes)
    path.write_bytes(changed)
    with pytest.raises(fk.ArtefactError, match="does not have the sum"):
        kind.read(tmp_path, made.name)
    path.write_bytes(signed(kind.file, changed))
    if name == "folder's plan":  # the weights name another
        with pytest.raises(fk.ArtefactError, match="was written with another plan"):
            kind.read(tmp_path, made.name)
    else:
        assert (kind.read(tmp_path, made.name) == expected) == (name == "weights")  # which names the model for people
