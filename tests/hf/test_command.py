"""`fairkern prune --hf`: what it writes and says, and every way to get it wrong in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fairkern.cli import main
from tests.hf.test_folder import BAD as BAD_FOLDERS
from tests.hf.test_text import BAD as BAD_DATA

transformers = pytest.importorskip("transformers")
SMALL = ["--sequence", "32", "--samples", "12"]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    caught = capsys.readouterr()
    assert caught.out == ""
    assert caught.err.startswith("fairkern: error: "), caught.err
    assert caught.err.count("\n") == 1, caught.err
    return caught.err


def prune(*arguments: object) -> int:
    return main(["prune", *map(str, arguments)])


def test_a_folder_in_a_folder_out(made: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert prune("--hf", made, "--data", text, "--keep-params", 0.7, "-o", out, *SMALL) == 0
    caught = capsys.readouterr()
    assert f"written to {out}" in caught.err
    assert "perplexity " in caught.err
    assert "Loading weights" not in caught.err
    assert "transformers" not in caught.err
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    after = json.loads((out / "report.json").read_text())["after"]["params"]
    assert sum(p.numel() for p in model.parameters()) == after < 0.71 * 150_960  # with biases that were added


def test_nothing_is_said(made: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--dtype", "bfloat16", "--device", "cpu", "--held-out", 0.2, "--batch-size", 2, "--quiet", *SMALL]
    assert prune("--hf", made, "--data", text, "--keep-flops", 0.8, "--out", tmp_path / "out", *options) == 0
    assert capsys.readouterr() == ("", "")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_folder(folder: Path, text: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, _ = BAD_FOLDERS[name]
    spoil(folder)
    capsys.readouterr()
    assert prune("--hf", folder, "--data", text, "--keep-params", 0.7, "-o", tmp_path / "out") == 2
    assert str(folder) in said(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "content", "_"), BAD_DATA, ids=[said for _, _, said in BAD_DATA])
def test_bad_data(
    made: Path, tmp_path: Path, name: str, content: str | bytes, _: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if b"nobody" in path.read_bytes():
        pytest.skip("this folder's tokenizer has no chat template")
    assert prune("--hf", made, "--data", path, "--keep-params", 0.7, "-o", tmp_path / "out") == 2
    assert str(path) in said(capsys)


def no_padding(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content.pop("pad_token")
    path.write_text(json.dumps(content))


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


WRONG: dict[str, tuple[Callable[[Path], None] | None, list[str], str]] = {
    "hub": (None, ["--hf", "org/name"], "org/name is not there; expected a folder of this machine"),
    "no tokenizer": (no_tokenizer, [], "has no tokenizer"),
    "no padding": (no_padding, ["--no-packing"], "has no padding token"),
    "no data": (None, ["--data", "absent.txt"], "there is no file absent.txt"),
    "data folder": (None, ["--data", "."], "is a folder; expected a file"),
    "short": (None, ["--sequence", "250", "--data", "short.txt"], "too short: "),
    "long": (None, ["--sequence", "4000"], "longer than the 256 positions"),
    "full": (None, ["-o", "full"], "cannot write full: it is not empty"),
    "file": (None, ["-o", "short.txt"], "cannot write short.txt: it is a file"),
    "below a file": (None, ["-o", "short.txt/out"], "cannot write short.txt/out: "),
    "device": (None, ["--device", "toaster"], "expected for example 'cpu'"),
    "held out": (None, ["--held-out", "2"], "--held-out: '2' is not a share between 0 and 1"),
    "more": (None, ["--more", "x:y"], "--more names further inputs of a MODEL"),
    "too little": (None, ["--keep-params", "0.01"], "--keep-params 0.01"),
    "nobody": (None, ["--serve", "nobody"], "serve is 'nobody'"),
    "no such type": (None, ["--serve", "gguf:q9_9"], "--serve gguf:q9_9 names a type"),
    "blocks": (None, ["--serve", "gguf:q4_k"], "no smaller number of its units fills blocks of 256 weights"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong(
    folder: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil, options, expected = WRONG[name]
    if spoil is not None:
        spoil(folder)
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("One paragraph.\n\nAnother one.")
    Path("full").mkdir()
    Path("full", "notes").write_text("mine")
    given = ["--hf", folder, "--data", text, "--keep-params", 0.7, "-o", "out", *SMALL, "--quiet", *options]
    assert prune(*given) == 2
    assert expected in said(capsys)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "name a MODEL and a LOADER, or a folder and its data: --hf DIR --data FILE"),
        (["a:b"], "name a MODEL and a LOADER"),
        (["a:b", "c:d", "--data", "x"], "--data is of a folder: name it with --hf DIR"),
        (["a:b", "c:d", "--no-packing"], "--no-packing is of a folder"),
        (["a:b", "c:d", "--trust-remote-code"], "--trust-remote-code is of a folder"),
        (["--hf", "x"], "--hf needs text to calibrate on"),
        (["a:b", "--hf", "x", "--data", "y"], "--hf names what to prune, and so does 'a:b'"),
    ],
)
def test_either_a_model_or_a_folder(given: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(*given, "--keep-params", 0.7, "-o", "never") == 2
    assert expected in said(capsys)


MEASURING = """
def biases(model):
    assert model.config.model_type == "llama"
    return {"weights": sum(parameter.numel() for parameter in model.parameters())}


def taken(model):
    return {"perplexity": 1.0}
"""


def test_a_folder_is_evaluated_and_its_page_has_curves(
    made: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("measuring.py").write_text(MEASURING)
    given = ["--hf", made, "--data", text, "--keep-params", 0.7, *SMALL]
    assert prune(*given, "--evaluate", "measuring:biases", "--html", "page.html", "-o", "out") == 0
    report = json.loads(Path("out/report.json").read_text())
    assert report["after"]["weights"] == report["after"]["params"] < report["before"]["weights"]
    assert f"weights {report['before']['weights']:.4g} → {report['after']['weights']:.4g}" in capsys.readouterr().err
    page = Path("page.html").read_text()
    assert "Curves and units are left out" not in page
    assert "What decided" in page
    assert sorted(path.suffix for path in Path("out").iterdir()).count(".safetensors") == 1  # no scores among weights
    assert prune(*given, "--evaluate", "measuring:taken", "--quiet", "-o", "other") == 2
    assert "'perplexity', which is measured anyway: name it otherwise" in said(capsys)
    assert not Path("other").exists()
    blocks = ["--evaluate", "measuring:biases", "--walk", "blocks", "--quiet"]
    assert prune(*given, *blocks, "-o", "other") == 2
    assert "--walk blocks cannot be had with --evaluate (it is given the whole model)" in said(capsys)


def test_the_page_of_a_folder_by_blocks_has_curves(made: Path, text: Path, tmp_path: Path) -> None:
    given = ["--hf", made, "--data", text, "--keep-params", 0.7, *SMALL, "--walk", "blocks", "--quiet"]
    assert prune(*given, "--html", tmp_path / "page.html", "-o", tmp_path / "out") == 0
    assert "Curves and units are left out" not in (tmp_path / "page.html").read_text()
