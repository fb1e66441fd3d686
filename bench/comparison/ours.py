"""fairkern's own cells, by the same cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

import fairkern as fk
from bench.comparison.cases import CASES, Case, chain
from bench.comparison.cells import Cell, failing, follows, judged, no, parameters, smaller_file, yes
from bench.shipping.families import make_folder, write_text
from fairkern.cli import main


def batches(case: Case) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(40) % 5
    inputs = torch.randn(40, *case.example.shape[1:], generator=generator)
    return list(
        zip((inputs + labels.view(-1, *(1,) * (inputs.dim() - 1)) / 3).split(20), labels.split(20), strict=True)
    )


def scored(case: Case) -> fk.Scores:
    units = fk.trace(case.model, case.example)
    return fk.score(case.model, batches(case), nn.CrossEntropyLoss(), units=units, gram=True, progress=False)


def cut(case: Case) -> nn.Module:
    """As many parameters as the case says are possible; which, the scores say."""
    return fk.apply(case.model, scored(case).plan(keep_params=(case.left + 0.5) / case.whole))


def structure(name: str) -> Cell:
    return judged(CASES[name](), cut)


@contextmanager
def folders(family: str) -> Iterator[Path]:
    """A small language model's folder and a text, and commands are run beside them."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            make_folder(family, Path("model"))
            write_text(Path("text.txt"))
            yield Path(folder)
        finally:
            os.chdir(before)


def pruned(*options: str) -> None:
    command = [
        "prune",
        "--hf",
        "model",
        "--data",
        "text.txt",
        "--samples",
        "8",
        "--sequence",
        "32",
        "--quiet",
        "-o",
        "small",
    ]
    assert main([*command, *options]) == 0


def opened(folder: str = "small") -> nn.Module:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def whole_experts() -> Cell:
    with folders("mixtral"):
        before = parameters(opened("model"))
        pruned("--drop", "expert=1")
        model = opened()
    return yes(
        f"`--drop expert=1` of a Mixtral left {model.config.num_local_experts} experts in every layer, "
        f"{parameters(model) / before:.0%} of the parameters"
    )


def depth() -> Cell:
    with folders("llama"):
        before = opened("model").config.num_hidden_layers
        pruned("--keep-params", "0.6", "--depth")
        after = opened().config.num_hidden_layers
    assert after < before
    return yes(
        f"`--depth` left {after} of {before} layers of a Llama; branches of other models are units with `depth=True`"
    )


def unstructured() -> Cell:
    return no("it removes whole units")


def signals() -> Cell:
    found = scored(chain())
    names = [*found.signals] + ["random"] * ("random" not in found.signals)
    assert len(names) >= 7, names
    return yes("by classes, gradients and second order: " + ", ".join(names))


def own_signal() -> Cell:
    scores = scored(chain())
    plan = scores.plan(keep_params=0.5, removal=lambda group: range(group.total), allocation="uniform")
    gone = {int(k) for group in plan.groups for k in group.removed}
    assert gone == set(range(len(gone))), gone
    return yes("`removal=` took a function of a group")


def uneven() -> Cell:
    case = chain()
    with torch.no_grad():
        for part in (case.model.layers[3].weight, case.model.layers[4].weight, case.model.layers[8].weight.T):
            part[:4].mul_(0.01)
    small = fk.apply(case.model, scored(case).plan(keep_params=0.2))
    left = [layer.out_channels for layer in small.modules() if isinstance(layer, nn.Conv2d)]
    assert left[0] != left[1], left
    return yes(f"one threshold for all layers left {left[0]} and {left[1]} of 16 and 16 channels")


def search() -> Cell:
    return no("budgets are solved from scores; `evaluate=` measures what comes of them")


def budget_params() -> Cell:
    case = chain()
    left = parameters(fk.apply(case.model, scored(case).plan(keep_params=0.6))) / case.whole
    assert 0.5 < left <= 0.6
    return yes(f"`keep_params=0.6` left {left:.0%}")


def budget_flops() -> Cell:
    result = scored(chain()).plan(keep_flops=0.6).result
    left = result["flops_after"] / result["flops_before"]
    assert 0.5 < left <= 0.6
    return yes(f"`keep_flops=0.6` left {left:.0%}")


def budget_latency() -> Cell:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)).eval()
    example = torch.randn(2, 3, 32, 32)
    y = torch.arange(20) % 5
    scores = fk.score(
        model, [(torch.randn(20, 3, 32, 32), y)], nn.CrossEntropyLoss(), units=fk.trace(model, example), progress=False
    )
    plan = fk.plan_latency(scores, model, example, 0.5)
    assert any(len(group.removed) for group in plan.groups)
    return yes("`plan_latency` to half of the measured time gave a plan that the clock was asked about")


def new_budget() -> Cell:
    scores = scored(chain())
    begin = time.perf_counter()
    plans = [scores.plan(keep_params=keep) for keep in (0.9, 0.8, 0.7, 0.6, 0.5)]
    took = time.perf_counter() - begin
    assert took < 5
    assert len({str(plan) for plan in plans}) == 5
    return yes("five plans from stored scores, without model or data")


def reasons() -> Cell:
    case = CASES["heads"]()
    said = fk.trace(case.model, case.example).explain()
    assert "norm" in said
    return yes("`explain()` names every frozen axis with its reason")


def proven() -> Cell:
    return follows({name: structure(name) for name in CASES})


def untouched() -> Cell:
    case = chain()
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    cut(case)
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
    return yes("parameters and buffers of the given model are what they were, to the bit")


def compensation() -> Cell:
    case = chain()
    with torch.no_grad():
        for layer, norm in ((0, 1), (3, 4)):
            case.model.layers[layer].weight[8:] = (
                case.model.layers[layer].weight[:8] * 0.5
            )  # not dead now: half of one that stays
            case.model.layers[layer].bias[8:] = case.model.layers[layer].bias[:8] * 0.5
            for part in (case.model.layers[norm].weight, case.model.layers[norm].bias):
                part[8:] = part[:8] * 0.5
        case.model.layers[3].weight[:, 8:] = case.model.layers[3].weight[:, :8]
        case.model.layers[8].weight[:, 8:] = case.model.layers[8].weight[:, :8]
    scores = scored(case)
    plan = scores.plan(keep_params=(case.left + 0.5) / case.whole)
    apart = dict[str, float]()
    with torch.no_grad():
        expected = case.model(case.example)
        for method in ("none", "least_squares"):
            small = fk.apply(case.model, plan, compensate=method, scores=scores)
            apart[method] = float((small(case.example) - expected).norm() / expected.norm())
    assert apart["least_squares"] < 0.5 * apart["none"], apart
    return yes(f"least squares brought the output's error from {apart['none']:.1%} to {apart['least_squares']:.1%}")


def sparse_training() -> Cell:
    return no("it cuts models as they are trained")


def distillation() -> Cell:
    case = chain()
    with torch.no_grad():
        small = fk.apply(case.model, scored(case).plan(keep_params=0.25))
    before = [p.clone() for p in small.parameters()]
    fk.heal(small, case.model, batches(case), steps=3, progress=False)
    assert any(not torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))
    return yes("`fk.heal` trained the cut model by the uncut one's outputs")


def quantisation() -> Cell:
    return no("torch's and others' take the cut model, which is an ordinary module")


def reload() -> Cell:
    case, again = chain(), chain()
    plan = scored(case).plan(keep_params=0.5)
    small = fk.apply(case.model, plan)
    with tempfile.TemporaryDirectory() as folder:
        fk.save_pruned(small, plan, Path(folder) / "small")
        model = fk.load_pruned(again.model, Path(folder) / "small").eval()
    assert torch.equal(model(case.example), small(case.example))
    return yes("`load_pruned` from safetensors and JSON, the same to the bit")


def onnx() -> Cell:
    return smaller_file(cut)


def checkpoint() -> Cell:
    with folders("llama"):
        pruned("--keep-params", "0.7")
        fk.compact_checkpoint("model", fk.Plan.load("small/plan.json"), "again")
        assert parameters(opened("again")) < 0.75 * parameters(opened("model"))
    return yes("`compact_checkpoint` cut a folder's files by a plan, and transformers opened them")


def llm_folder() -> Cell:
    with folders("llama"):
        before = parameters(opened("model"))
        pruned("--keep-params", "0.7")
        left = parameters(opened()) / before
    assert left < 0.75, left
    return yes(f"`fairkern prune --hf` of a Llama, opened by transformers alone with {left:.0%} of its parameters")


def uneven_files() -> Cell:
    with folders("llama") as folder:
        pruned("--keep-params", "0.7", "--serve", "vllm")
        config = json.loads((folder / "small" / "config.json").read_text())
    assert "block_configs" in config, sorted(config)
    return yes("`--serve vllm` wrote block configs, `fairkern export` files for llama.cpp; servers are not run here")


PARTS = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))

def loader():
    y = torch.arange(3).repeat(10)
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(2)) + y[:, None]
    return list(zip(x.split(10), y.split(10)))
"""


def plan_of(*launcher: str) -> list[list[int]]:
    """The positions that go, by a command of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "parts.py").write_text(PARTS)
        environment = {**os.environ, "PYTHONPATH": str(Path(fk.__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
        work = [
            "prune",
            "parts:model",
            "parts:loader",
            "torch.nn:CrossEntropyLoss",
            "--keep-params",
            "0.5",
            "-o",
            "small",
        ]
        command = [sys.executable, "-m", *launcher, "fairkern", *work]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return [group.removed.tolist() for group in fk.Plan.load(Path(folder) / "small" / "plan.json").groups]


def processes() -> Cell:
    assert plan_of() == plan_of("torch.distributed.run", "--nproc-per-node=2", "-m")
    return yes("two processes of torchrun gave the plan of one")


def blocks() -> Cell:
    with folders("llama"):
        pruned("--keep-params", "0.7", "--walk", "blocks")
        assert parameters(opened())
    return yes("`--walk blocks` scored, compensated and cut a Llama from its files, a block at a time")


def report() -> Cell:
    case = chain()
    _, made = fk.prune(case.model, batches(case), nn.CrossEntropyLoss(), keep_params=0.5, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "report.json")
        assert fk.Report.load(Path(folder) / "report.json").before == made.before
    return yes("a table, JSON and pictures: sizes, measured time, what stays and why")


def command_line() -> Cell:
    assert failing(lambda: main(["info", "--json"])) is None
    return yes("`fairkern prune`, and every stage by itself")


def frameworks() -> Cell:
    return no("PyTorch modules, and files of safetensors")
