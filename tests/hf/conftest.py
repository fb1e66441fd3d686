"""Small folders of transformers, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny Llama with a tokenizer. Not to be written to."""
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from bench.shipping.families import make_folder

    folder = tmp_path_factory.mktemp("made") / "tiny-llama"
    make_folder("llama", folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return shutil.copytree(made, tmp_path / "tiny-llama")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bench.shipping.families import write_text

    return write_text(tmp_path_factory.mktemp("text") / "text.txt")
