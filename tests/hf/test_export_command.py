"""`fairkern export`: a file, or one line that says why not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fairkern.cli import main
from tests.hf.decoders import SIZES, built

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    built(transformers.LlamaConfig(**SIZES)).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_a_file_is_written(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deeper" / "model.gguf"
    assert main(["export", str(plain), "--gguf", str(out), "--type", "q8_0"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("3 layers of the architecture llama, q8_0, token ids (without a vocabulary) in; written to")
    assert gguf.GGUFReader(out).fields["llama.block_count"].contents() == 3


def test_quiet(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(plain), "--gguf", str(tmp_path / "model.gguf"), "--no-vocab", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def one_line(arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert what in err


def test_one_clear_line(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "model.gguf")
    one_line([str(tmp_path / "absent"), "--gguf", out], "there is no file or folder", capsys)
    one_line([str(plain / "config.json"), "--gguf", out], "is a file; name the folder", capsys)
    one_line([str(plain), "--gguf", str(tmp_path)], "it is a folder, and a file is expected", capsys)
    one_line([str(plain), "--gguf", str(plain / "config.json" / "model.gguf")], "cannot write", capsys)
    (plain / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes()[:-3])
    one_line([str(plain), "--gguf", out], "truncated", capsys)
    (plain / "model.safetensors").unlink()
    one_line([str(plain), "--gguf", out], "has no weights", capsys)
    assert not os.path.exists(out)


def test_the_package_is_named(plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gguf" else find(name, *a))
    one_line([str(plain), "--gguf", "model.gguf"], 'pip install "fairkern[gguf]"', capsys)
