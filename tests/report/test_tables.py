from __future__ import annotations

import numpy as np
import pytest

from fairkern.report import explain_table, group_rows, render, report_table
from fairkern.report.wording import quantity
from fairkern.types import (
    Axis,
    AxisGroup,
    ConfigField,
    FrozenAxis,
    GroupAxis,
    Plan,
    PlanGroup,
    Replacement,
    Report,
    Silence,
    SizeSite,
    UnitMap,
)

BACKEND = {"gather": "native", "per_class": {"a": 1}, "many": list(range(9)), "no": []}


def group(name: str, units: int, consumers: list[str], frozen: str | None = None, kind: str = "channel") -> AxisGroup:
    positions = np.arange(units)[:, None]
    axes = [GroupAxis(Axis(f"{name}.weight", 0), units, positions)]
    axes += [GroupAxis(Axis(f"{consumer}.weight", 1), units, positions, Silence.ZERO) for consumer in consumers]
    return AxisGroup(name, kind, units, tuple(axes), (), (), frozen)


def unit_map(**changes) -> UnitMap:
    deep = "features.denseblock1.denselayer{}.conv{}"
    groups = (
        group("conv1", 64, ["layer1.conv1"]),
        group(deep.format(1, 2), 32, [deep.format(i, 1) for i in range(2, 7)]),
        group("blocks[/b].fc", 1280, ["head"], kind="neuron"),
        group("frozen1", 7, ["head"], "pruned differs from masked by 3.2e-01"),
    )
    kernels = [FrozenAxis(Axis(f"conv{i}.weight", 2), 3, 3, f"is a kernel in conv{i}") for i in range(5)]
    odd = [FrozenAxis(Axis(f"odd{i}", 0), 3, 3, f"odd reason {i}") for i in range(20)]
    fields = {
        "model": "Net",
        "groups": groups,
        "frozen": (*odd, *kernels),
        "extents": (),
        "params": (),
        "flops": (),
        "attributes": (),
        "shapes": {},
        "notes": ("traced twice",),
    }
    return UnitMap(**{**fields, **changes})


def test_explain():
    text = render(explain_table(unit_map(), [10, 12_345, 3, 0], [1.5, 2e6, 1.81e9, 0]))
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert "Net: 3 groups, 1,376 units that can be cut" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["conv1"] == ["conv1", "channel", "64", "2", "layer1.conv1", "10", "1.5"]
    assert rows["blocks[/b].fc"] == ["blocks[/b].fc", "neuron", "1,280", "2", "head", "3", "1.81", "G"]
    assert rows["frozen1"][:3] == ["frozen1", "channel", "7"]
    assert "…denselayer2.conv1 +4" in text
    assert "pruned differs from masked by 3.2e-01" in text
    assert "12.3 k" in text
    assert "2.00 M" in text


def test_frozen_axes_are_counted_by_reason():
    text = render(explain_table(unit_map(), [0] * 4, [0] * 4))
    assert "25 axes stay" in text
    counted = next(line for line in text.splitlines() if "is a kernel" in line)
    assert counted.split() == ["5", "is", "a", "kernel", "conv0.weight:2"]
    assert "(9 further reasons)" in text
    assert text.index("is a kernel") < text.index("odd reason 0")


@pytest.mark.parametrize(("proven", "said"), [(True, "proven: pruned equals masked"), (False, "not proven")])
def test_explain_says_whether_it_is_proven(proven, said):
    text = render(explain_table(unit_map(proven=proven), [0] * 4, [0] * 4))
    assert said in text
    assert "traced twice" in text


def test_explain_says_what_runs_differently():
    changed = unit_map(
        sites=(SizeSite("a", 0, "view", 1, 0), SizeSite("a", 1, "view", 1, 0), SizeSite("b", 0, "view", 1, 0)),
        replacements=(Replacement("attn", "MultiheadAttention"),),
        config=(ConfigField("intermediate_size", 8, 8, (0,)),),
    )
    text = " ".join(render(explain_table(changed, [0] * 4, [0] * 4)).split())
    assert "3 sizes in the code of 2 modules, first a, are substituted as they run" in text
    assert "1 modules run as fairkern's MultiheadAttention once they are cut" in text
    assert "config follows where layers agree: intermediate_size" in text


def test_explain_without_groups():
    text = render(explain_table(unit_map(groups=(), frozen=()), [], []))
    assert "no group can be cut" in text


def test_names_of_groups_are_whole():
    """They are what `ignore=` takes, beside consumers with names as long."""
    names = [f"backbone.body.{i}.block.12.layers" for i in range(9)]
    groups = tuple(group(name, 64, [f"elsewhere.{name}"] * 2) for name in names)
    lines = render(explain_table(unit_map(groups=groups), [123_456] * 9, [123_456] * 9)).splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines if line.startswith(" backbone.")] == names
    assert all("123.5 k" in line for line in lines if line.startswith(" backbone."))


def test_narrow():
    text = render(explain_table(unit_map(), [0] * 4, [0] * 4), width=60)
    assert max(map(len, text.splitlines())) <= 60


def test_in_a_notebook_nothing_is_shown_beside(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: pytest.fail(f"an output of its own: {text!r}"))
    assert "group" in render(explain_table(unit_map(), [0] * 4, [0] * 4))


def test_report():
    plan = Plan(
        "Net",
        (PlanGroup("conv1", "channel", 64, np.arange(16)), PlanGroup("fc", "neuron", 10, np.arange(0))),
        (),
        (),
        {},
        result={"thresholds": [0.0625, None]},
    )
    rows = group_rows(plan)
    assert rows[0] == {
        "group": "conv1", "kind": "channel", "units": 64, "removed": 16, "rate": 0.25, "threshold": 0.0625,
    }  # fmt: skip
    report = Report(
        "Net, pruned",
        {"accuracy": 0.9911, "params": 1_234_567, "flops": 5.53e7, "latency_ms": 3.0, "odd": 0.0},
        {"accuracy": 0.985, "params": 612_345, "flops": 2.2e7, "latency_ms": 1.5, "odd": 1.0, "late": 2.5},
        (*rows, {"group": "curve", "curve": [1, 2]}),
        {"trace": 0.1234, "score": 12.34},
        {
            "passes": 1,
            "backend": {"gather": "native", "per_class": {"a": 1}, "many": list(range(9)), "no": []},
            "list": [1, 2],
            "none": None,
            "not_compensated": {},
            "config_left": ["width"],
            "flag": True,
        },
        {"torch": "2.9"},
    )
    text = render(report_table(report))
    assert max(map(len, text.splitlines())) <= 100
    for line in (
        "accuracy 99.11 % 98.50 % −0.61 points",
        "parameters 1,234,567 612,345 −50.4 %",
        "FLOPs 55.3 M 22.0 M −60.2 %",
        "latency 3 ms 1.5 ms −50.0 % (2.00×)",
        "odd 0 1",
        "late – 2.5",
        "conv1 channel 64 16 25.0 % 0.0625",
        "fc neuron 10 0 0.0 % –",
        "trace 0.123",
        "score 12.3",
        "passes 1",
        "backend gather native, per class (a 1), many (9 entries)",
        "list 1, 2",
        "config left as it was width",
        "flag yes",
        "torch 2.9",
    ):
        assert line in [" ".join(found.split()) for found in text.splitlines()]
    assert "none" not in text
    assert "not compensated" not in text, "what is empty says nothing"


def test_who_can_load_what_is_left() -> None:
    def said(**serves: str) -> list[str]:
        text = render(report_table(Report("Net", {}, {}, (), {}, {"serves": serves}, {})))
        return [" ".join(line.split()) for line in text.splitlines() if line.strip()]

    lines = said(hf="heads differ", vllm="heads differ", gguf="yes", deci="yes")
    assert lines[-3:] == ["what is left can be loaded by", "hf, vllm no: heads differ", "gguf, deci yes"]
    assert said(hf="yes", vllm="yes")[-1] == "hf, vllm yes"
    assert not any("loaded by" in line or "serves" in line for line in said(hf="no field", vllm="no field"))


def test_what_was_healed_has_a_column_of_its_own():
    report = Report(
        "Net, pruned",
        {"params": 1_000_000, "accuracy": 0.99, "latency_predicted_ms": 103.0},
        {"params": 250_000, "accuracy": 0.905, "latency_predicted_ms": 51.5},
        (),
        {},
        healed={"params": 250_000, "accuracy": 0.985, "perplexity": 8.5},
    )
    lines = [" ".join(line.split()) for line in render(report_table(report)).splitlines()]
    for line in (
        "before one shot change healed change",
        "accuracy 99.00 % 90.50 % −8.50 points 98.50 % −0.50 points",
        "parameters 1,000,000 250,000 −75.0 % 250,000 −75.0 %",
        "latency, predicted 103 ms 51.5 ms −50.0 % (2.00×) –",
        "perplexity – – 8.5",
    ):
        assert line in lines
    assert max(map(len, lines)) <= 100


def test_titles_are_one_line_and_what_is_empty_is_left_out():
    request = {"tod": None, "ignore": [], "keep_params": 0.5, "steps": {}}
    report = Report(
        "A long title of a narrow table", {"a": 1}, {}, (), {}, {"serves": {"hf": "yes"}, "request": request}
    )
    lines = [line.strip() for line in render(report_table(report)).splitlines()]
    assert {"A long title of a narrow table", "what is left can be loaded by"} <= {*lines}
    assert "request   keep params 0.5" in lines


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (950, "950"), (9_999, "9,999"), (12_345, "12.3 k"), (123_456, "123.5 k"), (1.81e9, "1.81 G"),
        (-2e6, "-2.00 M"), (1.5, "1.5"), (3e12, "3.00 T"), (4.5e15, "4500.0 T"),
    ],
)  # fmt: skip
def test_quantity(value, text):
    assert quantity(value) == text


def test_times_in_rows_have_their_unit() -> None:
    rows = (
        {"method": "tod", "budget": 0.5, "params": 12_345, "latency_ms": 1.23456, "accuracy": 93.5, "seconds": 0.25},
    )
    text = render(
        report_table(Report("Net", {"accuracy": 93.5}, {}, (), {}, {"request": {"tod": 0.1}}, {}, curve=rows))
    )
    assert "1.23 ms" in text
    assert "latency ms" not in text
    assert "9350" not in text  # it is in per cent already
    assert "asked for and chosen" in text
