"""Every file has a sum over all that it says: whatever is changed in it is found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairkern.allocate import allocate
from fairkern.artefacts import (
    SCHEMA,
    load_latency,
    load_plan,
    load_scores,
    read_json,
    save_latency,
    save_plan,
    save_scores,
    write_json,
)
from fairkern.artefacts.files import SUM
from fairkern.artefacts.tensors import open_tensors, write_tensors
from fairkern.errors import ArtefactError
from fairkern.report import load_report, save_report
from fairkern.types import (
    AttributeChange,
    Axis,
    ConfigChange,
    LatencyTable,
    Plan,
    PlanAxis,
    Replacement,
    Report,
    Silence,
    SizeChange,
)
from tests.artefacts.edited import edit_json, edit_tensors, without_sum
from tests.artefacts.same import same
from tests.artefacts.test_damaged import some_plan, some_scores
from tests.synthetic import chain, random_scores

FOUND = "does not have the sum that it names: the file was edited or damaged"


def full_plan() -> Plan:
    """A plan that has something in every entry."""
    plan = allocate(random_scores(chain((3,)).build()), keep_params=0.6)
    router = PlanAxis(Axis("router.weight", 0), 3, plan.axes[0].removed[:0], Silence.MINUS_INFINITY)
    return replace(
        plan,
        shapes={**plan.shapes, "router.weight": (3, 4)},
        axes=(*plan.axes, router),
        attributes=(AttributeChange("layer", "out_channels", 8, 4),),
        sites=(SizeChange("block", 2, "view", 1, 8, 4), SizeChange("block", None, "view", 1, 8, 4, "f:1", True)),
        replacements=(Replacement("attention", "MultiheadAttention"),),
        config=(ConfigChange("heads", 4, 2), ConfigChange("width", None, 2)),
        lists={"experts": ("experts.0", "experts.1")},
        seen={"block": ("f", "g")},
    )


TABLE = LatencyTable(
    {"conv": {"out": 0.5}}, {"a": 1.5}, {"b": 0.0}, ("w",), {"w": (2, 3)}, 2.5, 0.125, {"device": "cpu", "seed": 3}
)
REPORT = Report(
    "demo",
    {"params": 10},
    {"params": 5.5},
    ({"group": "stem", "rate": 0.5},),
    {"cut": 1.0},
    {"proven": True},
    {"a": "1"},
)

KINDS: list[tuple[Callable[..., None], Callable[[Path], Any], Any]] = [
    (save_plan, load_plan, full_plan()),
    (save_latency, load_latency, TABLE),
    (save_report, load_report, REPORT),
]


def leaves(content: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield (*place, key)
        yield from leaves(value, (*place, key))


def others(value: Any) -> list[Any]:
    """Values that could stand there as well."""
    if isinstance(value, bool) or value is None:
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1, float(value), str(value)] if isinstance(value, int) else [value + 1e-12]
    if isinstance(value, str):
        return [value + "x"]
    if isinstance(value, list):
        return [value[:-1], value[::-1]] if len(value) > 1 and value != value[::-1] else [[*value, 1]]
    return [{**value, "more": 1}]


@pytest.mark.parametrize(("save", "load", "value"), KINDS, ids=["plan", "latency", "report"])
def test_every_change_is_found(save: Callable, load: Callable, value: Any, tmp_path: Path) -> None:
    """Each value in the file in turn: removed, another of its kind, another kind, in another order."""
    path = tmp_path / "file.json"
    save(value, path)
    whole = path.read_text("utf-8")
    places = list(leaves(json.loads(whole)))
    assert len(places) > 15
    tried = 0
    for *above, last in places:
        entry = json.loads(whole)
        content = entry
        for key in above:
            entry = entry[key]
        before = entry.pop(last)
        for changed in (None, *others(before)):
            if changed is not None:
                entry.insert(last, changed) if isinstance(entry, list) else entry.__setitem__(last, changed)
            path.write_text(json.dumps(content), "utf-8")
            with pytest.raises(ArtefactError):
                load(path)
            tried += 1
            if changed is not None:
                del entry[last]
    assert tried > 40


@pytest.mark.parametrize(("save", "load", "value"), KINDS, ids=["plan", "latency", "report"])
def test_what_is_meant_is_summed_up_and_not_the_layout(
    save: Callable, load: Callable, value: Any, tmp_path: Path
) -> None:
    """Other line ends, indents and escapes are the same file (version control turns line ends)."""
    path = tmp_path / "file.json"
    save(value, path)
    content = json.loads(path.read_text("utf-8"))
    for text in (json.dumps(content), json.dumps(content, indent=3), path.read_text("utf-8").replace("\n", "\r\n")):
        path.write_bytes(text.encode())
        assert same(load(path), value)


def test_the_message_says_what_to_do(tmp_path: Path) -> None:
    save_plan(some_plan(), tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text("utf-8")
    (tmp_path / "plan.json").write_text(text.replace('"dim": 0', '"dim": 1', 1), "utf-8")
    with pytest.raises(ArtefactError, match=rf"plan\.json.*{FOUND}.*Write the plan again.*changed in Python"):
        load_plan(tmp_path / "plan.json")


def test_a_file_without_its_sum(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_plan(some_plan(), path)
    edit_json(path, lambda content: content.pop(SUM))
    with pytest.raises(ArtefactError, match=FOUND):
        load_plan(path)


def test_an_older_schema_does_not_excuse_a_wrong_sum(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_plan(some_plan(), path)
    text = path.read_text("utf-8")
    path.write_text(text.replace(f'"schema": {SCHEMA}', '"schema": 3'), "utf-8")
    with pytest.raises(ArtefactError, match=FOUND):
        load_plan(path)


def test_older_files_are_read_with_a_note(tmp_path: Path) -> None:
    for k, (save, load, value) in enumerate(KINDS):
        save(value, tmp_path / str(k))
        edit_json(tmp_path / str(k), without_sum)
        with pytest.warns(UserWarning, match="written before files had a sum"):
            assert same(load(tmp_path / str(k)), value)


def raw(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_raw(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_older_scores_are_read_with_a_note(tmp_path: Path) -> None:
    save_scores(some_scores(), tmp_path / "s")
    header, data = raw(tmp_path / "s")
    del header["__metadata__"][SUM]
    put_raw(tmp_path / "s", header, data)
    with pytest.raises(ArtefactError, match=FOUND):
        load_scores(tmp_path / "s")
    header["__metadata__"]["schema"] = "3"
    put_raw(tmp_path / "s", header, data)
    with pytest.warns(UserWarning, match="written before files had a sum"):
        assert same(load_scores(tmp_path / "s"), some_scores())


def test_a_bit_of_every_byte_of_scores(tmp_path: Path) -> None:
    """What the file says after it is what it said before, or it is refused; of the data no bit is without meaning."""
    save_scores(some_scores(), tmp_path / "s")
    whole, data = (tmp_path / "s").read_bytes(), len(raw(tmp_path / "s")[1])
    for place in range(0, len(whole), 31):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "s").write_bytes(damaged)
        try:
            loaded = load_scores(tmp_path / "s")
        except ArtefactError:
            continue
        assert place < len(whole) - data
        assert same(loaded, some_scores())


def swapped(header: dict[str, Any]) -> None:
    one, other = header["means"]["data_offsets"], header["signal.taylor"]["data_offsets"]
    header["means"]["data_offsets"], header["signal.taylor"]["data_offsets"] = other, one
    one, other = header["means"]["shape"], header["signal.taylor"]["shape"]
    header["means"]["shape"], header["signal.taylor"]["shape"] = other, one


@pytest.mark.parametrize(
    "edit",
    [
        swapped,
        lambda header: header["means"].update(dtype="I64"),
        lambda header: header["means"].update(shape=[1, *header["means"]["shape"]]),
        lambda header: header.update(more={"dtype": "F64", "shape": [0], "data_offsets": [0, 0]}),
        lambda header: header.update(mean=header.pop("means")),
        lambda header: header["__metadata__"].update(more=""),
        lambda header: header["__metadata__"].update(fairkern="9"),
        lambda header: header["__metadata__"].update(content=header["__metadata__"]["content"].replace("0", "1", 1)),
    ],
)
def test_a_header_that_says_something_else(edit: Callable[[dict], None], tmp_path: Path) -> None:
    save_scores(some_scores(), tmp_path / "s")
    header, data = raw(tmp_path / "s")
    edit(header)
    put_raw(tmp_path / "s", header, data)
    with pytest.raises(ArtefactError, match=FOUND):
        load_scores(tmp_path / "s")


def test_the_order_in_a_header_means_nothing(tmp_path: Path) -> None:
    """Other writers of the format order tensors and texts as they like."""
    save_scores(some_scores(), tmp_path / "s")
    header, data = raw(tmp_path / "s")
    texts = header.pop("__metadata__")
    put_raw(tmp_path / "s", {**dict(reversed(header.items())), "__metadata__": dict(sorted(texts.items()))}, data)
    assert same(load_scores(tmp_path / "s"), some_scores())


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for k in range(2):
        save_scores(some_scores(), tmp_path / f"scores{k}")
        save_plan(some_plan(), tmp_path / f"plan{k}")
    for name in ("scores", "plan"):
        assert (tmp_path / f"{name}0").read_bytes() == (tmp_path / f"{name}1").read_bytes()


def test_an_edit_with_the_right_sum_is_read(tmp_path: Path) -> None:
    """The helpers of these tests do what they say."""
    write_json(tmp_path / "j", "report", {"a": 1})
    edit_json(tmp_path / "j", lambda content: content.update(a=2))
    assert read_json(tmp_path / "j", "report") == {"a": 2}
    save_scores(some_scores(), tmp_path / "s")
    edit_tensors(tmp_path / "s", lambda tensors: tensors["means"].mul_(2))
    assert not same(load_scores(tmp_path / "s"), some_scores())
    with open_tensors(tmp_path / "s") as file:
        write_tensors(tmp_path / "t", file.read()[0], file.metadata)
    assert (tmp_path / "s").read_bytes() == (tmp_path / "t").read_bytes()
