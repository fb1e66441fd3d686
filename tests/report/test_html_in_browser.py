"""The page as a browser lays it out: no text over text or bars, nothing beyond the screen, readable by day and night.

Skipped where playwright or Chromium is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fairkern as fk
from tests.report.made import scored
from tests.report.test_html import KINDS, SCORES

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}

# Boxes of all text that is laid out, line by line, with the element that holds it; of SVG's as far as it is drawn.
TEXTS = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body || document.documentElement, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.textContent.trim() || node.parentElement.closest("title, script, style")) continue;
    if (!node.parentElement.checkVisibility()) continue;  // in what is folded
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (box.width > 0.5 && box.height > 0.5)
        found.push([box.left, box.top, box.right, box.bottom, node.textContent.trim().slice(0, 60)]);
  }
  return found;
}"""
BOXES = """(selector) => [...document.querySelectorAll(selector)].map((element) => {
  const box = element.getBoundingClientRect();
  return [box.left, box.top, box.right, box.bottom, element.id || element.className.toString()];
})"""
# Of an element's text and what is behind it: the ratio of their luminances, as WCAG defines it.
CONTRAST = """(selector) => [...document.querySelectorAll(selector)].map((element) => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let behind = element;
  while (behind && /rgba\\(0, 0, 0, 0\\)|transparent/.test(getComputedStyle(behind).backgroundColor))
    behind = behind.parentElement;
  const pair = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(light);
  return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), element.className];
})"""
Box = tuple[float, float, float, float, str]


def over(first: list[Box], second: list[Box] | None = None, by: float = 1.0) -> list[tuple[str, str]]:
    """Which boxes lie over which, by more than a pixel in both directions."""
    pairs = ((a, b) for i, a in enumerate(first) for b in (first[i + 1 :] if second is None else second))
    return [
        (a[4], b[4])
        for a, b in pairs
        if min(a[2], b[2]) - max(a[0], b[0]) > by and min(a[3], b[3]) - max(a[1], b[1]) > by
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for kind, made in KINDS.items():
        scores = None if kind == "bare" else scored(66, kinds=3) if kind == "many" else SCORES
        made().save_html(folder / f"{kind}.html", scores=scores)
    return folder


def opened(browser: Any, path: Path, size: str = "desktop", scheme: str = "light", script: bool = True) -> Any:
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=script
    )
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(path.as_uri())
    assert asked == [path.as_uri()], "it asks the network for nothing"
    return page


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["priced", "many", "unsteady", "bare"])
def test_nothing_lies_over_anything(browser: Any, pages: Path, kind: str, size: str) -> None:
    page = opened(browser, pages / f"{kind}.html", size)
    for _ in range(2):  # as it is opened, and with all that can be unfolded
        width = SIZES[size][0]
        texts = page.evaluate(TEXTS)
        assert len(texts) > 60
        assert over(texts) == []
        assert over(texts, page.evaluate(BOXES, ".track")) == []
        for drawn in page.evaluate(BOXES, ".area"):
            assert over(texts, [drawn], by=2.0) == [], "keys and labels stand beside the points"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        tables = page.evaluate(BOXES, ".wide")  # which scroll within themselves
        beyond = [box for box in texts if box[0] < 0 or box[2] > width]
        assert all(any(table[1] <= box[1] and box[3] <= table[3] for table in tables) for box in beyond), beyond
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_by_day_and_by_night(browser: Any, pages: Path, scheme: str) -> None:
    page = opened(browser, pages / "unsteady.html", "phone", scheme)
    behind = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(behind.split("(")[1].split(",")[0]) > 200) is (scheme == "light")
    ratios = page.evaluate(CONTRAST, "p, h1, h2, h3, small, li, dt, dd, th, td, .tick, .xlabel, .ylabel, summary")
    assert len(ratios) > 100
    assert min(ratio for ratio, _ in ratios) >= 4.5, min(ratios)


def test_every_axis_has_a_unit_and_ticks(browser: Any, pages: Path) -> None:
    for kind in ("priced", "tolerance", "global", "many"):
        page = opened(browser, pages / f"{kind}.html", "phone")
        plots = page.query_selector_all(".plot")
        assert len(plots) >= 3
        for plot in plots:
            for axis in (".xlabel", ".ylabel"):
                label = plot.query_selector(axis).inner_text()
                assert any(unit in label for unit in ("%", "(", ", ms")), label
            for ticks in (".xticks .tick", ".yticks .tick"):
                assert len(plot.query_selector_all(ticks)) >= 2


def test_without_a_script_all_is_there_but_the_line_under_the_chart(browser: Any, pages: Path) -> None:
    page, plain = (opened(browser, pages / "priced.html", script=script) for script in (True, False))
    assert page.inner_text("body") == plain.inner_text("body")
    assert plain.locator(".units path").count() == 12 * 24
    point = page.locator(".units path").nth(30)
    said = point.locator("title").text_content()
    assert said is not None
    assert said.startswith("net.blocks.1 Conv2d, channel 6: U ")
    point.dispatch_event("click")
    assert said in page.inner_text("body")
    group = page.locator(".plot g[tabindex]").first
    group.focus()
    assert "net.blocks.0 Conv2d: " in page.inner_text("body")


@pytest.mark.parametrize("groups", [2, 12, 66])
def test_the_picture_as_svg_has_no_text_over_text_or_bars(browser: Any, tmp_path: Path, groups: int) -> None:
    pytest.importorskip("matplotlib")
    scores = scored(groups, kinds=3 if groups > 12 else 1)
    fk.picture(scores, scores.plan(keep_params=0.7), tmp_path / "picture.svg")
    page = opened(browser, tmp_path / "picture.svg")
    texts = page.evaluate(BOXES, "g[id^=text_]")
    assert len(texts) > groups
    assert over(texts) == []
    bars = page.evaluate(BOXES, "#axes_1 g[id^=patch_]")[1:]  # the first is the panel itself
    assert len(bars) >= 2 * groups
    assert over(texts, bars[: 2 * groups]) == []
    (legend,) = page.evaluate(BOXES, "g[id^=legend_]")
    assert over([legend], page.evaluate(BOXES, "g[id^=axes_] g[id^=PathCollection_]")) == []
