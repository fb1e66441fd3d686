"""A clear word about every file that is truncated, foreign, newer or edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fairkern.allocate import allocate
from fairkern.artefacts import load_plan, load_scores, save_plan, save_scores
from fairkern.errors import ArtefactError
from fairkern.types import Plan, Scores
from tests.artefacts.edited import edit_json, edit_tensors
from tests.artefacts.same import same
from tests.synthetic import random_scores, residual


def some_plan() -> Plan:
    return allocate(random_scores(residual().build()), keep_params=0.5, ignore=["head"])


def some_scores() -> Scores:
    return random_scores(residual().build(), seed=3)


@pytest.mark.parametrize("load", [load_plan, load_scores])
def test_a_missing_file_is_a_missing_file(load: Callable, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(share: float, tmp_path: Path) -> None:
    for save, load, value in ((save_plan, load_plan, some_plan()), (save_scores, load_scores, some_scores())):
        path = tmp_path / save.__name__
        save(value, path)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ArtefactError, match=r"is empty|truncated"):
            load(path)


@pytest.mark.filterwarnings("ignore:.*before files had a sum")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\xff", "not a text file"),
        (b"hello", "not JSON"),
        (b"[1, 2]", "holds a JSON list"),
        (b"null", "holds a JSON NoneType"),
        (b"{}", "names no format; expected a fairkern plan, as Plan.save"),
        (b'{"format": "onnx", "schema": 1}', "has the format 'onnx'.*fairkern did not write it"),
        (
            b'{"format": "fairkern.report", "schema": 1}',
            "is a fairkern report; expected a fairkern plan, as Plan.save",
        ),
        (b'{"format": "fairkern.plan"}', "schema None"),
        (b'{"format": "fairkern.plan", "schema": "1"}', "schema '1'"),
        (b'{"format": "fairkern.plan", "schema": true}', "schema True"),
        (b'{"format": "fairkern.plan", "schema": 0}', "schema 0"),
        (
            b'{"format": "fairkern.plan", "schema": 99, "fairkern": "9.1"}',
            "schema 99, written by fairkern 9.1.*upgrade",
        ),
        (b'{"format": "fairkern.plan", "schema": 1}', "'shapes' is missing"),
        (b'{"format": "fairkern.plan", "schema": NaN}', "NaN is not a JSON number"),
        (b"[" * 100_000, "truncated or not JSON"),
        (b'{"format": "fairkern.plan", "schema": 1, "result": {"tod": 1e999}}', "1e999 is beyond every number"),
        (b'{"format": "fairkern.plan", "schema": 1, "model": "a", "model": "b"}', "the key 'model' comes twice"),
        (b'{"format": "fairkern.plan", "schema": 1, "model": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"format": "fairkern.plan", "schema": 1, "model": "\\ud800"}', "not JSON"),
    ],
)
def test_a_foreign_plan(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=message):
        load_plan(tmp_path / "plan.json")


def put(*place: str | int, to: Any) -> Callable[[dict], None]:
    def edit(content: dict) -> None:
        entry = content
        for key in place[:-1]:
            entry = entry[key]
        entry[place[-1]] = to

    return edit


def drop(*place: str | int) -> Callable[[dict], None]:
    def edit(content: dict) -> None:
        entry = content
        for key in place[:-1]:
            entry = entry[key]
        del entry[place[-1]]

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("axes", 0, "removed", to=[[0, 99]]), r"axes\[0\].removed\[0\].*\[0, 99\) ends beyond the length 12"),
        (put("axes", 0, "removed", to=[[2, 3], [0, 1]]), "does not ascend"),
        (put("axes", 0, "removed", to=[[0, 2], [1, 3]]), "does not ascend"),
        (put("axes", 0, "removed", to=[[0, 2], [2, 3]]), "does not ascend"),
        (put("axes", 0, "removed", to=[[2, 2]]), "does not ascend"),
        (put("axes", 0, "removed", to=[[-1, 2]]), "found -1, expected a whole number, at least 0"),
        (put("axes", 0, "removed", to=[[0, 1.5]]), "found 1.5"),
        (put("axes", 0, "removed", to=[[0, 1, 2]]), "expected a list of 2"),
        (put("axes", 0, "removed", to=[3]), "found 3, expected a list of 2"),
        (put("axes", 0, "removed", to="0-3"), "expected a list"),
        (put("axes", 0, "consumer", to=1), "expected true or false"),
        (put("axes", 0, "dim", to=True), "found True, expected a whole number"),
        (put("axes", 0, "dim", to=7), "dim 7 of"),
        (put("axes", 0, "length", to=5), "is given the length 5, but its shape is"),
        (put("axes", 0, "tensor", to="nobody.weight"), "'nobody.weight' is not among the shapes"),
        (put("axes", 0, to=[]), r"axes\[0\]: found \[\], expected an object"),
        (put("axes", to={}), "expected a list"),
        (lambda content: content["axes"].append(content["axes"][0]), "comes twice"),
        (drop("axes"), "'axes' is missing"),
        (drop("axes", 0, "length"), "'length' is missing"),
        (put("groups", 0, "units", to=0), "at least 1"),
        (put("groups", 0, "units", to=3), "ends beyond the length 3"),
        (put("groups", 0, "name", to=None), "found None, expected text"),
        (put("attributes", 0, "after", to="4"), "found '4', expected a whole number"),
        (put("attributes", 0, "module", to=4), "expected text"),
        (put("shapes", "stem.weight", to=[3, "x"]), r"shapes.stem.weight\[1\]"),
        (put("shapes", to=[]), "expected an object"),
        (put("model", to=7), "expected text"),
        (put("request", to=[]), "expected an object"),
        (put("result", to=None), "expected an object"),
        (put("model", to=["x" * 200]), "found .{57}…, expected text"),
        (put("model", to=[[[[[]]]]] * 50), "found .{57}…, expected text"),
        (
            put("axes", 0, "dim", to=2**53),
            r"found 9007199254740992, expected a whole .* less than 2\^53",
        ),
        (put("shapes", "stem.weight", to=[10**4000]), "found 1000.*, expected a whole number"),
    ],
)
def test_an_edited_plan(edit: Callable[[dict], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_plan(some_plan(), path)
    edit_json(path, edit)
    with pytest.raises(ArtefactError, match=message) as caught:
        load_plan(path)
    assert str(path) in str(caught.value)


def edit_content(path: Path, edit: Callable[[dict], None]) -> None:
    """Changes the content of a file of scores, and its sum."""

    def change(metadata: dict) -> None:
        content = json.loads(metadata["content"])
        edit(content)
        metadata["content"] = json.dumps(content)

    edit_tensors(path, metadata=change)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("units", "params", 0, to=[1.0, [999]]), r"units.params\[0\]\[1\]\[0\]: found 999.*less than"),
        (put("units", "flops", 0, to=["1", [0]]), "expected a number"),
        (put("units", "attributes", 0, 2, to=999), "found 999"),
        (put("units", "extents", 0, to=[4, [[99, 1]]]), "found 99, expected a whole number, at least 0, less than 5"),
        (put("units", "extents", 0, to=[4]), "expected a list of 2"),
        (put("units", "groups", 0, "units", to=11), "positions of 12 units in a group of 11"),
        (put("units", "groups", 0, "axes", 0, 3, to=999), "found 999"),
        (put("units", "groups", 0, "axes", 0, 2, to=5), "given the length 5"),
        (put("units", "groups", 0, "axes", 0, 0, to="nobody"), "not among the shapes"),
        (put("units", "groups", 0, "taps", 0, "side", to="left"), "the side 'left'"),
        (put("units", "groups", 0, "taps", 0, "sites", to=[]), "a tap without a site"),
        (put("units", "groups", 0, "taps", 0, "length", to=4), "the position 11 lies beyond the length 4"),
        (put("units", "groups", 0, "frozen", to=False), "expected text"),
        (put("units", "frozen", to=[["nobody", 0, 1, 1, "why"]]), "not among the shapes"),
        (put("units", "proven", to=None), "expected true or false"),
        (put("units", "notes", to=[1]), "expected text"),
        (drop("units"), "'units' is missing"),
        (put("index", 0, to=[10**6, 10]), "ends after"),
        (put("index", to=[]), "expected 0"),
        (put("signals", "taylor", to=[12]), "expected a list of 5"),
        (put("signals", "taylor", 0, to=3), "3 scores for the 12 units of group 'stem'"),
        (put("signals", "taylor", 0, to=0), "the tensor 'signal.taylor' has 30 values, expected 18"),
        (put("signals", "l1", to=[0, 0, 0, 0, 0]), "the tensor 'signal.l1' is missing"),
        (put("means", "neck:input", to=3), "3 means for the tap 'neck:input' of length 12"),
        (put("means", "other", to=3), "the tensor 'means' has"),
        (put("provenance", to=[]), "expected an object"),
    ],
)
def test_edited_scores(edit: Callable[[dict], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    save_scores(some_scores(), path)
    edit_content(path, edit)
    with pytest.raises(ArtefactError, match=message):
        load_scores(path)


def shift(place: int, to: int) -> Callable[[dict], None]:
    def edit(tensors: dict) -> None:
        tensors["index"][place] = to

    return edit


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (shift(0, -1), "negative or do not ascend"),
        (shift(0, 1), "held by two units"),
        (shift(0, 12), "the position 12 lies beyond the length 12"),
        (lambda t: t.update(index=t["index"].int()), "'index' is int32"),
        (lambda t: t.update(means=t["means"].float()), "'means' is float32"),
        (lambda t: t.update(means=t["means"][:, None]), "'means' is float64 of shape"),
        (lambda t: t.pop("index"), "'index' is missing"),
    ],
)
def test_scores_with_other_tensors(tensors: Callable[[dict], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    save_scores(some_scores(), path)
    edit_tensors(path, tensors)
    with pytest.raises(ArtefactError, match=message):
        load_scores(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"schema": "99", "fairkern": "9.1"}, "schema 99, written by fairkern 9.1.*upgrade"),
        (
            {"schema": "1", "fairkern": "0.0"},
            "schema 1, written by fairkern 0.0; this fairkern reads scores of schema 2",
        ),
        ({"schema": "one"}, "schema 'one'"),
        ({"schema": "²"}, "schema '²'"),
        ({"format": "fairkern.plan"}, "is a fairkern plan; expected fairkern scores, as Scores.save"),
        ({"content": "{"}, "metadata that is not JSON"),
        ({"content": "[]"}, "expected an object"),
    ],
)
def test_scores_with_another_header(header: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    save_scores(some_scores(), path)
    edit_tensors(path, metadata=lambda metadata: metadata.update(header))
    with pytest.raises(ArtefactError, match=message):
        load_scores(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_weights_are_not_scores(metadata: dict | None, tmp_path: Path) -> None:
    save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors", metadata)
    with pytest.raises(ArtefactError, match=r"names no format|has the format 'pt'"):
        load_scores(tmp_path / "model.safetensors")


def test_one_kind_is_not_the_other(tmp_path: Path) -> None:
    save_plan(some_plan(), tmp_path / "plan")
    save_scores(some_scores(), tmp_path / "scores")
    with pytest.raises(ArtefactError, match="is a fairkern plan; expected fairkern scores"):
        load_scores(tmp_path / "plan")
    with pytest.raises(ArtefactError, match="is fairkern scores; expected a fairkern plan"):
        load_plan(tmp_path / "scores")


@pytest.mark.parametrize("save", [save_plan, save_scores])
def test_random_damage_is_an_artefact_error_or_harmless(save: Callable, tmp_path: Path) -> None:
    """Bytes changed or dropped at random: what is read is what was written, and no other exception gets out."""
    generator = np.random.default_rng(0)
    load, value = (load_plan, some_plan()) if save is save_plan else (load_scores, some_scores())
    path = tmp_path / "damaged"
    save(value, path)
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        data, place = bytearray(whole), int(generator.integers(len(whole)))
        kind = generator.random()
        if kind < 0.3:
            data[place] = generator.choice(list(b'0123456789[]{},":-.eE '))
        elif kind < 0.7:
            data[place] ^= 1 << int(generator.integers(8))
        else:
            del data[place : place + int(generator.integers(1, 4))]
        path.write_bytes(data)
        try:
            loaded = load(path)
        except ArtefactError:
            refused += 1
        else:
            assert same(loaded, value)
    assert refused > 240
