"""The notebook of the quick start: words and blocks of its page, executed, and nothing of the machine that did it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.pages import blocks, compare

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "guide" / "quickstart.md").read_text()
NOTEBOOK = (DOCS / "guide" / "quickstart.ipynb").read_text()
CELLS = json.loads(NOTEBOOK)["cells"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebook", DOCS / "make" / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def printed(cell: dict) -> str:
    return "".join(out.get("text", out.get("evalue", "")) for out in cell["outputs"])


def test_it_is_the_page(script: ModuleType) -> None:
    wanted = [(cell["cell_type"], cell["source"]) for cell in script.cells(PAGE)]
    assert [(cell["cell_type"], cell["source"]) for cell in CELLS] == wanted, "run `python docs/make/notebook.py`"
    assert [s for kind, s in wanted if kind == "code"] == [
        b.code.rstrip("\n") for b in blocks(PAGE) if b.language == "python"
    ]


def test_it_was_executed_in_order() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        kinds = {out["output_type"] for out in cell["outputs"]}
        assert kinds <= {"stream", "error"}
        assert ("error" in kinds) == ("raises-exception" in cell["metadata"].get("tags", ()))


def test_it_prints_what_the_page_shows() -> None:
    """As far as numbers that depend on the machine go."""
    outputs = iter([printed(cell) for cell in CELLS if cell["cell_type"] == "code"])
    last = ""
    for block in blocks(PAGE):
        if block.language == "python":
            last = next(outputs)
        elif "prints" in block.notes:
            compare(block.code, last, f"cell before line {block.line}", like=True)


def test_it_says_nothing_of_the_machine() -> None:
    assert not re.search(r"/(root|home|tmp|usr|Users)/|\\\\Users|ipykernel|Linux-|processor ", NOTEBOOK)
    assert set(json.loads(NOTEBOOK)["metadata"]) == {"kernelspec", "language_info"}
