"""Files: exact round trips and atomic writes."""

from __future__ import annotations

import errno
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from fairkern.types import Silence

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fairkern as fk
from fairkern.allocate import allocate
from fairkern.artefacts import (
    SCHEMA,
    load_plan,
    load_scores,
    read_json,
    replacing,
    save_plan,
    save_scores,
    write_json,
)
from fairkern.errors import ArtefactError, InputError
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.types import (
    AttributeChange,
    Axis,
    ConfigChange,
    ConfigField,
    FrozenAxis,
    Plan,
    PlanAxis,
    PlanGroup,
    Replacement,
    Scores,
    SizeChange,
    SizeSite,
)
from tests.artefacts.edited import edit_json, without_sum
from tests.artefacts.same import same
from tests.synthetic import chain, concat, random_scores, residual, resnet50


def some_plan() -> Plan:
    return allocate(random_scores(residual().build()), keep_params=0.5, ignore=["head"])


def some_scores() -> Scores:
    units = replace(
        residual().build(),
        sites=(SizeSite("layer0.0", 2, "view", 1, 0),),
        replacements=(Replacement("attn", "MultiheadAttention"),),
        config=(
            ConfigField("width", None, 6, (1, 2)),
            ConfigField("text.heads", 6, 6, (1,), fixed=True),
            ConfigField("heads", 6, 6, (1,), admitted=(2, 6)),
            ConfigField("none", 6, 6, (1,), admitted=()),
        ),
    )
    return random_scores(units, seed=3)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    text = st.text(max_size=6)
    value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=6,
    )
    shapes = draw(st.dictionaries(text, st.lists(st.integers(1, 40), max_size=4).map(tuple), max_size=4))
    places = [(tensor, dim) for tensor, shape in shapes.items() for dim in range(len(shape))]

    def removed(length: int) -> np.ndarray:
        return np.array(sorted(draw(st.sets(st.integers(0, length - 1)))), dtype=np.int64)

    silences = [silence for silence in Silence if silence is not Silence.NOTHING_ADDED]  # that is of branches alone
    axes = tuple(
        PlanAxis(Axis(tensor, dim), shapes[tensor][dim], removed(shapes[tensor][dim]), draw(st.sampled_from(silences)))
        for tensor, dim in places
        if draw(st.booleans())
    )
    units = draw(st.lists(st.integers(1, 40), max_size=3))
    attributes = st.builds(AttributeChange, text, text, st.integers(0, 99), st.integers(0, 99))
    entries = st.dictionaries(text, value, max_size=3)
    count = st.integers(0, 9)
    sites = st.builds(SizeChange, text, count, text, count, st.integers(1, 99), st.integers(1, 99))
    config = st.builds(ConfigChange, text, st.none() | st.integers(0, 99), st.integers(1, 99))
    return Plan(
        draw(text),
        tuple(PlanGroup(draw(text), draw(text), n, removed(n)) for n in units),
        axes,
        tuple(draw(st.lists(attributes, max_size=3))),
        shapes,
        draw(entries),
        draw(entries),
        tuple(draw(st.lists(sites, max_size=3))),
        tuple(draw(st.lists(st.builds(Replacement, text, text), max_size=3))),
        tuple(draw(st.lists(config, max_size=3))),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans())
def test_any_plan_comes_back(plan: Plan, tmp_path: Path) -> None:
    save_plan(plan, tmp_path / "plan.json")
    assert same(load_plan(tmp_path / "plan.json"), plan)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7])
def test_plans_of_a_large_map_come_back(fraction: float, tmp_path: Path) -> None:
    units = resnet50().build()
    plan = build(units, random_removal(units, fraction, seed=0))
    save_plan(plan, tmp_path / "plan.json")
    assert same(load_plan(tmp_path / "plan.json"), plan)


def test_an_allocated_plan_comes_back_and_reads_well(tmp_path: Path) -> None:
    plan = some_plan()
    save_plan(plan, tmp_path / "plan.json")
    assert same(load_plan(str(tmp_path / "plan.json")), plan)
    lines = (tmp_path / "plan.json").read_text("utf-8").splitlines()
    assert lines[1:3] == ['  "format": "fairkern.plan",', f'  "schema": {SCHEMA},']
    assert '    "keep_params": 0.5,' in lines


def test_runs_are_half_open_and_compact(tmp_path: Path) -> None:
    wide = PlanAxis(Axis("head.weight", 1), 10**6, np.arange(49, 500_000), Silence.ZERO)
    plan = replace(some_plan(), axes=(wide,), shapes={"head.weight": (2, 10**6)})
    save_plan(plan, tmp_path / "plan.json")
    assert read_json(tmp_path / "plan.json", "plan")["axes"][0]["removed"] == [[49, 500_000]]
    assert (tmp_path / "plan.json").stat().st_size < 10_000
    assert same(load_plan(tmp_path / "plan.json"), plan)


@pytest.mark.parametrize("sketch", [chain, concat, residual, resnet50])
def test_scores_come_back_bitwise(sketch: Callable, tmp_path: Path) -> None:
    units = replace(sketch().build(), notes=("one pass", "größer"), proven=True)
    tensor, shape = list(units.shapes.items())[-1]
    units = replace(units, frozen=(FrozenAxis(Axis(tensor, 0), 2, shape[0], "no consumer"),))
    scores = random_scores(units, seed=7)
    scores.signals["taylor"][0][0] = -0.0
    scores.signals["wasserstein"][0][0] = 5e-324
    scores = replace(scores, provenance={"seed": 7, "backends": {"u": "reference"}, "seconds": 0.1, "none": None})
    save_scores(scores, tmp_path / "scores.safetensors")
    assert same(load_scores(tmp_path / "scores.safetensors"), scores)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.floats(), min_size=8, max_size=8), name=st.text(max_size=5))
def test_any_float_and_any_signal_name_come_back(values: list[float], name: str, tmp_path: Path) -> None:
    """NaN and Inf too: what a pass found is on record, whatever allocation says to it."""
    units = chain((8,)).build()
    means = {units.groups[0].taps[0].name: np.array(values * 4)}
    scores = Scores(units, {name: (np.array(values),), "l1": (np.zeros(0),)}, means)
    save_scores(scores, tmp_path / "scores.safetensors")
    assert same(load_scores(tmp_path / "scores.safetensors"), scores)


def test_scores_without_groups_come_back(tmp_path: Path) -> None:
    scores = Scores(replace(chain().build(), groups=(), extents=(), params=(), flops=(), attributes=()), {}, {})
    save_scores(scores, tmp_path / "scores.safetensors")
    assert same(load_scores(tmp_path / "scores.safetensors"), scores)


def test_loaded_scores_make_the_same_plan(tmp_path: Path) -> None:
    scores = some_scores()
    save_scores(scores, tmp_path / "s")
    assert same(allocate(load_scores(tmp_path / "s"), keep_flops=0.4), allocate(scores, keep_flops=0.4))


def test_equal_index_arrays_are_stored_once(tmp_path: Path) -> None:
    save_scores(random_scores(resnet50().build()), tmp_path / "s")
    with safe_open(tmp_path / "s", "numpy") as file:
        assert sorted(file.keys()) == ["index", "means", "signal.taylor", "signal.wasserstein", "totals"]
        # one run of places for each width that occurs: 64, 128, 256, 512, 1024, 2048
        assert len(file.get_tensor("index")) == 64 + 128 + 256 + 512 + 1024 + 2048


def test_mappings_become_plain_dictionaries(tmp_path: Path) -> None:
    plan = replace(
        some_plan(),
        request=MappingProxyType({"a": (1, np.float64(0.5), np.array([1, 2]))}),
        result=OrderedDict(b=np.bool_(True), c=np.int64(3)),
    )
    save_plan(plan, tmp_path / "plan.json")
    loaded = load_plan(tmp_path / "plan.json")
    assert same((loaded.request, loaded.result), ({"a": [1, 0.5, [1, 2]]}, {"b": True, "c": 3}))


def test_any_other_kind_of_json(tmp_path: Path) -> None:
    payload = {"title": "demo", "rows": [{"a": 1}, {"a": 2}], "empty": {}, "none": [], "text": "Σ"}
    write_json(tmp_path / "report.json", "report", payload)
    assert same(read_json(tmp_path / "report.json", "report"), payload)
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["format"] == "fairkern.report"


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"a": {"b": [float("nan")]}}, r"report.a.b\[0\] is nan"),
        ({"a": float("inf")}, "report.a is inf"),
        ({"a": {1: 2}}, "has the key 1"),
        ({"a": {2, 3}}, "report.a is a set"),
        ({"a": b"x"}, "report.a is a bytes"),
        ({"schema": 2}, "'schema' belongs to the file's header"),
        ({"sha256": ""}, "'sha256' belongs to the file's header"),
        ({"a": [10**400]}, r"report.a\[0\] is a whole number of 1329 bits"),
        ({"a": "\ud800"}, "text that no file can"),
        ({"a": nested(100)}, "lists and mappings within each other"),
    ],
)
def test_what_json_cannot_hold(payload: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_json(tmp_path / "report.json", "report", payload)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_scores_of_another_type_are_not_converted_in_silence(dtype: type, tmp_path: Path) -> None:
    scores = some_scores()
    scores = replace(scores, signals={"l1": tuple(s.astype(dtype) for s in scores.signals["taylor"])})
    with pytest.raises(InputError, match=f"signal 'l1' holds {np.dtype(dtype)}"):
        save_scores(scores, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("before")

    def half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        half()
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert path.read_text() == "before"


def test_a_failed_sync_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "plan.json"
    save_plan(some_plan(), path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_plan(replace(some_plan(), model="Other"), path)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert path.read_bytes() == before


def test_file_and_folder_are_synced_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def record_sync(descriptor: int) -> None:
        done.append("folder" if os.path.samestat(os.fstat(descriptor), os.stat(tmp_path)) else "file")
        fsync(descriptor)

    def record_rename(source: Path, target: Path) -> None:
        assert source.parent == target.parent
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_rename)
    save_plan(some_plan(), tmp_path / "plan.json")
    assert done == ["file", "rename", "folder"]


def test_a_missing_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_plan(some_plan(), tmp_path / "new" / "one" / "plan.json")
    assert load_plan(tmp_path / "new" / "one" / "plan.json").model == some_plan().model

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_plan(some_plan(), tmp_path / "other" / "one" / "plan.json")
    with pytest.raises(OSError, match=r"plan\.json"):
        save_plan(some_plan(), tmp_path / "new" / "one" / "plan.json" / "plan.json")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "latest.json").symlink_to(tmp_path / "kept" / "plan.json")
    save_plan(some_plan(), tmp_path / "latest.json")
    assert (tmp_path / "latest.json").is_symlink()
    assert (tmp_path / "kept" / "plan.json").is_file()


def test_the_file_has_the_callers_permissions(tmp_path: Path) -> None:
    save_plan(some_plan(), tmp_path / "plan.json")
    (tmp_path / "other").touch()
    assert (tmp_path / "plan.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def with_sets() -> Plan:
    """Two experts that lose different positions of one axis, and one of three experts in another tensor."""
    inner = PlanAxis(Axis("experts.down", 2), 5, np.array([[0, 3], [1, 4]]), Silence.ZERO)
    router = PlanAxis(Axis("router.weight", 0), 3, np.array([1]), Silence.MINUS_INFINITY)
    groups = (PlanGroup("up", "expert neuron", 5, np.array([[0, 3], [1, 4]]), sets=2),)
    shapes = {"experts.down": (2, 4, 5), "router.weight": (3, 4)}
    return replace(some_plan(), groups=groups, axes=(inner, router), shapes=shapes)


def test_sets_come_back(tmp_path: Path) -> None:
    save_plan(with_sets(), tmp_path / "plan.json")
    assert same(load_plan(tmp_path / "plan.json"), with_sets())
    content = read_json(tmp_path / "plan.json", "plan")
    assert content["axes"][0]["removed"] == [[[0, 1], [3, 4]], [[1, 2], [4, 5]]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[1, 2], [4, 5]]", "[[1, 2]]", "the sets lose different numbers of positions"),
        (", [[1, 2], [4, 5]]]", "]", "expected a list of 2"),
        ('"dim": 2, "length": 5', '"dim": 0, "length": 2', r"2 sets on experts.down:0, whose tensor has the shape"),
        ('"sets": 2, "removed"', '"sets": 3, "removed"', "expected a list of 3|3 sets on experts.down:2"),
        ('"routes": true', '"routes": 1', "expected true or false"),
    ],
)
def test_damaged_sets(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_plan(with_sets(), path)

    def edit(content: dict[str, Any]) -> None:
        text = json.dumps(content)
        assert old in text
        content.update(json.loads(text.replace(old, new)))

    edit_json(path, edit)
    with pytest.raises(ArtefactError, match=message):
        load_plan(path)


def test_plans_of_schema_1_have_no_sets_and_are_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_plan(some_plan(), path)

    def older(content: dict[str, Any]) -> None:
        without_sum(content)
        content["schema"] = 1
        for entry in (*content["groups"], *content["axes"]):
            for name in ("sets", "routes"):
                entry.pop(name, None)

    edit_json(path, older)
    with pytest.warns(UserWarning, match="before files had a sum"):
        assert same(load_plan(path), some_plan())


def test_files_of_the_first_schema_are_read(tmp_path: Path) -> None:
    """They have no size sites and no replacements."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    units = fk.trace(model, torch.randn(2, 4))
    plan = fk.Plan(**vars(build(units, random_removal(units, 0.5, seed=1))))
    path = tmp_path / "plan.json"
    plan.save(path)

    def older(content: dict[str, Any]) -> None:
        without_sum(content)
        content["schema"] = 1
        del content["sites"], content["replacements"]

    edit_json(path, older)
    with pytest.warns(UserWarning, match="before files had a sum"):
        loaded = fk.Plan.load(path)
    assert loaded.sites == loaded.replacements == ()
    assert loaded.attributes == plan.attributes
