"""What a plan says of files: written, read, and refused where it contradicts itself or the shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fairkern.artefacts.plans import load_plan, plan_payload, read_plan_payload, save_plan
from fairkern.errors import ArtefactError
from fairkern.types import FilePart, Files, FileTensor, Plan

SHAPES = {"stack": (3, 8, 5), "q": (6, 5), "k": (6, 5), "table": (4,), "number": ()}
FILES = Files(
    tensors=(
        FileTensor("experts.1.up", (8, 5), (FilePart("stack", (1, (0, 0, 1), (1, 0, 1)), 8),)),
        FileTensor("turned", (5, 4), (FilePart("stack", (0, (1, 1, 2), (0, 0, 1)), 5),)),
        FileTensor("qk", (12, 5), tuple(FilePart(n, ((0, 0, 1), (1, 0, 1)), 6, 2) for n in "qk")),
        FileTensor("beside", (6, 10), tuple(FilePart(n, ((0, 0, 1), (1, 0, 1)), 5) for n in "qk"), 1),
        FileTensor("scalar", (), (FilePart("number", (), 1),)),
    ),
    absent=("table",),
    ignored=("extra",),
    config={"heads": (8, 6), "text.kinds": (["a", "b"], ["a"]), "size": (None, 4)},
)
PLAN = Plan("Net", (), (), (), SHAPES, {"keep_params": 0.5}, {"units_removed": np.int64(0)}, files=FILES)


def test_it_comes_back(tmp_path):
    save_plan(PLAN, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").files == FILES


def test_a_plan_of_which_nobody_has_said_anything_has_none():
    payload = plan_payload(Plan("Net", (), (), (), SHAPES))
    assert "files" not in payload
    assert read_plan_payload(payload, "plan.json").files is None


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Sets the entry at all but the last of `path` to that."""

    def change(files: dict[str, Any]) -> None:
        *way, last, value = path
        for key in way:
            files = files[key]
        files[last] = value

    return change


first, turned, both = ("tensors", 0), ("tensors", 1), ("tensors", 2)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (put(*first, "parts", 0, 0, "other"), "'other' is not among the shapes"),
        (put("absent", ["other"]), "'other' is not among the shapes"),
        (put("absent", ["table", "table"]), "comes twice"),
        (put(*first, "name", "qk"), "a name comes twice"),
        (put(*first, "parts", 0, 2, 7), "parts of 7 positions"),
        (put(*first, "parts", 0, 1, 0, 3), "the position 3 of 3"),
        (put(*turned, "parts", 0, 1, 1, [1, 2, 2]), "the position 8 of 8"),
        (put(*first, "parts", 0, 1, 2, [0, 0, 1]), "along dimension 0"),
        (put(*first, "parts", 0, 1, 2, [2, 0, 1]), "along dimension 2"),
        (put(*first, "parts", 0, 1, 2, [1, 0, 0]), "in steps of 0"),
        (put(*first, "parts", 0, 1, 2, [1, 0]), "three numbers"),
        (put(*first, "parts", 0, 1, 2, 4), "dimension 1 of the shape"),
        (put(*first, "parts", 0, 1, [1, [0, 0, 1]]), "a list of 3"),
        (put(*first, "along", 2), "along dimension 2 of 2"),
        (put(*both, "parts", 0, 3, 3), "take turns"),
        (put(*both, "parts", 1, 3, 1), "take turns"),
        (put("config", "heads", [8]), "a list of 2"),
        (put("ignored", "extra"), "a list"),
    ],
)
def test_what_contradicts_itself_is_refused(change, match):
    payload = copy.deepcopy(plan_payload(PLAN))
    change(payload["files"])
    with pytest.raises(ArtefactError, match=match):
        read_plan_payload(payload, "plan.json")
