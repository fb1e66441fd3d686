"""The pictures of the guide are those of their script, each for light and dark pages, and all are shown."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture
def script() -> ModuleType:
    for package in ("matplotlib", "sklearn"):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "make" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_all_are_there_and_shown(script: ModuleType) -> None:
    files = {f"{name}_{scheme}.png" for name in script.PICTURES for scheme in script.INK}
    assert {path.name for path in script.FOLDER.iterdir()} == files
    page = (DOCS / "guide" / "method.md").read_text()
    for name in script.PICTURES:
        for scheme in script.INK:
            assert f"(../pictures/guide/{name}_{scheme}.png#only-{scheme})" in page


@pytest.mark.slow
def test_they_are_drawn(script: ModuleType, tmp_path: Path) -> None:
    names = [name for name in script.PICTURES if name != "compensated"]  # which cuts dozens of times
    script.main(names, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 * len(names)
