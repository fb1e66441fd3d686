"""The documentation as a site: pages and public names have places, it builds without warnings, and fetches nothing."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fairkern as fk

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CONFIG = (ROOT / "mkdocs.yml").read_text() if (ROOT / "mkdocs.yml").exists() else ""
INTEGRATIONS = "fairkern.integrations."
PUBLIC = [
    f"{module.__name__}.{name}"
    for module in (fk, fk.hf, fk.ops, fk.ranks)
    for name in module.__all__
    if not inspect.ismodule(getattr(module, name))
]


def shown() -> list[str]:
    """What the reference shows, in its order."""
    pages = sorted((DOCS / "guide" / "reference").glob("*.md"))
    return [name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]


def found(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_in_the_reference(name: str) -> None:
    assert shown().count(name) == 1, f"docs/guide/reference/ has no line `::: {name}`, or several"


def test_the_reference_shows_nothing_else() -> None:
    others = set(shown()) - set(PUBLIC)
    assert {name for name in others if not name.startswith(("fairkern.types.", INTEGRATIONS))} == set()


@pytest.mark.parametrize("module", sorted((ROOT / "fairkern" / "integrations").glob("[a-z]*.py")), ids=lambda m: m.stem)
def test_every_integration_is_in_the_reference(module: Path) -> None:
    """They are imported by their own names, since each needs the library that it is for."""
    names = ast.literal_eval(re.search(r"^__all__ = (\[.*?\])$", module.read_text(), re.MULTILINE | re.DOTALL)[1])
    assert {f"{INTEGRATIONS}{module.stem}.{name}" for name in names} <= set(shown())


@pytest.mark.parametrize("name", dict.fromkeys([*PUBLIC, *shown()]))
def test_what_the_reference_shows_says_what_it_is(name: str) -> None:
    if name.startswith(INTEGRATIONS):
        pytest.importorskip(name.removeprefix(INTEGRATIONS).partition(".")[0].replace("optimizers", "torch"))
    thing = found(name)
    said = [thing] if inspect.isfunction(thing) or inspect.isclass(thing) else []
    if inspect.isclass(thing):
        said += [f for n, f in vars(thing).items() if not n.startswith("_") and inspect.isfunction(f)]
    assert all(inspect.getdoc(one) for one in said), [one for one in said if not inspect.getdoc(one)]


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_a_page_is_in_the_navigation(page: Path) -> None:
    assert f" {page.relative_to(DOCS)}\n" in CONFIG, "name it under `nav:` in mkdocs.yml"


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name)
def test_a_page_is_merged(page: Path) -> None:
    assert not re.search(r"^(<<<<<<<|=======|>>>>>>>)( |$)", page.read_text(), re.MULTILINE)


@pytest.mark.slow
def test_it_builds_and_fetches_nothing(tmp_path: Path) -> None:
    for package in ("material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # the theme's own notice, which is about its future
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"^(WARNING|ERROR)\b", done.stderr, re.MULTILINE), done.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))  # 404.html
    for page in pages:
        text = page.read_text()
        fetched = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//[^>]*", text)
        fetched += re.findall(r"<link\b[^>]*rel=\"?(?:stylesheet|preconnect|icon)[^>]*(?:https?:)?//[^>]*", text)
        assert not fetched, page
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.read_text()), style
