"""Launch settings that are measured on a device: what is tried, what is taken, what the table says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from bench._compare import Timing
from bench.gpu import tune
from bench.gpu.cases import Bench
from bench.gpu.machine import StandIn
from bench.gpu.tune import SEARCHES, Search, search
from bench.gpu.workloads import TINY
from bench.triton_compiled import recorded
from fairkern.ops import _registry, _tuned
from fairkern.ops._registry import Backend
from fairkern.ops.gram.config import Tile, tile

CPU = torch.device("cpu")
searches = pytest.mark.parametrize("wanted", SEARCHES, ids=lambda wanted: wanted.name)


@pytest.fixture
def bench() -> Bench:
    return Bench(StandIn(), TINY)


@pytest.fixture
def launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked for launches on CPU tensors, where nothing is started."""
    monkeypatch.setitem(_registry._WHY_NOT, Backend.TRITON, lambda device: None)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives the table other content, on devices that are all of sm_90."""
    monkeypatch.setattr(_tuned, "PATH", tmp_path / "tuned.json")
    monkeypatch.setattr(_tuned, "architecture", lambda device: "sm_90")

    def content(architectures: dict[str, Any]) -> None:
        _tuned.PATH.write_text(json.dumps({"schema": 1, "architectures": architectures}))
        for cached in (_tuned.table, _tuned._of):
            cached.cache_clear()

    yield content
    for cached in (_tuned.table, _tuned._of):
        cached.cache_clear()


# what is tried


@searches
def test_a_call_is_in_the_situation_that_is_tuned(
    wanted: Search, bench: Bench, launchers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    right = _tuned.chosen

    def chosen(kernel: str, situation: str, device: torch.device, configured: Any) -> Any:
        asked.append((kernel, situation))
        return right(kernel, situation, device, configured)

    monkeypatch.setattr(_tuned, "chosen", chosen)
    with recorded(wanted.name):
        wanted.call(bench)()
    assert set(asked) == {(wanted.kernel, wanted.situation)}


@searches
def test_what_is_tried_changes_what_is_launched(wanted: Search, bench: Bench, launchers: None) -> None:
    call = wanted.call(bench)
    seen = set()
    for fields in wanted.tried:
        with _tuned.using(wanted.settings(fields)), recorded(wanted.name) as launches:
            call()
        seen.add(tuple(launch.key for launch in launches))
    assert len(seen) == len(wanted.tried)


def test_names_are_unique() -> None:
    assert len({wanted.name for wanted in SEARCHES}) == len(SEARCHES)


# what is taken


def made(call: Callable[[Bench], Callable[[], object]], count: int = 2) -> Search:
    return Search("gram", "few channels", [{"positions": 16 << i} for i in range(count)], call)


def positions() -> int:
    """What the settings say here."""
    return tile(8, CPU).positions


def timed(bench: Bench, seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bench.machine, "times", lambda *calls, **_: [Timing(s, s, s, 1) for s, _ in zip(seconds, calls, strict=True)]
    )


@pytest.mark.parametrize(
    ("seconds", "best"),
    [([1.0, 0.9, 0.8], {"positions": 32}), ([1.0, 0.98, 1.1], {}), ([1.0, 0.97, 1.0], {"positions": 16})],
)
def test_the_fastest_is_taken_where_it_is_faster_by_a_margin(
    seconds: list[float], best: dict[str, int], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(bench, seconds, monkeypatch)
    assert search(made(lambda _: lambda: torch.ones(3)), bench, {}).best == best


def test_settings_that_give_something_else_or_spill_are_not_timed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(bench, [1.0, 2.0], monkeypatch)
    wanted = made(lambda _: lambda: torch.full((3,), float("nan") if positions() == 16 else 1.0), 3)
    found = search(wanted, bench, {(wanted.name, str(wanted.tried[2])): "spills 8 bytes"})
    assert [row.get("refused", "")[:10] for row in found.rows] == ["", "gives some", "", "spills 8 b"]
    assert found.best == {}


def test_what_spills_or_cannot_be_compiled_is_said(
    bench: Bench, launchers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.triton_compiled import Compiled

    wanted = next(one for one in SEARCHES if one.name == "gather, 1024 elements")
    answers = [(1.0, Compiled(8, 0, 0))] * (len(wanted.tried) - 2) + [
        (1.0, Compiled(255, 16, 0)),
        (1.0, "OutOfResources"),
    ]
    monkeypatch.setattr(tune, "warm", lambda launches, capability, processes: answers[: len(launches)])
    why = tune.refused([wanted], bench, 90, 1)
    assert list(why.values()) == ["spills 16 bytes", "OutOfResources"]
    assert list(why) == [(wanted.name, str(fields)) for fields in wanted.tried[-2:]]


# the table


def test_the_table_is_written_whole_and_read_again(table: Any, tmp_path: Path) -> None:
    other = {"made": {"device": "other", "date": "2026"}, "settings": {}, "tried": {}}
    table({"sm_80": other})
    settings = {"gram": {"few channels": {"positions": 64, "warps": 8}}}
    tune.written(_tuned.PATH, "sm_90", {"device": "a GPU", "date": "2026-12-01T00:00"}, settings, {})
    for cached in (_tuned.table, _tuned._of):
        cached.cache_clear()
    assert _tuned.table()["sm_80"] == other
    assert tile(8, CPU) == Tile(32, 64, 8)
    assert tile(64, CPU) == Tile(64, 32, 8)  # as configured
    assert _tuned.reason(CPU) == "1 settings measured on a GPU, 2026-12-01"


def test_an_architecture_without_a_table_takes_the_configured_settings_and_says_so(table: Any) -> None:
    table({"sm_80": {"made": {}, "settings": {"gram": {"few channels": {"positions": 64}}}}})
    assert tile(8, CPU) == Tile(32, 32, 4)
    assert "no table was made on sm_90 (there are: sm_80)" in _tuned.reason(CPU)
    with _tuned.using({"gram": {"few channels": {"positions": 16}}}):
        assert tile(8, CPU).positions == 16
    assert tile(8, CPU).positions == 32


def test_a_table_of_another_schema_and_unknown_fields_are_errors(table: Any) -> None:
    table({"sm_90": {"made": {}, "settings": {"gram": {"few channels": {"colour": 1}}}}})
    with pytest.raises(TypeError, match="colour"):
        tile(8, CPU)
    _tuned.PATH.write_text('{"schema": 2, "architectures": {}}')
    _tuned.table.cache_clear()
    with pytest.raises(RuntimeError, match="schema 2"):
        _tuned.table()


def test_the_shipped_table_has_what_is_tuned_and_nothing_else() -> None:
    content = json.loads(_tuned.PATH.read_text())
    assert content["schema"] == _tuned.SCHEMA
    known = {(wanted.kernel, wanted.situation): list(wanted.tried) for wanted in SEARCHES}
    for entry in content["architectures"].values():
        assert {"device", "commit", "date", "torch", "triton"} <= entry["made"].keys()
        for kernel, situations in entry["settings"].items():
            for situation, fields in situations.items():
                assert fields in known[kernel, situation]


def test_a_device_without_kernels_is_not_tuned() -> None:
    assert _tuned.architecture(CPU) is None
    assert "cpu" in _tuned.reason(CPU)
