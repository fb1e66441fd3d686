"""The quality bench: areas, averages, targets, the search for a budget, the files and the page; nothing is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from bench.quality import agreement, document, methods, rows, targets
from bench.quality.catalogue import ADDS_UP, ENTRIES, Entry
from bench.quality.further import FURTHER
from bench.quality.grid import CLOSELY, RECALIBRATED, Grid, _Bench
from bench.quality.rivals import RIVALS, Search, parameters
from bench.quality.rows import Row
from bench.quality.summary import LEAST, Summary, area, with_default
from bench.quality.tasks.task import Task, accuracy, retained
from fairkern.plans.cost import adds_up

NOTE = {
    "date": "2026-01-02T03:04:05+00:00",
    "device": "a machine",
    "threads": 1,
    "python": "3.12",
    "commit": "0123456789",
    "packages": {"torch": "2.9", "network-pruner": None},
    "left_out": [{"model": "mlp-digits", "seed": 0, "method": "network-pruner", "reason": "ImportError: absent"}],
}

AGREED = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789",
    "packages": {"network-pruner": "2.16"},
    "rows": [{"what": "the same by definition", "on": "a net", "found": "R: 1e-07 apart"}],
}


def row(keep: float, after: float, **changes: object) -> Row:
    """A row of a model of which 80 % can be cut, accuracy 0.5 before."""
    plain = Row("vgg-digits", 0, "digits", methods.DEFAULT.name, "least_squares", keep, 1 - (1 - keep) * 0.8, 0.8,
                "accuracy", 0.5, after, 0.1)  # fmt: skip
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("metric", "before", "after", "expected"),
    [
        ("accuracy", 0.8, 0.4, 0.5),
        ("perplexity", 5.0, 10.0, 0.5),
        ("cosine", 1.0, -0.2, 0.0),
        ("accuracy", 0.5, 0.6, 1.2),
    ],
)
def test_retained_is_one_before_the_cut(metric: str, before: float, after: float, expected: float) -> None:
    assert retained(metric, before, after) == pytest.approx(expected)
    assert retained(metric, before, before) == 1.0


def test_kept_shares_are_of_what_can_be_cut() -> None:
    assert row(0.25, 0.5).kept_of_cuttable == pytest.approx(0.25)


def test_area_of_a_line_by_hand() -> None:
    assert area([row(0.5, 0.5), row(LEAST, 0.5)]) == pytest.approx(1.0)
    # quality 1 at a share of 1, 0 at LEAST, straight between
    assert area([row(LEAST, 0.0)]) == pytest.approx(0.5)
    # and what was not reached is what the smallest cut left
    assert area([row(0.525, 0.0)]) == pytest.approx(0.25, abs=1e-3)


def test_area_does_not_depend_on_the_order_of_rows() -> None:
    found = [row(keep, after) for keep, after in ((0.9, 0.5), (0.5, 0.4), (0.2, 0.1), (0.05, 0.05))]
    assert area(found) == area(found[::-1])


def test_averages_and_spread_over_seeds() -> None:
    found = [
        row(LEAST, after, seed=seed, model=model)
        for model, seed, after in (
            ("vgg-digits", 0, 0.5), ("vgg-digits", 1, 0.0), ("resnet-digits", 0, 0.5), ("resnet-digits", 1, 0.5),
        )
    ]  # fmt: skip
    summary = Summary(found)
    recipe = (methods.DEFAULT.name, "least_squares")
    average = summary.average(recipe, summary.models)
    assert average.mean == pytest.approx((0.75 + 1.0) / 2)
    assert average.spread == pytest.approx(np.std([1.0, 0.75], ddof=1))
    assert Summary(found[:1]).average(recipe, ["vgg-digits"]).spread is None
    assert summary.at("vgg-digits", recipe, LEAST) == pytest.approx(0.5)
    assert np.isnan(summary.at("vgg-digits", recipe, 0.3))


def test_targets_say_by_how_much_they_are_missed() -> None:
    found = [row(0.5, 0.5), row(0.35, 0.485), row(0.2, 0.5)]
    found += [row(keep, 11.0, model="lm-text", metric="perplexity", before=10.0) for keep in (0.7, 0.5)]
    lines = targets.table(Summary(found), methods.DEFAULT.name)
    assert any("50% | vgg-digits | 100.00%, met | – |" in line for line in lines)
    assert any("35% | vgg-digits | 97.00%, **missed** by 1.00 points | – | – |" in line for line in lines)
    assert any("70% | lm-text | +10.00%, **missed** by 5.00 points | – | – |" in line for line in lines)
    assert any("50% | lm-text | +10.00%, met | – | – |" in line for line in lines)
    assert lines[-1].startswith("Not run: resnet-digits, ")
    assert targets.budgets("lm-text") == {0.7, 0.5}
    assert all(model in ENTRIES for target in targets.TARGETS for model in target.models)


def test_budgets_where_another_is_ahead_are_named() -> None:
    ours, other = (methods.DEFAULT.name, "least_squares"), (RIVALS[0].name, "none")
    found = [row(0.5, 0.4), row(0.2, 0.3)]
    found += [
        replace(r, method=other[0], compensation="none", after=after)
        for r, after in zip(found, (0.2, 0.35), strict=True)
    ]
    assert targets.ahead(Summary(found), ours, other, ["vgg-digits"]) == (
        1,
        2,
        ["vgg-digits at 20% (0.600 against 0.700)"],
    )


def test_rows_survive_the_file_and_replace_those_of_the_same_run(tmp_path: Path) -> None:
    first = [row(0.5, 0.25), row(0.5, 0.125, model="mlp-digits")]
    path = tmp_path / "rows.csv"
    assert rows.read(path) == []
    rows.write(path, first)
    assert rows.read(path) == first
    again = rows.merged(first, [row(0.2, 0.25)])
    assert [(r.model, r.keep) for r in again] == [("mlp-digits", 0.5), ("vgg-digits", 0.2)]
    added = rows.merged(first, [row(0.2, 0.25, compensation="joint"), row(0.2, 0.5, compensation="joint")], partly=True)
    assert [(r.model, r.keep) for r in added] == [("mlp-digits", 0.5), ("vgg-digits", 0.5), *[("vgg-digits", 0.2)] * 2]
    assert rows.merged(added, [row(0.2, 0.25, compensation="joint")], partly=True)[2:] == added[2:3]


def test_the_default_has_the_rows_of_what_it_takes() -> None:
    plain, priced = (replace(row(0.5, 0.25), method=m.name) for m in methods.METHODS[:2])
    found = with_default([plain, priced, replace(plain, model="lm-text"), replace(priced, model="lm-text", after=0.5)])
    own = [r for r in found if r.method == methods.DEFAULT.name]
    assert [(r.model, r.after) for r in own] == [("vgg-digits", 0.25), ("lm-text", 0.5)]


@pytest.mark.parametrize("name", ["mlp-digits", "lstm-digits", "lm-text", "moe-text"])
def test_where_costs_add_up_is_what_the_maps_say(name: str) -> None:
    entry = ENTRIES[name]
    assert isinstance(entry, Entry)
    net, inputs = entry.build().eval(), torch.zeros(2, 64, dtype=torch.int64)
    units = fk.trace(net, inputs if name.endswith("text") else torch.randn(2, 1, 16, 16), verify=False)
    assert adds_up(units) == (name in ADDS_UP)
    assert ENTRIES.keys() >= ADDS_UP


def test_the_page_is_made_from_rows_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = []
    for model in ("vgg-digits", "resnet-digits"):
        assert model in ENTRIES
        for method in methods.METHODS:
            quality = 0.5 if method == methods.METHODS[0] else 0.25
            for compensation in ("none", "mean", "least_squares", "sequential", "joint"):
                found += [
                    row(keep, quality, model=model, method=method.name, compensation=compensation)
                    for keep in (0.5, 0.05)
                ]
    found += [
        row(0.5, 0.1, method=RIVALS[0].name, compensation="none"),
        row(0.05, 0.1, method=RIVALS[0].name, compensation="none"),
    ]
    found += [row(0.5, 0.9 * 0.999, method=methods.METHODS[0].name, compensation=how) for how in FURTHER]
    document.write(found, NOTE, AGREED, tmp_path)
    text = (tmp_path / "quality.md").read_text()
    assert (tmp_path / document.PICTURE).stat().st_size > 1000
    assert f"the models that choose prefer *{methods.DEFAULT.name}*; the others confirm it" in text
    assert f"| **{methods.DEFAULT.name}** | 1.000 | 1.000 | 1.000 | **1.000** | one seed | 1.000 | 1.000 |" in text
    assert f"| {RIVALS[0].name} | 1 | " in text
    assert "| network-pruner | 0 | – |" in text
    assert "network-pruner on mlp-digits: `ImportError: absent`" in text
    assert "Not yet run: " in text
    assert "No model with BatchNorm was run." in text
    assert "| one shot, sequential | in 3 steps | one shot, then healed |" in text
    assert "| vgg-digits | 1.000 | 1.000 | 1 |\n" in text


def test_search_finds_the_weakest_cut_that_meets_the_budget() -> None:
    made = []

    def cutter(strength: float) -> nn.Module:
        made.append(strength)
        return nn.Linear(max(1, round(1000 * (1 - strength) ** 2)), 1, bias=False)

    search = Search(nn.Linear(1000, 1, bias=False), cutter)
    for budget in (0.9, 0.5, 0.1):
        found = search(budget)
        assert found is not None
        assert 0.9 * budget * 1000 <= parameters(found) <= budget * 1000
    assert len(made) == len(set(made))  # no cut is made twice
    assert Search(nn.Linear(1000, 1, bias=False), lambda strength: nn.Linear(900, 1, bias=False))(0.5) is None


@pytest.fixture
def small() -> tuple[nn.Module, Task]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8), nn.ReLU(),
        nn.Linear(8, 3),
    ).eval()  # fmt: skip
    x, y = torch.randn(24, 1, 4, 4), torch.arange(24) % 3
    batches = list(zip(x.split(12), y.split(12), strict=True))
    return model, Task("noise", "accuracy", batches, nn.functional.cross_entropy, lambda m: accuracy(m, batches))


def test_every_method_meets_every_budget(small: tuple[nn.Module, Task]) -> None:
    model, task = small
    bench = _Bench("noise", 0, model, task)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for method in (methods.DEFAULT, *methods.METHODS):
        found = list(bench.own(method, Grid(keeps=(0.5, 0.2), compensations=("none", "least_squares"))))
        assert {r.compensation for r in found} >= {"none", "least_squares"}
        recalibrated = {r.keep for r in found if r.compensation.endswith(RECALIBRATED)}
        assert recalibrated == ({0.5, 0.2} if method.name in CLOSELY else set())
        assert all(r.kept <= bench.budget(r.keep) + 1e-9 for r in found)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_several_cuts_and_healing_are_tried_at_the_budgets_of_targets(
    small: tuple[nn.Module, Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task = small
    monkeypatch.setattr(targets, "budgets", lambda name: {0.5})
    monkeypatch.setattr("bench.quality.further.UPDATES", 3)
    bench = _Bench("noise", 0, model, task)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = list(bench.own(methods.METHODS[0], Grid(keeps=(0.5, 0.2), compensations=FURTHER)))
    assert [(r.compensation, r.keep) for r in found] == [(how, 0.5) for how in FURTHER]
    assert all(r.kept <= bench.budget(0.5) + 1e-9 for r in found)
    assert not list(bench.own(methods.METHODS[1], Grid(keeps=(0.5,), compensations=FURTHER)))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_l1_is_the_sum_over_a_units_own_weights(small: tuple[nn.Module, Task]) -> None:
    model, task = small
    units = fk.trace(model, task.example)
    found = methods.l1(model, units)
    for module, values in zip((model[0], model[4]), found, strict=True):
        assert np.allclose(values, module.weight.detach().abs().flatten(1).sum(1).double().numpy())


def test_cuttable_is_what_goes_when_one_unit_of_every_group_stays(small: tuple[nn.Module, Task]) -> None:
    model, task = small
    least = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1), nn.Linear(16, 1), nn.Linear(1, 3))
    assert methods.cuttable(fk.trace(model, task.example)) == pytest.approx(1 - parameters(least) / parameters(model))


def test_the_papers_recipe_and_its_package_agree_where_they_should() -> None:
    """And differ where the document says: the figures of its results file are of this."""
    pytest.importorskip("Network_Pruner")
    pytest.importorskip("sklearn")
    mlp, cnn, counts, norm, batches, labels = agreement.rows()
    assert max(mlp["apart_r"], mlp["apart_u"], cnn["apart_r"], cnn["apart_u"]) < 1e-5
    assert all(theirs == ours for theirs, ours in mlp["plans"])
    assert cnn["correlation_u"] > 0.9
    assert counts["ours"] == 0.0 < counts["theirs"]
    assert norm["moved"] > 0.01
    assert norm["theirs"] < 1e-3 * norm["ours"]
    assert batches["ours"] == 0.0 < batches["theirs"]
    assert labels["theirs"] == 0.0 < labels["ours"]
