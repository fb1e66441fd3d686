"""The command line: every command on the demo's models, and every way to get it wrong."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.cli import main
from fairkern.cli.given import named
from fairkern.cli.parser import command_line

LOSS = "torch.nn:CrossEntropyLoss"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"fairkern {fk.__version__}"


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["threads"] >= 1
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert torch.__version__ in text
    assert "gather" in text


def test_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "parts:model", "parts:inputs"]) == 0
    assert "proven" in capsys.readouterr().out
    assert main(["trace", "parts:model", "parts:inputs", "--no-verify"]) == 0
    assert "not proven" in capsys.readouterr().out
    assert main(["trace", "parts:model", "parts:inputs", "--unused", "2.weigth"]) == 2
    assert "near names: " in capsys.readouterr().err
    assert main(["trace", "parts:model", "parts:inputs", "--unused", "0"]) == 2
    assert "which the example inputs reach" in capsys.readouterr().err


def test_targets_that_are_no_classes(capsys: pytest.CaptureFixture[str]) -> None:
    score = ["score", "parts:model", "parts:loader_of_soft_targets", LOSS, "--gram", "--out", "scores.safetensors"]
    assert main(score) == 2
    assert "--no-classes" in capsys.readouterr().err
    assert main([*score, "--no-classes"]) == 0
    assert main(["plan", "scores.safetensors", "--keep-params", "0.5", "--out", "plan.json"]) == 0
    assert main(["plan", "scores.safetensors", "--tod", "0.1", "--out", "plan.json"]) == 2
    assert "wasserstein" in capsys.readouterr().err


def test_score_plan_apply_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "parts:model", "parts:loader", LOSS, "--out", "deep/scores.safetensors"]) == 0
    budget = ["--keep-params", "0.6", "--out", "plan.json", "--ignore", "0", "--quiet"]
    capsys.readouterr()
    assert main(["plan", "deep/scores.safetensors", *budget]) == 0
    assert capsys.readouterr() == ("", "")
    plan = fk.Plan.load("plan.json")
    assert {g.name: len(g.removed) > 0 for g in plan.groups}["2"]
    assert main(["apply", "parts:model", "plan.json", "--out", "small"]) == 0
    model, x = named("parts:model"), named("parts:inputs")
    small = fk.load_pruned(named("parts:model"), "small")
    with plan.masked(model):
        assert torch.allclose(small(x), model(x), atol=1e-6)
    report = ["report", "parts:model", "plan.json", "parts:inputs", "--scores", "deep/scores.safetensors"]
    assert main([*report, "--out", "report.json"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert json.loads((here / "report.json").read_text())


def test_units_are_dropped_and_rounded_by_kind(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "parts:model", "parts:loader", LOSS, "--out", "s"]) == 0

    def left(*options: str) -> list[int]:
        assert main(["plan", "s", *options, "--out", "p", "--quiet"]) == 0
        return [g.units - len(g.removed) for g in fk.Plan.load("p").groups]

    assert left("--drop", "neuron=5") == [7, 7]
    assert fk.Plan.load("p").request["drop"] == {"neuron": 5}
    rounded = left("--keep-params", "0.6", "--round-to", "neuron=4")
    assert all(n % 4 == 0 for n in rounded)
    assert rounded != [12, 12]
    assert all(n % 4 == 0 for n in left("--keep-params", "0.6", "--round-to", "4"))
    assert main(["plan", "s", "--drop", "channel=2", "--out", "p"]) == 2
    assert "drop names the kind 'channel', which Sequential does not have" in capsys.readouterr().err
    for command in (["plan", "s"], ["prune", "parts:model", "parts:loader", LOSS]):
        assert main([*command, "--keep-params", "0.6", "--serve", "hf", "--out", "o"]) == 2
        assert "--serve hf goes by the fields of a configuration" in capsys.readouterr().err
        assert main([*command, "--keep-params", "0.6", "--serve", "triton", "--out", "o"]) == 2
        assert "serve is 'triton'; expected one of 'hf', 'vllm', 'gguf', 'deci'" in capsys.readouterr().err
    assert main(["prune", "parts:model", "parts:loader", LOSS, "--drop", "neuron=2", "--out", "o", "--quiet"]) == 0
    assert fk.Plan.load("o/plan.json").result["units_removed"] == 4


def test_prune(here: Path) -> None:
    assert main(["prune", "parts:model", "parts:loader", LOSS, "--keep-flops", "0.5", "--out", "small"]) == 0
    small = fk.load_pruned(named("parts:model"), here / "small")
    before = sum(p.numel() for p in named("parts:model").parameters())
    assert sum(p.numel() for p in small.parameters()) < before
    assert isinstance(small, nn.Module)
    again, plan = (
        fk.Scores.load(here / "small" / "scores.safetensors").plan(keep_flops=0.5),
        fk.Plan.load("small/plan.json"),
    )
    assert [g.removed.tolist() for g in again.groups] == [g.removed.tolist() for g in plan.groups]
    assert json.loads((here / "small" / "report.json").read_text())["choices"]["compensation"] == "sequential"


def test_prune_is_told_what_inputs_reach(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "parts:two_ways", "parts:inputs"]) == 0
    assert "not reached by the example inputs" in capsys.readouterr().out
    assert main(["trace", "parts:two_ways", "parts:inputs", "--more", "parts:other_way"]) == 0
    assert "not reached by the example inputs" not in capsys.readouterr().out
    command = ["prune", "parts:two_ways", "parts:loader", LOSS, "--keep-params", "0.6", "--out", "small", "--quiet"]
    for options, both in ([], False), (["--more", "parts:other_way"], True), (["--unused", "aside"], False):
        assert main([*command, *options]) == 0
        cut = {item.axis.tensor for item in fk.Plan.load("small/plan.json").axes if item.removed.size}
        assert "fc.weight" in cut
        assert ("aside.weight" in cut) == both
    assert main([*command, "--unused", "asid"]) == 2
    assert "near names: aside" in capsys.readouterr().err


def test_prune_in_steps(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prune", "parts:model", "parts:loader", LOSS, "--keep-params", "0.6", "--out", "small"]
    assert main([*arguments, "--iterations", "2"]) == 0
    assert "in 2 steps; written to small" in capsys.readouterr().err
    small, plan = fk.load_pruned(named("parts:model"), here / "small"), fk.Plan.load(here / "small" / "plan.json")
    assert plan.request["iterations"] == 2
    report = json.loads((here / "small" / "report.json").read_text())
    assert report["after"]["params"] == sum(p.numel() for p in small.parameters())
    assert len(report["choices"]["steps"]) == 2
    assert main(["prune", "parts:model", "parts:loader", LOSS, "--tod", "0.1", "--out", "s", "--iterations", "2"]) == 2
    assert "needs a budget" in capsys.readouterr().err


WRONG = [
    (["demo", "--out", "parts.py"], "cannot write"),
    (["trace", "parts", "parts:inputs"], "package.module:callable"),
    (["trace", "nowhere.at_all:model", "parts:inputs"], "no module"),
    (["trace", "parts:nothing", "parts:inputs"], "no attribute 'nothing'"),
    (["trace", "parts:number", "parts:inputs"], "not a callable"),
    (["trace", "parts:made", "parts:inputs"], "'parts:made' is a Sequential, not a function that returns it"),
    (["trace", "parts:hungry", "parts:inputs"], "without arguments"),
    (["trace", "parts:inputs", "parts:inputs"], "torch.nn.Module"),
    (["score", "parts:model", "parts:loader", LOSS, "--out", "parts.py/scores"], "cannot write"),
    (["score", "parts:model", "parts:loader", LOSS, "--out", "s", "--backend", "abacus"], "abacus"),
    (
        ["score", "parts:model", "parts:loader", LOSS, "--out", "s", "--samples-per-class", "1"],
        "error: --samples-per-class 1 is too small",
    ),
    (["plan", "absent.safetensors", "--tod", "0.1", "--out", "plan.json"], "absent.safetensors"),
    (["plan", "parts.py", "--tod", "0.1", "--out", "plan.json"], "parts.py"),
    (["apply", "parts:model", "absent.json", "--out", "small"], "absent.json"),
    (["apply", "parts:model", "parts.py", "--out", "small"], "parts.py"),
    (["apply", "parts:model", "absent.json", "--out", "parts.py"], "it is a file"),
    (["prune", "parts:model", "parts:loader", LOSS, "--tod", "0.1", "--out", "parts.py"], "it is a file"),
    (["report", "parts:model", "plan.json", "parts:inputs", "--picture", "p.png"], "--scores"),
    (["report", "parts:model", "absent.json", "parts:inputs"], "absent.json"),
    (["report", "parts:model", "plan.json", "parts:inputs", "--out", "."], "it is a folder"),
    (["score", "parts:model", "parts:loader", LOSS, "--out", "."], "it is a folder"),
    (["score", "parts:loader", "parts:loader", LOSS, "--out", "s"], "model is a list; expected a torch.nn.Module"),
    (
        ["score", "parts:model", "parts:loader", LOSS, "--out", "s", "--class-of", "parts:loader"],
        "error: --class-of is a list",
    ),
    (["score", "parts:model", "parts:loader", LOSS, "--out", "s", "--seed", "-1"], "error: --seed -1 is too small"),
    (["trace", "parts:model", "parts:inputs", "--time-limit", "nan"], "error: --time-limit nan is not finite"),
]


@pytest.mark.parametrize(("arguments", "what"), WRONG, ids=lambda value: value if isinstance(value, str) else None)
def test_one_clear_line(arguments: list[str], what: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in here.iterdir()}
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert what in err
    assert err.startswith("fairkern: error: ")
    assert len(err.strip().splitlines()) == 1
    assert {path.name for path in here.iterdir()} - {"__pycache__"} == before


SAID = [
    ("prune", "memory_budget=1,000 bytes is too small: 7", "--memory-budget 1,000 bytes is too small: 7"),
    ("prune", "keep_params=70.0 is not a share", "--keep-params 70.0 is not a share"),
    ("prune", "walk='blocks' cannot be had with depth=True (as", "--walk blocks cannot be had with --depth (as"),
    ("prune", "drop={'a b': 1}: ignore=['z'], min_keep=1", "--drop {'a b': 1}: --ignore ['z'], --min-keep 1"),
    ("prune", "which gram=True takes: leave out gram=", "which --gram takes: leave out --gram"),
    ("prune", "class_of=False says none: pass class_of= to", "--no-classes says none: pass --class-of to"),
    ("prune", "walk='whole' (--walk whole) where", "--walk whole where"),
    ("prune", "packed (without packing=False, --no-packing), or", "packed (without --no-packing), or"),
    ("prune", "pass biases=False, or biases='auto'", "pass --biases no, or --biases auto"),
    ("export", "no file (vocab=False, --no-vocab): ids", "no file (--no-vocab): ids"),
    ("trace", "pass verify='whole', or verify=False", "pass --verify whole, or --no-verify"),
    ("prune", "backend is 3; expected", "--backend is 3; expected"),
    ("prune", "the backend is 3", "the backend is 3"),
    ("prune", "a/seed=3/b, 'seed=3', fk.trace(model, seed=3)", "a/seed=3/b, 'seed=3', fk.trace(model, seed=3)"),
    ("prune", "class_of=lambda batch: batch[1]", "class_of=lambda batch: batch[1]"),
    ("plan", "inplace=True and gram=True", "inplace=True and gram=True"),
]


@pytest.mark.parametrize(("command", "message", "said"), SAID)
def test_errors_speak_of_options(command: str, message: str, said: str) -> None:
    words = {"prune": ["--tod", "0", "-o", "o"], "export": ["f", "--gguf", "g"], "trace": ["m", "i"]}
    words["plan"] = ["s", "--tod", "0", "--out", "p"]
    assert command_line().parse_args([command, *words[command]]).parser.in_options(message) == said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2000000000", 2 * 10**9),
        ("2GB", 2 * 10**9),
        ("1.5G", 1_500_000_000),
        ("512MiB", 2**29),
        ("64 kib", 2**16),
        ("0.1TB", 10**11),
        ("12b", 12),
        *((text, None) for text in ("", "0", "-1", "1e9", "lots", "2GiBs", "0.2", "1,000", "2 GB 3", "٣")),
    ],
)
def test_sizes(text: str, expected: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["score", "m:m", "l:l", "--out", "s", f"--memory-budget={text}"]
    if expected is None:
        assert main(words) == 2
        assert f"{text!r} is not a number of bytes above 0; expected for example" in capsys.readouterr().err
    else:
        assert command_line().parse_args(words).memory_budget == expected


def test_bad_budgets(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "parts:model", "parts:loader", LOSS, "--out", "s", "--quiet"]) == 0
    for budget in (
        ["--keep-params", "0.0001"],
        ["--keep-params", "7"],
        ["--tod", "-1"],
        ["--tod", "0.1", "--ignore", "zz*"],
    ):
        assert main(["plan", "s", *budget, "--out", "plan.json"]) == 2
        assert capsys.readouterr().err.startswith("fairkern: error: ")
        assert not (here / "plan.json").exists()


def test_a_plan_for_another_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "parts:model", "parts:loader", LOSS, "--out", "s", "--quiet"]) == 0
    assert main(["plan", "s", "--tod", "0.9", "--out", "plan.json", "--quiet"]) == 0
    assert main(["apply", "parts:other_model", "plan.json", "--out", "small"]) == 2
    assert "fairkern: error: " in capsys.readouterr().err
    assert not (here / "small").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["compact"],
        ["info", "--colour"],
        ["demo", "--model", "lenet"],
        ["demo", "--epochs", "0"],
        ["demo", "--keep-params", "7"],
        ["plan", "s", "--out", "p"],
        ["plan", "s", "--tod", "0.1", "--keep-params", "0.5", "--out", "p"],
        ["plan", "s", "--keep", "0.5", "--out", "p"],
        ["score", "m:m", "l:l"],
        ["score", "m:m", "l:l", "--out", ""],
        ["apply", "m:m", "p", "--out", ""],
        ["prune", "m:m", "l:l", "--keep-params", "half", "--out", "o"],
        ["plan", "s", "--tod", "0.1", "--drop", "neuron=2", "--out", "p"],
        ["plan", "s", "--drop", "2", "--out", "p"],
        ["plan", "s", "--drop", "neuron=2,neuron=3", "--out", "p"],
        ["plan", "s", "--drop", "neuron=-2", "--out", "p"],
        ["plan", "s", "--tod", "0.1", "--round-to", "0", "--out", "p"],
        ["plan", "s", "--tod", "0.1", "--round-to", "neuron=4,head", "--out", "p"],
        ["plan", "s", "--tod", "0.1", "--round-to", "=4", "--out", "p"],
    ],
    ids=" ".join,
)
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fairkern: error: ")
    assert err.endswith(f" ({' '.join(['fairkern', *arguments[: arguments[0] != 'frobnicate']])} --help)\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["score", "m:m", "l:l", "--gramm", "--out", "s"], "there is no option --gramm; did you mean --gram?"),
        (["plan", "s", "--keep-flop=0.5", "--out", "p"], "there is no option --keep-flop; did you mean --keep-flops?"),
        (["score", "m:m", "l:l", "--colour"], "there is no option --colour ("),
    ],
)
def test_a_misspelt_option_is_what_the_error_names(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert meant in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--tod", "0.1", "--round-to", "neuron"],
            "a whole number from 1 up, nor KIND=N,KIND=N, as in neuron=128,head=1",
        ),
        (["--drop", "expert"], "'expert' is not of the form KIND=N,KIND=N, as in expert=2"),
    ],
)
def test_what_is_asked_by_kind_names_its_form(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "s", *arguments, "--out", "p"]) == 2
    assert said in capsys.readouterr().err


def test_every_option_of_a_command_says_what_it_is() -> None:
    (commands,) = [action for action in command_line()._actions if isinstance(action, argparse._SubParsersAction)]
    plain = {"--json", "--model", "--iterations"}
    for name, parser in commands.choices.items():
        for action in parser._actions:
            assert action.help or plain.intersection(action.option_strings), (name, action.dest)


def test_a_folder_that_is_named_without_its_option(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "llama").mkdir()
    assert main(["prune", "llama", "text.txt", "--keep-params", "0.7", "-o", "out"]) == 2
    said = capsys.readouterr().err
    assert "llama is a folder: name it with --hf" in said
    assert "(fairkern prune --hf llama --data text.txt)" in said


def test_a_folder_where_a_file_is_expected(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "parts:model", "parts:loader", LOSS, "--keep-params", "0.8", "--out", "o", "--quiet"]) == 0
    assert main(["apply", "parts:model", "o", "--out", "small"]) == 2
    assert capsys.readouterr().err == f"fairkern: error: o is a folder; name the file: {Path('o') / 'plan.json'}\n"
    assert main(["plan", ".", "--keep-params", "0.8", "--out", "p"]) == 2
    assert capsys.readouterr().err == "fairkern: error: . is a folder; name the file\n"


def test_scores_of_an_earlier_run_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prune = ["prune", "parts:model", "parts:loader", LOSS, "--keep-params", "0.8", "--out", "o"]
    assert main(prune) == 0
    assert "earlier run" not in capsys.readouterr().err
    assert main([*prune, "--iterations", "2"]) == 0
    assert "o/scores.safetensors is of an earlier run: several steps write no scores" in capsys.readouterr().err


def test_warnings_are_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = Path(__file__).parents[1] / "fixtures" / "eb63876" / "configured" / "scores.safetensors"
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["plan", str(old), "--keep-params", "0.8", "--out", "plan.json", "--quiet"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fairkern: warning: {old} was written before files had a sum")
    assert warnings.showwarning is before


def test_compensation_without_scores_speaks_of_the_option(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "parts:model", "plan.json", "--compensate", "mean", "--out", "small"]) == 2
    assert "name its file with --scores" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "added"), [([], True), (["--biases", "yes"], True), (["--biases", "no"], False)])
def test_biases_are_added_where_they_may_be(here: Path, given: list[str], added: bool) -> None:
    cut = ["--compensate", "least_squares", *given, "--quiet"]
    assert (
        main(["prune", "parts:without_biases", "parts:loader", LOSS, "--keep-params", "0.6", "--out", "a", *cut]) == 0
    )
    saved = ["--scores", "a/scores.safetensors", "--out", "b"]
    assert main(["apply", "parts:without_biases", "a/plan.json", *saved, *cut]) == 0
    for folder in ("a", "b"):
        small = fk.load_pruned(named("parts:without_biases"), here / folder)
        assert (small[2].bias is not None) == added


def test_what_the_user_raises_passes_through(here: Path) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        main(["score", "parts:model", "parts:broken_loader", LOSS, "--out", "s", "--quiet"])
    assert not (here / "s").exists()


def test_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "parts:interrupted", "parts:inputs"]) == 130
    assert capsys.readouterr().err.strip() == "fairkern: interrupted"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_during_the_demo(here: Path) -> None:
    pytest.importorskip("sklearn")
    # A parent in the background may have told its children to ignore Ctrl-C.
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from fairkern.cli import main; sys.exit(main(['demo', '--model', 'vgg']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", script], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        assert "images" in child.stdout.readline()  # it has begun
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    assert "Traceback" not in err


def test_a_detector_with_the_batches_of_its_own_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "parts:detector", "parts:images"]) == 0
    assert "body" in capsys.readouterr().out
    command = ["prune", "parts:detector", "parts:images_and_targets", "--keep-params", "0.6", "--quiet"]
    assert main([*command, "--out", "small"]) == 0
    plan = fk.Plan.load("small/plan.json")
    assert 0 < plan.result["params_after"] < 0.7 * plan.result["params_before"]
    assert main(["report", "parts:detector", "small/plan.json", "parts:images"]) == 0


def test_latency_tables_are_solved_with(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "parts:wide", "parts:loader", LOSS, "--gram", "--out", "s", "--quiet"]) == 0
    assert main(["latency", "parts:wide", "parts:inputs", "--out", "t.json", "--quiet"]) == 0
    table = fk.LatencyTable.load("t.json")
    table.save("again.json")
    assert (here / "again.json").read_text() == (here / "t.json").read_text()
    capsys.readouterr()
    plan = ["plan", "s", "--keep-params", "50%", "--latency", "t.json", "--out", "p.json"]
    assert main(plan) == 0
    said = capsys.readouterr().err
    result = fk.Plan.load("p.json").result
    after = fk.Scores.load("s").plan(keep_params=0.5, latency=table).result["latency_after_ms"]
    assert result["latency_after_ms"] == after
    assert f"({after / table.whole:.1%} kept), predicted" in said
    share = str(after / table.whole)
    assert main(["plan", "s", "--keep-latency", share, "--latency", "t.json", "--out", "p.json"]) == 0
    assert fk.Plan.load("p.json").result["latency_after_ms"] <= after
    small = ["prune", "parts:wide", "parts:loader", LOSS, "--keep-latency", share, "--latency", "t.json", "--out", "o"]
    assert main([*small, "--quiet"]) == 0
    assert fk.Plan.load("o/plan.json").request["keep_latency"] == float(share)


def test_a_function_is_told_how_far_it_is() -> None:
    told: list[tuple[int, int | None, str]] = []
    model, loader = named("parts:model"), named("parts:loader")
    _, report = fk.prune(model, loader, nn.CrossEntropyLoss(), keep_params=0.6, progress=lambda *a: told.append(a))
    stages = list(dict.fromkeys(stage for *_, stage in told))
    assert stages[:3] == ["tracing", "scoring", "ordering units"]
    assert told[-1][2] == "measuring latency"
    layers = [(done, total) for done, total, stage in told if stage == "compensating"]
    assert layers[0] == (0, 3)
    assert layers[-1] == (3, 3)
    assert layers == sorted(layers)
    told.clear()
    scores = fk.score(model, loader, nn.CrossEntropyLoss(), gram=True, progress=False)
    assert not told
    how = {"scores": scores, "loader": loader, "loss_fn": nn.CrossEntropyLoss()}
    fk.apply(model, report.plan, compensate="joint", **how, progress=lambda *a: told.append(a))
    assert {stage for *_, stage in told} == {"compensating", "fitting all layers together"}
    with pytest.raises(fk.InputError, match="progress='yes' is a str; expected True, False or a function"):
        fk.score(model, loader, nn.CrossEntropyLoss(), progress="yes")


def test_functions_of_a_batch_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["score", "parts:model", "parts:loader_of_soft_targets", LOSS, "--quiet", "--out", "scores.safetensors"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "pass --class-of to say which class a sample belongs to" in error
    assert "or --no-classes to do " in error
    assert main([*command, "--class-of", "parts:class_of", "--samples-of", "parts:samples_of"]) == 0
    assert fk.Scores.load("scores.safetensors").provenance["classes"] == {"0": 10, "1": 10, "2": 10}
    assert main([*command, "--class-of", "parts:class_of", "--no-classes"]) == 2
    assert "--no-classes: not allowed with --class-of" in capsys.readouterr().err
