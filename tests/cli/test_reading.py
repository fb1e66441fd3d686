"""What commands read: functions as signals, scores that lie in a folder, and nothing that is written over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fairkern as fk
from fairkern.cli import main
from fairkern.cli.given import module_file, named
from tests.cli import parts

LOSS = "torch.nn:CrossEntropyLoss"
BATCHES = ["parts:model", "parts:loader", LOSS]
SWEEP = ["sweep", *BATCHES, "--evaluate", "parts:evaluate"]


def prepared() -> None:
    assert main(["prune", *BATCHES, "--keep-params", "0.6", "--out", "small", "--quiet"]) == 0


def test_a_signal_may_be_a_function(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", *BATCHES, "--gram", "--out", "s", "--quiet"]) == 0
    plan = ["plan", "s", "--keep-params", "0.7", "--allocation", "uniform"]
    assert main([*plan, "--removal", "parts:last_first", "--out", "p.json", "--quiet"]) == 0
    made = fk.Plan.load("p.json")
    assert made.request["removal"] == "function last_first"
    mine = fk.Scores.load("s").plan(keep_params=0.7, allocation="uniform", removal=parts.last_first)
    assert [g.removed.tolist() for g in made.groups] == [g.removed.tolist() for g in mine.groups]
    prune = ["prune", *BATCHES, "--keep-params", "0.7", "--allocation", "uniform", "--removal", "parts:last_first"]
    assert main([*prune, "--out", "cut", "--quiet"]) == 0
    removed = [g.removed.tolist() for g in fk.Plan.load("cut/plan.json").groups]
    assert removed == [g.removed.tolist() for g in mine.groups]
    assert main([*plan, "--removal", "parts:last_frist", "--out", "q.json"]) == 2
    assert "did you mean last_first?" in capsys.readouterr().err
    assert main([*plan, "--removal", "talyor", "--out", "q.json"]) == 2
    assert "'random' or a function" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("plan", ["residual", "wasserstein", "taylor", "activation", "l1", "l2", "random", "package.module:callable"]),
        ("sweep", ["default", "tod", "residual", "uniform-l1", "package.module:callable", "least_squares", "seq"]),
    ],
)
def test_help_says_what_may_be_given(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    behind = said.partition("--removal SIGNAL" if command == "plan" else "--methods NAMES")[2].rpartition("--removal")
    text = behind[2]
    assert [word for word in words if word not in text] == []


def test_a_report_finds_the_scores_of_a_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared()
    given = ["report", "parts:model", "small", "parts:inputs"]
    assert main([*given, "--html", "page.html"]) == 0
    said = capsys.readouterr().err
    assert "measuring latency …" in said
    assert "Curves and units are left out" not in (here / "page.html").read_text()
    assert main(["report", "small", "parts:inputs", "--trust", "--html", "page.html", "--quiet"]) == 0
    assert "Curves and units are left out" not in (here / "page.html").read_text()
    (here / "small" / "scores.safetensors").unlink()
    assert main([*given, "--html", "page.html", "--quiet"]) == 0
    page = (here / "page.html").read_text()
    assert "Curves and units are left out: this page was made without the scores" in page
    assert "fairkern report … --scores FILE --html PAGE" in page


def test_scores_of_an_earlier_run_are_no_scores_of_steps(here: Path) -> None:
    prepared()
    steps = ["prune", *BATCHES, "--keep-params", "0.5", "--iterations", "2", "--out", "small", "--quiet"]
    assert main(steps) == 0
    assert (here / "small" / "scores.safetensors").exists()
    assert main(["report", "parts:model", "small", "parts:inputs", "--html", "page.html", "--quiet"]) == 0
    assert "this page was made without the scores" in (here / "page.html").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["report", "small", "--html", "small/report.json"],
        ["report", "small", "--html", "small/plan.json"],
        ["report", "parts:model", "small", "parts:inputs", "--out", "parts.py"],
        ["report", "parts:model", "small", "parts:inputs", "--html", "small/model.safetensors"],
        ["sweep", *BATCHES, "--budgets", "0.5", "--methods", "l1", "--evaluate", "parts:evaluate", "--out", "parts.py"],
        [
            "sweep",
            *BATCHES,
            "--budgets",
            "0.5",
            "--methods",
            "l1",
            "--evaluate",
            "pack.mine:told",
            "-o",
            "pack/mine.py",
        ],
        ["score", *BATCHES, "--out", "parts.py"],
        ["latency", "parts:model", "parts:inputs", "--out", "parts.py"],
        ["prune", *BATCHES, "--keep-params", "0.6", "--out", "o", "--html", "parts.py"],
        ["plan", "small/scores.safetensors", "--tod", "0.5", "--out", "small/scores.safetensors"],
        ["apply", "parts:model", "small/plan.json", "--out", "small"],
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_nothing_that_is_read_is_written_over(words: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "pack").mkdir()
    (here / "pack" / "mine.py").write_text("from parts import evaluate as f\n")
    (here / "small").mkdir()
    for name in ("report.json", "plan.json", "model.safetensors", "scores.safetensors"):
        (here / "small" / name).write_text("of somebody")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert main(words) == 2
    place = f"{words[-1]}/plan.json" if words[0] == "apply" else words[-1]
    assert capsys.readouterr().err == f"fairkern: error: cannot write {place}: it is what is read; name another\n"
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file() and path.suffix != ".pyc"} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prune", *BATCHES, "--keep-params", "0.6", "--out", "o", "--html", "o"], "o twice"),
        (["prune", *BATCHES, "--keep-params", "0.6", "--out", "o", "--html", "o/model.safetensors"], "o/model"),
        (["prune", "--hf", "lm", "--data", "t", "--keep-params", "0.6", "-o", "o", "--html", "o/config.json"], "o/con"),
        (["report", "parts:model", "small", "parts:inputs", "--html", "p", "--picture", "./p"], "p twice"),
        (
            [*SWEEP, "--budgets", "0.5", "--methods", "l1", "-o", "p.svg", "--picture", "p.svg"],
            "p.svg twice",
        ),
    ],
    ids=lambda words: f"{words[0]} {words[-1]}" if isinstance(words, list) else words,
)
def test_no_two_results_are_one_file(
    words: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.iterdir())
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"fairkern: error: cannot write {said}")
    assert sorted(here.iterdir()) == before


def test_a_page_may_lie_in_the_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", *BATCHES, "--keep-params", "0.6", "--out", "o", "--html", "o/page.html"]) == 0
    assert "written to o/page.html\n" in capsys.readouterr().err
    assert (here / "o" / "page.html").read_text().startswith("<!doctype html>")
    assert fk.load_pruned(parts.model(), "o") is not None


def test_apply_says_what_is_left_with_the_biases_that_it_adds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bare.py").write_text(
        "from torch import nn\n\n\ndef model():\n"
        "    return nn.Sequential(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 3, bias=False)).eval()\n"
    )
    assert main(["score", "bare:model", *BATCHES[1:], "--gram", "--out", "s", "--quiet"]) == 0
    assert main(["plan", "s", "--keep-params", "0.6", "--out", "p.json", "--quiet"]) == 0
    capsys.readouterr()
    apply = ["apply", "bare:model", "p.json", "--compensate", "least_squares", "--scores", "s", "--out", "o", "--json"]
    assert main(apply) == 0
    told = capsys.readouterr()
    facts, left = json.loads(told.out), sum(p.numel() for p in fk.load_pruned("o", trust=True).parameters())
    assert facts["params"] == left > facts["result"]["params_after"]
    assert f" → {left:,} (" in told.err


def test_apply_says_what_is_of_an_earlier_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared()
    (here / "small" / "plan.json").rename(here / "p.json")
    capsys.readouterr()
    assert main(["apply", "parts:model", "p.json", "--out", "small"]) == 0
    assert "small/report.json is of an earlier run\n" in capsys.readouterr().err


def test_a_misspelt_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--versoin"]) == 2
    assert "did you mean --version?" in capsys.readouterr().err


def test_a_module_is_found_without_being_imported(here: Path) -> None:
    (here / "noisy").mkdir()
    (here / "noisy" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (here / "noisy" / "inner.py").write_text("")
    assert module_file("noisy.inner:x") == here / "noisy" / "inner.py"
    assert module_file("noisy:x") == here / "noisy" / "__init__.py"
    assert module_file("noisy.absent:x") is None
    assert module_file("C:/folder/file") is None
    assert named("parts:model") is not None


def test_json_of_a_report_is_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    prepared()
    assert main(["report", "parts:model", "small", "parts:inputs", "--json", "--quiet"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert "scores" not in facts
    assert facts["choices"]["compensation"]
