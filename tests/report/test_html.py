"""The page of a report: every number is the file's, nothing comes from elsewhere, and names are only ever text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.report.deciding import decided
from fairkern.report.html import page
from fairkern.report.html.charts import linear
from tests.report.made import TIMING, bare, reported, scored, uniform

_VOID = {"meta", "br", "wbr"}
_TEXT = {"title", "style", "script"}
SCALE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass
class Element:
    name: str
    attributes: dict[str, str | None]
    parts: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    def all(self, name: str = "") -> Iterator[Element]:
        for part in self.parts:
            if isinstance(part, Element):
                if name in ("", part.name):
                    yield part
                yield from part.all(name)

    def has(self, class_: str) -> bool:
        return class_ in (self.attributes.get("class") or "").split()


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open = [Element("", {})]
        self.feed(text)
        self.close()
        assert len(self.open) == 1, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, dict(attrs))
        self.open[-1].parts.append(made)
        if tag not in _VOID:
            self.open.append(made)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag, f"</{tag}>"

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def read(text: str) -> Element:
    return Reader(text).open[0]


def shown(text: str) -> list[tuple[float, float]]:
    """The numbers that a text shows, each with half a unit of its last digit: by how much it may be rounded."""
    found = []
    pattern = r"(?<![\w.])[+−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?(?:(?= ms)|(?= [kMGT]?\b)( [kMGT])?)?"
    for match in re.finditer(pattern, text):
        whole = match[0].replace(",", "").replace("−", "-")
        digits, _, unit = whole.partition(" ")
        mantissa, _, exponent = digits.partition("e")
        decimals = len(mantissa.partition(".")[2])
        scale = 10.0 ** int(exponent or 0) * SCALE[unit]
        found.append((float(mantissa) * scale, 0.5 * 10.0**-decimals * scale))
    return found


def entry(content: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        content = content[int(key)] if isinstance(content, list) else content[key]
    return content


def strings(content: Any) -> Iterator[str]:
    """All words of a file, its keys among them."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        yield from content
        yield from (word for value in content.values() for word in strings(value))
    elif isinstance(content, list):
        yield from (word for value in content for word in strings(value))


def expected(content: dict[str, Any], pointer: str, shows: str, text: str) -> list[float]:
    """What the numbers of a text have to be, made of the file's content alone."""
    value = entry(content, pointer)
    name = pointer.rpartition("/")[2]
    if shows == "left":
        return [value["units"] - value["removed"]]
    if shows in ("span", "times"):
        return [value["p20"], value["p80"]]
    if shows == "length":
        return [len(value)]
    if shows == "change":
        before = content["before"][name]
        if "accuracy" in name:
            return [100 * (value - before)]
        return [100 * (value / before - 1), *([before / value] if "×" in text else [])]
    assert shows == "", shows
    if isinstance(value, str):  # shapes of inputs
        return [number for number, _ in shown(value)]
    return [100 * value if "%" in text else value]


def saved(report: fk.Report, folder: Path) -> dict[str, Any]:
    report.save(folder / "report.json")
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


SCORES = scored()
UNSTEADY = {**TIMING, "steady": False}
KINDS = {
    "priced": lambda: reported(SCORES),
    "tolerance": lambda: reported(SCORES, tod=0.3),
    "global": lambda: reported(SCORES, keep_flops=0.5, allocation="global"),
    "many": lambda: reported(scored(66, kinds=3)),
    "unsteady": lambda: replace(reported(SCORES), timing=UNSTEADY),
    "uniform": lambda: uniform(SCORES),
    "bare": lambda: bare(SCORES),
}


def of(kind: str) -> tuple[fk.Report, Element]:
    report = KINDS[kind]()
    scores = None if kind == "bare" else scored(66, kinds=3) if kind == "many" else SCORES
    return report, read(page(report, report.plan, scores))


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_that_of_the_file(kind: str, tmp_path: Path) -> None:
    report, tree = of(kind)
    content = saved(report, tmp_path)
    facts = list(tree.all("data"))
    assert len(facts) > 20
    for fact in facts:
        pointer, shows = fact.attributes["data-from"], fact.attributes.get("data-shows") or ""
        assert pointer is not None
        if isinstance(value := entry(content, pointer), str):
            assert fact.text == value
            continue
        numbers = expected(content, pointer, shows, fact.text)
        found = shown(fact.text)
        assert len(found) == len(numbers), (fact.text, pointer)
        for (number, half), right in zip(found, numbers, strict=True):
            assert abs(number - right) <= half * (1 + 1e-9) + 1e-12, (fact.text, pointer, right)


@pytest.mark.parametrize("kind", KINDS)
def test_every_measure_group_and_entry_is_there(kind: str, tmp_path: Path) -> None:
    report, tree = of(kind)
    content = saved(report, tmp_path)
    told = {fact.attributes["data-from"] for fact in tree.all("data")}
    ranges = report.timing.get("steady") is False
    for when in ("before", "after", "healed"):
        names = [n for n in content.get(when, {}) if not (ranges and n == "latency_ms")]
        assert {f"/{when}/{name}" for name in names} <= told
    for i, row in enumerate(content["groups"]):
        assert {f"/groups/{i}/units", f"/groups/{i}/removed", f"/groups/{i}"} <= told
        assert row["threshold"] is None or f"/groups/{i}/threshold" in told
    for name, value in content["environment"].items() if "environment" in content else ():
        assert isinstance(value, (str, dict)) or f"/environment/{name}" in told
    assert {f"/stages/{name}" for name in content["stages"]} <= told
    for name in content["versions"]:
        assert content["versions"][name] in tree.text
    for row in content.get("curve", []):
        assert f"/curve/{content['curve'].index(row)}/accuracy" in told
    if content["choices"]["tolerance"] is not None:
        assert "/choices/tolerance" in told


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_stands_outside(kind: str, tmp_path: Path) -> None:
    """What is no tick of an axis, name, or number of scores or words of the file, is a `data` element."""
    report, tree = of(kind)
    words = set(strings(saved(report, tmp_path)))

    def loose(element: Element) -> Iterator[str]:
        if element.name in ("data", "title", "style", "script", "code") or element.has("tick"):
            return
        if element.name == "section" and element.text.startswith(("Every unit", "What stays")):
            return  # what scores say, which are no part of the file
        for part in element.parts:
            yield from [part] if isinstance(part, str) else loose(part)

    own = ("20th to 80th percentile", "0 to 1", f"{TIMING['bound']} times the 20th", "80th percentile over")
    for text in loose(tree):
        for known in own:
            text = text.replace(known, "")
        assert not re.search(r"\d", text) or text.strip(" ,:") in words, text


@pytest.mark.parametrize("kind", KINDS)
def test_it_needs_nothing_but_itself(kind: str) -> None:
    report, tree = of(kind)
    text = page(report, report.plan)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    for element in tree.all():
        assert not element.attributes.keys() & {"src", "href", "srcset", "data", "action", "onclick", "onload"}
    assert [len(list(tree.all(name))) for name in ("html", "style", "script", "h1", "main")] == [1] * 5
    assert "prefers-color-scheme:dark" in text


def test_names_are_only_ever_text(tmp_path: Path) -> None:
    evil = '</title></style><script>alert("1")</script><img src=x onerror=alert(1)> & "x\' onfocus="y'
    scores = scored(3, name=evil + "{}.{}".format("{}", 0))
    report = reported(scores)
    choices = {
        **report.choices, evil: evil, "left_alone": [evil], "notes": [evil], "config_left": [evil],
        "not_compensated": {evil: evil}, "serves": {evil: "yes", "b": evil}, "biases": evil, "compensation": evil,
    }  # fmt: skip
    measures = {**report.before, evil: 1.0}
    report = replace(
        report,
        title=evil,
        before=measures,
        after=measures,
        healed=measures,
        stages={evil: 1.0},
        choices=choices,
        versions={evil: evil},
        environment={evil: evil},
        curve=[{**row, "method": evil, evil: 1.0} for row in report.curve],
        timing={**TIMING, "inputs": [evil], "device": {"device": evil, "name": evil}},
        groups=tuple({**row, "kind": evil, "module": evil} for row in report.groups),
    )
    for given in (report, replace(report, timing={**report.timing, "steady": False})):
        given.save_html(tmp_path / "page.html", scores=scores)
        tree = read((tmp_path / "page.html").read_text())
        assert len(list(tree.all("script"))) == 1
        assert not list(tree.all("img"))
        assert not any("onfocus" in element.attributes for element in tree.all())
        assert tree.text.count(evil) > 30


def test_units_tell_their_names_and_values() -> None:
    scores = scored(4)
    report = reported(scores)
    assert report.plan is not None
    titles = [title.text for title in read(page(report, report.plan, scores)).all("title")]
    u, r = (scores.signals[name][2][7] for name in ("wasserstein", "taylor"))
    goes = "goes" if 7 in report.plan.groups[2].removed else "stays"
    assert f"net.blocks.2 Conv2d, channel 7: U {u:.3g}, R {r:.3g}; {goes}" in titles
    assert sum(title.endswith(("; goes", "; stays")) for title in titles) == 4 * 24
    assert f"net.blocks.2 Conv2d: {report.plan.groups[2].removed.size} of 24 channels go" in titles


def test_many_units_are_thinned_and_that_is_said() -> None:
    scores = scored(66, units=60)
    report = reported(scores)
    text = page(report, report.plan, scores)
    assert "one in 2 is drawn" in text
    assert 1900 < text.count('class="stays"') + text.count('class="goes"') < 2100
    assert len(text) < 700_000


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    bare(SCORES).save_html(tmp_path / "bare.html")
    text = read((tmp_path / "bare.html").read_text()).text
    assert "Curves and units are left out: this page was made without the plan and scores." in text
    report = reported(SCORES)
    report.save_html(tmp_path / "plan.html")
    assert "made without the scores." in read((tmp_path / "plan.html").read_text()).text
    replace(report, scores=SCORES).save_html(tmp_path / "kept.html")
    kept = (tmp_path / "kept.html").read_text()
    assert "left out" not in kept
    report.save_html(tmp_path / "given.html", scores=SCORES)
    assert (tmp_path / "given.html").read_text() == kept
    several = replace(report, scores=scored(3), choices={**report.choices, "steps": [{}, {}]})
    several.save_html(tmp_path / "several.html")  # scores of the last step are none of the whole plan
    assert "made without the scores." in (tmp_path / "several.html").read_text()


def test_scores_of_another_plan_are_refused(tmp_path: Path) -> None:
    report = reported(SCORES)
    with pytest.raises(fk.InputError, match=r"the scores have no \w+ of the 24 units of group 'net.blocks.3'"):
        report.save_html(tmp_path / "page.html", scores=scored(3))
    with pytest.raises(fk.InputError, match="scores="):
        report.save_html(tmp_path / "page.html", scores="scores.safetensors")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_unsteady_clock_gives_no_one_number() -> None:
    _, tree = of("unsteady")
    card = next(card for card in tree.all("article") if card.text.startswith("latency"))
    assert "9.75–11 ms" in card.text
    assert "before: 20.1–24.1 ms" in card.text
    assert "1.88–2.25× as fast" in card.text
    assert "10.5" not in card.text
    assert "the clock was unsteady" in next(p for p in tree.all("p") if p.has("warn")).text
    _, steady = of("priced")
    card = next(card for card in steady.all("article") if card.text.startswith("latency"))
    assert "10.5 ms" in card.text
    assert "20th to 80th percentile: 20.1–24.1 ms before, 9.75–11 ms after" in card.text
    assert "25 passes in turn · 3 threads · 2x3x32x32 float32 · cpu" in card.text


@pytest.mark.parametrize("groups", [3, 12])
@pytest.mark.parametrize(
    "asked",
    [
        {"keep_params": 0.6},
        {"keep_flops": 0.6, "allocation": "priced"},
        {"keep_params": 0.6, "allocation": "global"},
        {"keep_flops": 0.6, "allocation": "normalized", "removal": "taylor"},
        {"keep_params": 0.6, "allocation": "tod"},
        {"tod": 0.2},
    ],
)
def test_curves_are_what_was_held_against_the_threshold(groups: int, asked: dict[str, Any]) -> None:
    """At what goes of a group its curve has the threshold that the plan says this count needed."""
    scores = scored(groups)
    plan = scores.plan(**asked)
    found = decided(scores, plan)
    assert found is not None
    assert found.threshold == plan.result["tolerance"]
    assert not found.missing
    for group, curve, need in zip(plan.groups, found.curves, plan.result["thresholds"], strict=True):
        count = group.removed.shape[-1]
        assert len(curve) == group.units
        if not found.tolerance and count:
            assert curve[count - 1] == pytest.approx(need)
        elif count:  # the least of what follows, up to the limit
            assert np.min(curve[count - 1 : 23]) == pytest.approx(need)


def test_what_has_no_curve_says_why() -> None:
    scores = scored(3)
    drawn = decided(scores, scores.plan(keep_params=0.5, removal="random", allocation="global"))
    assert drawn is not None
    assert "was drawn" in drawn.missing
    given = decided(scores, scores.plan(keep_params=0.5, removal=lambda g: np.arange(g.total), allocation="global"))
    assert given is not None
    assert "given as a function" in given.missing
    assert decided(scores, scores.plan(drop={"channel": 3})) is None
    assert decided(scores, scores.plan(keep_params=0.5, allocation="uniform")) is None
    for found in (drawn, given):
        assert not any(len(curve) for curve in found.curves)


def test_a_report_of_prune_as_a_page(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    loader = [(torch.randn(12, 6), torch.arange(12) % 3)]
    _, report = fk.prune(
        model, loader, nn.CrossEntropyLoss(), keep_params=0.6, projections=4, keep_scores=True, progress=False
    )
    assert [row["module"] for row in report.groups] == ["Linear", "Linear"]
    report.save_html(tmp_path / "report.html")
    tree = read((tmp_path / "report.html").read_text())
    assert [h.text for h in tree.all("h2")] == [
        "Widths", "What decided", "Every unit: U against R", "What stays, and why", "How it was made"
    ]  # fmt: skip
    assert any(title.text.startswith("2 Linear, neuron 5: U ") for title in tree.all("title"))


def test_groups_of_one_kind_are_told_apart() -> None:
    scores = scored(12)
    report = reported(scores)
    shades = re.findall(r"color-mix\(in oklab,var\(--b\) (\d+)%", page(report, report.plan, scores))
    assert len(set(shades)) == 12
    assert (shades[0], shades[-1]) == ("0", "100")
    kinds = scored(12, kinds=3)
    assert "color-mix(in oklab,var(--b)" not in page(reported(kinds), reported(kinds).plan, kinds)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"], ids=["nan", "inf", "surrogate"])
def test_what_no_file_can_say_no_page_says(value: Any, tmp_path: Path) -> None:
    report = reported(scored())
    for made in (
        replace(report, after={**report.after, "loss": value}),
        replace(report, choices={**report.choices, "note": value}),
    ):
        with pytest.raises(fk.InputError, match=r"report.*(loss|note)"):
            made.save_html(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_ticks_are_told_apart() -> None:
    scale = linear(2.5540, 2.5541, "loss", "{:.3f}".format)
    assert len({said for _, said in scale.ticks}) == len(scale.ticks) >= 4
    assert scale.low <= 2.5540 <= 2.5541 <= scale.high


def test_it_says_that_groups_went_together() -> None:
    scores = scored()
    report = reported(scores)
    assert report.plan is not None
    plan = replace(report.plan, request={**report.plan.request, "serve": "vllm"})
    said = "a dot may lie beside the threshold"
    assert said in page(report, plan, scores)
    assert said not in page(report, report.plan, scores)


def test_a_plan_of_other_units_is_refused() -> None:
    scores = scored()
    report = reported(scores)
    with pytest.raises(fk.InputError, match="the plan is not the one that this report is of"):
        page(report, scores.plan(keep_params=0.9), scores)
