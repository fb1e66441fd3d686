"""The comparison: models are what they say, a cut is judged rightly, and what runs here gives what the page says."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

from bench.comparison import cells as judging
from bench.comparison import ours, page
from bench.comparison.cases import CASES, Case, chain
from bench.comparison.features import FEATURES, KEYS, TOOLS
from bench.comparison.tried import cells
from bench.provenance import ROOT

ROWS = {row["case"]: row for row in json.loads((ROOT / "bench" / "results" / "comparison.json").read_text())["rows"]}
every_case = pytest.mark.parametrize("name", CASES)


def answers(tool: str, keys: list[str]) -> dict[str, str]:
    return {key: ROWS[key]["cells"][tool]["answer"] for key in keys}


def test_every_cell_is_there_and_says_what_was_run() -> None:
    assert list(ROWS) == KEYS
    assert set(CASES) < set(KEYS)
    for row in ROWS.values():
        assert list(row["cells"]) == list(TOOLS)
        assert all(cell["what"] and cell["answer"] in judging.ANSWERS for cell in row["cells"].values())


@every_case
def test_dead_units_are_half_or_more_and_say_nothing(name: str) -> None:
    case, again = CASES[name](), CASES[name]()
    assert case.left < 0.75 * case.whole
    assert case.whole == judging.parameters(case.model)
    zero = sum(int((p == 0).sum()) for p in case.model.parameters())
    assert zero == case.whole - case.left
    assert all(torch.equal(a, b) for a, b in zip(case.model.parameters(), again.model.parameters(), strict=True))
    assert torch.equal(case.model(case.example), again.model(again.example))
    assert float(case.model(case.example).detach().std()) > 1e-3


@every_case
def test_what_fairkern_removes_is_what_the_page_says(name: str) -> None:
    assert ours.structure(name).answer == ROWS[name]["cells"]["ours"]["answer"]


def test_masks_are_what_the_page_says() -> None:
    keys = [key for key in KEYS if key != "onnx"]  # it needs packages that the tests do not
    assert {key: cell.answer for key, cell in cells("torch_prune", keys).items()} == answers("torch_prune", keys)


def test_torch_pruning_is_what_the_page_says() -> None:
    pytest.importorskip("torch_pruning")
    keys = [key for key in KEYS if key != "onnx"]
    assert {key: cell.answer for key, cell in cells("torch_pruning", keys).items()} == answers("torch_pruning", keys)


def narrow(case: Case, stay: range) -> nn.Module:
    """The chain with these channels of its convolutions, by hand."""
    layers = case.model.layers
    with torch.no_grad():
        for conv, norm in ((layers[0], layers[1]), (layers[3], layers[4])):
            conv.weight, conv.bias = nn.Parameter(conv.weight[stay]), nn.Parameter(conv.bias[stay])
            norm.weight, norm.bias = nn.Parameter(norm.weight[stay]), nn.Parameter(norm.bias[stay])
            norm.running_mean, norm.running_var = norm.running_mean[stay], norm.running_var[stay]
        for reader in (layers[3], layers[8]):
            reader.weight = nn.Parameter(reader.weight[:, stay])
    return case.model


def fails(case: Case) -> nn.Module:
    raise ValueError("not this one\nsecond line")


@pytest.mark.parametrize(
    ("cut", "said", "answer", "what"),
    [
        (lambda case: narrow(case, range(8)), "", "yes", "same output"),
        (lambda case: narrow(case, range(8)), "; told", "partly", "same output; told"),
        (lambda case: narrow(case, range(12)), "", "partly", "of 885 that are possible"),
        (lambda case: narrow(case, range(8, 16)), "", "no", judging.WRONG),
        (lambda case: narrow(case, range(4)), "", "no", "the output moves"),
        (lambda case: case.model, "", "no", "nothing is removed"),
        (fails, "", "no", "raises ValueError: not this one"),
        (lambda case: nn.Sequential(nn.Linear(3, 3)), "", "no", "the model that is left raises RuntimeError"),
    ],
)
def test_a_cut_is_judged(cut: Callable[[Case], nn.Module], said: str, answer: str, what: str) -> None:
    found = judging.judged(chain(), cut, said)
    assert found.answer == answer, found
    assert what in found.what


def test_only_wrong_cuts_are_held_against_a_tool() -> None:
    right, refused = judging.yes("same output"), judging.no("raises ValueError")
    assert judging.follows({"a": right, "b": refused}).answer == "yes"
    wrong = judging.judged(chain(), lambda case: narrow(case, range(8, 16)))
    assert judging.follows({"a": right, "b": wrong}).answer == "no"


def test_what_sources_speak_of_is_not_absent() -> None:
    import bench.comparison

    judging.absent(bench.comparison, "wholly " + "unheard of")
    with pytest.raises(AssertionError, match="speaks of"):
        judging.absent(bench.comparison, "dead units")


def test_the_tables_hold_every_answer_and_note() -> None:
    text = page.tables(list(ROWS.values()))
    assert text.count("\n| ") == len(KEYS) + len(FEATURES)
    for row in ROWS.values():
        assert all(cell["what"].rstrip(".") in text for cell in row["cells"].values())
