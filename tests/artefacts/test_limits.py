"""Numbers in files ask for no memory, and for no work, before they are held against what is there."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairkern.artefacts import load_latency, load_plan, load_scores, save_latency, save_plan, save_scores
from fairkern.artefacts.plans import read_plan_payload
from fairkern.artefacts.tensors import open_tensors
from fairkern.errors import ArtefactError
from fairkern.types import LatencyTable
from tests.artefacts.edited import edit_json, edit_tensors
from tests.artefacts.test_damaged import put, some_plan, some_scores

MOST = 5_000_000  # bytes that a reader may take to refuse a small file


def refuses(load: Callable[[Path], Any], path: Path, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ArtefactError, match=message):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()


def vast_axis(content: dict[str, Any]) -> None:
    axis = content["axes"][0]
    content["shapes"][axis["tensor"]][axis["dim"]] = axis["length"] = 10**9
    axis["removed"] = [[0, 10**9 - 1]]


def vast_group(content: dict[str, Any]) -> None:
    content["groups"][0].update(units=2**52, removed=[[0, 2**51]])


def hidden_group(content: dict[str, Any]) -> None:
    """A run that goes backward does not make up for one that is too long."""
    content["groups"][0].update(units=2**40, removed=[[0, 10**9]])
    content["groups"][1]["removed"] = [[10**9, 0]]


def many_rows(content: dict[str, Any]) -> None:
    content["groups"][0].update(units=2**40, sets=3, removed=[[[0, 2**40]]] * 3)


@pytest.mark.parametrize("edit", [vast_axis, vast_group, hidden_group, many_rows])
def test_a_small_plan_of_many_positions(edit: Callable[[dict], None], tmp_path: Path) -> None:
    save_plan(some_plan(), tmp_path / "plan.json")
    edit_json(tmp_path / "plan.json", edit)
    refuses(load_plan, tmp_path / "plan.json", "positions that go")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("result", 10**400, "JSON holds finite numbers only"),
        ("request", [[[]]] * 3 + [json.loads("[" * 90 + "]" * 90)], "within each other"),
    ],
)
def test_what_could_not_be_written_is_not_read(name: str, value: Any, message: str, tmp_path: Path) -> None:
    save_plan(some_plan(), tmp_path / "plan.json")
    edit_json(tmp_path / "plan.json", put(name, "more", to=value))
    refuses(load_plan, tmp_path / "plan.json", message)


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_a_time_beyond_every_float(value: int, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    save_latency(LatencyTable({}, {}, {}, (), {}, 1.0, 0.0, {}), path)
    edit_json(path, put("whole", to=value))
    refuses(load_latency, path, "expected a number, a finite one")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("index", 0, to=[2**52, 0]), "units that hold no position"),
        (put("index", 0, to=[2**52, 2**52]), "ends after"),
        (put("units", "groups", 0, "axes", to=[]), "hold no axis"),
        (put("means", "neck:input", to=2**52), "means for the tap"),
        (put("means", "other", to=2**52), "expected"),
    ],
)
def test_small_scores_of_many_numbers(edit: Callable[[dict], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "scores"
    save_scores(some_scores(), path)

    def change(metadata: dict[str, str]) -> None:
        content = json.loads(metadata["content"])
        edit(content)
        metadata["content"] = json.dumps(content)

    edit_tensors(path, metadata=change)
    refuses(load_scores, path, message)


def with_header(path: Path, header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[Any], start: Any, stop: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def read(path: Path) -> None:
    with open_tensors(path) as file:
        file.read()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry("F64", [2**40], 0, 2**43)}, b"", "its tensors end at"),
        ({"a": entry("F64", [2**40], 0, 8)}, b"12345678", r"8 bytes for F64 of the shape \(1099511627776,\)"),
        ({"a": entry("F64", [0, 2**52, 2**52], 0, 0)}, b"", "a shape that no tensor has"),
        ({"a": entry("U8", [1] * 5_000, 0, 1)}, b"1", "a shape that no tensor has"),
        ({"a": entry("U8", [2**52] * 5_000, 0, 1)}, b"1", "a shape that no tensor has"),
        ({"a": entry("U8", [1e0], 0, 1)}, b"1", "found 1.0, expected a whole number"),
        ({"a": entry("U8", [True], 0, 1)}, b"1", "found True, expected a whole number"),
        ({"a": entry("U8", [-1], 0, -1)}, b"", "found -1"),
        ({"a": entry("U8", [1], 1, 0)}, b"1", "-1 bytes for U8"),
        (
            {"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 0, 1)},
            b"1",
            "at 0, where those before it end at 1",
        ),
        ({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"123", "begin at 2, where"),
        ({"a": entry("U8", [1], 0, 1)}, b"12", "its tensors end at"),
        ({"a": entry("F4", [1], 0, 1)}, b"1", "the dtype 'F4', expected one of BOOL, U8"),
        ({"a": entry("BOOL", [2], 0, 2)}, b"\x01\x02", "truth values that are neither 0 nor 1"),
        ({"a": [1]}, b"", "expected an object"),
        ({"a": {"dtype": "U8"}}, b"", "'shape' is missing"),
        ({"__metadata__": {"a": 1}}, b"", "expected text"),
        ({"__metadata__": []}, b"", "expected an object"),
        (b"[]", b"", "expected an object"),
        (b'{"a": {}, "a": {}}', b"", "comes twice"),
        (b"\xff\xff", b"", "not a safetensors file"),
        (b"[" * 100_000, b"", "not a safetensors file"),
        (b'{"__metadata__": {"a": "\\ud800"}}', b"", "not a safetensors file"),
        (b'{"\\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}', b"", "not a safetensors file"),
        (b'{"a": 1e999}', b"", "1e999 is beyond every number"),
    ],
)
def test_headers_that_contradict_themselves(header: Any, data: bytes, message: str, tmp_path: Path) -> None:
    refuses(read, with_header(tmp_path / "t", header, data), message)


@pytest.mark.parametrize("length", [2**63, 2**40, 3, 2**64 - 1])
def test_a_header_that_is_longer_than_the_file(length: int, tmp_path: Path) -> None:
    refuses(read, with_header(tmp_path / "t", b"{}", length=length), "truncated or not a safetensors file")


def test_a_plan_of_a_large_model_is_read(tmp_path: Path) -> None:
    """Many experts, of which everyone loses one run: what is refused is far from what a model has."""
    rows = 64 * 8
    content = {
        "model": "",
        "request": {},
        "result": {},
        "axes": [],
        "attributes": [],
        "shapes": {},
        "groups": [{"name": "e", "kind": "", "units": 14336, "sets": rows, "removed": [[[0, 7168]]] * rows}],
    }
    plan = read_plan_payload(content, tmp_path)
    assert plan.groups[0].removed.shape == (rows, 7168)
