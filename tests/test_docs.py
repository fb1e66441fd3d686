"""The documentation runs: every block of README.md and of the pages of docs/, as `tests/pages.py` says."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from tests.pages import Page, blocks, missing, needs_of, room

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
GUIDE = sorted((DOCS / "guide").rglob("*.md"))
RUNS = {"python", "console"}
LANGUAGES = RUNS | {"text", "bash", "json", "yaml", "toml", "html"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run(path: Path, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.chdir(folder)
    page = Page(path, text)
    with room(folder):
        page.run()
    return page


@pytest.mark.parametrize(
    "path", [page for page in PAGES if any(b.language in RUNS for b in blocks(page.read_text()))], ids=name
)
def test_every_block_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text()
    if missing(needs_of(text)):
        pytest.skip(f"needs {', '.join(missing(needs_of(text)))}")
    page = run(path, text, tmp_path, monkeypatch)
    if page.left_out:
        pytest.skip("; ".join(page.left_out) + "; all else ran")


@pytest.mark.parametrize("path", GUIDE, ids=name)
def test_blocks_are_of_a_known_kind(path: Path) -> None:
    for block in blocks(path.read_text()):
        assert block.language in LANGUAGES, f"{path.name}:{block.line}"
        if block.language == "bash":
            assert not re.search(r"^fairkern ", block.code, re.MULTILINE), f"{path.name}:{block.line}: make it console"
    fences = re.findall(r"^ *```", path.read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(blocks(path.read_text())), "a fence without a language, or without an end"


# what the runner itself does


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    return lambda text: run(ROOT / "page.md", textwrap.dedent(text), tmp_path, monkeypatch)


def test_blocks_share_names_and_files(runs, tmp_path: Path) -> None:
    page = runs(
        """
        ```python title="mine.py"
        number = 3
        ```

        ```python
        from mine import number
        more = number + 1
        ```

        1. In a list

            <!-- needs: torch -->
            ```python
            print("it is", more)
            ```

            <!-- prints -->
            ```text
            it ... 4
            ```

        ```console
        $ python -c "import mine; assert mine.number == \\
        3"
        ```
        """
    )
    assert page.left_out == []
    assert page.blocks[1].line == 7
    assert (tmp_path / "mine.py").read_text() == "number = 3\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```python\n1 / 0\n```\n", "division"),
        ("```python\nprint(1)\n```\n<!-- prints -->\n```text\n2\n```\n", "page.md:6: shown is"),
        ("<!-- raises: KeyError -->\n```python\npass\n```\n", "no KeyError"),
        ("<!-- raises: KeyError -->\n```python\n1 / 0\n```\n", "division"),
        ("```python\nprint('60.0%')\n```\n<!-- prints: like -->\n```text\n97.5%\n```\n", "97.5%', '60.0%'"),
        ("```python\nprint('80 ms')\n```\n<!-- prints: like -->\n```text\n97 s\n```\n", "page.md:6: shown is"),
        ("```console\n$ fairkern nothing\n```\n", "ended with 2, not 0"),
        ("<!-- exits: 2 -->\n```console\n$ python -c pass\n```\n", "ended with 0, not 2"),
        ("```console\n$ rm -r x\n```\n", "make the block bash"),
        ("<!-- prints -->\n```console\n$ python -c 'print(1)'\n2\n```\n", "printed was"),
    ],
)
def test_what_does_not_hold_is_seen(runs, text: str, why: str) -> None:
    with pytest.raises(Exception, match=why):
        runs(text)


def test_what_is_not_installed_is_left_out_and_said(runs) -> None:
    text = "<!-- needs: no_such_package -->\n```python\n1 / 0\n```\n\n<!-- prints -->\n```text\nnothing\n```\n"
    assert runs("# A page\n\n" + text).left_out == ["page.md:5 needs no_such_package"]
    assert missing(needs_of(text)) == ["no_such_package"]
    assert needs_of("# A page\n\n" + text) == ""


def test_numbers_may_differ_where_it_says_so(runs) -> None:
    runs("```python\nprint('a 1,234.5 ms −3 93%')\n```\n\n<!-- prints: like -->\n```text\n... 2 ms 0.5 97%\n```\n")


def test_errors_are_said_as_shown(runs) -> None:
    runs(
        """
        <!-- raises: ZeroDivisionError -->
        ```python
        1 / 0
        ```

        <!-- prints -->
        ```text
        division ...
        ```
        """
    )
