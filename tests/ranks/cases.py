"""What the processes of these tests do: each function is run in all of them, with their group."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import fairkern as fk
from bench.zoo.mixtures import MIXTURES
from fairkern.cli import main
from fairkern.ranks import team, together
from tests import experts, listed
from tests.detectors import Detector, targets

CROSS_ENTROPY = nn.functional.cross_entropy


def net(seed: int = 0) -> nn.Module:
    """A small convolutional net of which every unit of two layers is there twice: ties of all signals."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 16), nn.ReLU(), nn.Linear(16, 3)),
    )
    with torch.no_grad():
        for made, read in ((model[0], model[3]), (model[6], model[8])):
            made.weight[1::2], made.bias[1::2] = made.weight[::2].clone(), made.bias[::2].clone()
            read.weight[:, 1::2] = read.weight[:, ::2].clone()
    return model


def data(sizes: tuple[int, ...] = (8, 8, 8, 8, 3)) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 1, 6, 6, generator=generator), torch.arange(n) % 3) for n in sizes]


class PerPlace(nn.Module):
    """Labels for every pixel; the second convolution has a coarser grid."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 6, 3, 1, 1), nn.Conv2d(6, 6, 2, 2), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.last(self.second(self.first(x).relu()).relu()), scale_factor=2)


class Keeps(nn.Module):
    """Something of every batch stays in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.seen = nn.Linear(4, 8), nn.Linear(8, 3), [torch.zeros(1)]

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        self.seen = [hidden.detach().clone()]
        return self.last(hidden)


def spoken(scores: fk.Scores) -> dict[str, Any]:
    """What is compared of scores: all but what a clock or a budget of each process says."""
    known = {k: v for k, v in scores.provenance.items() if k not in ("seconds", "passes", "sample_bytes", "ranks")}
    return {
        "signals": {name: list(values) for name, values in scores.signals.items()},
        "means": dict(scores.means),
        "moments": {name: (m.gram.numpy(), m.total.numpy(), m.count) for name, m in scores.moments.items()},
        "grids": dict(scores.grids),
        "provenance": known,
        "passes": scores.provenance["passes"],
    }


def unproven(model: nn.Module, batches: list[Any]) -> fk.UnitMap:
    """The map of a model, in a moment."""
    return fk.trace(model, (batches[0][0],), verify=False)


def scored(group: Any, sizes: tuple[int, ...], options: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    model, batches = net(), data(sizes)
    units = unproven(model, batches)
    scores = fk.score(model, batches, CROSS_ENTROPY, units=units, ranks=group, progress=False, **options)
    return spoken(scores), [g.removed for g in scores.plan(keep_params=0.4).groups]


def scored_in_passes(group: Any, budget: int) -> dict[str, Any]:
    """Of layers that all take as much, for as many class samples as there is room for."""
    torch.manual_seed(0)
    hidden = [layer for _ in range(4) for layer in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), *hidden, nn.Linear(16, 3))
    batches = data((9, 8))
    options: dict[str, Any] = {"memory_budget": budget, "progress": False, "units": unproven(model, batches)}
    return spoken(fk.score(model, batches, CROSS_ENTROPY, ranks=group, **options))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.states, self.last = nn.GRU(4, 8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.states(x)[0].mean(1))


def unusual(kind: str) -> tuple[nn.Module, list[Any], Any, dict[str, Any]]:
    """A model of which some things show only when it runs; batches, a loss and options."""
    if kind == "detector":  # images of a list, one by one; its own losses, with random places
        generator = torch.Generator().manual_seed(2)
        sizes = [(16, 16), (16, 24), (24, 16)]
        pictures = [[torch.rand(3, *sizes[(i + k) % 3], generator=generator) for k in range(2)] for i in range(4)]
        return Detector(), [(each, targets(2)) for each in pictures], None, {"class_of": False}
    if kind == "recurrent":
        torch.manual_seed(0)
        return Recurrent(), [(torch.randn(n, 5, 4), torch.arange(n) % 3) for n in (6, 6, 6, 4)], CROSS_ENTROPY, {}
    if kind == "fused experts":
        x, y = experts.samples(14)
        return experts.build(), list(zip(x.split(4), y.split(4), strict=True)), CROSS_ENTROPY, {}
    return listed.net(MIXTURES[kind]), listed.batches(4), CROSS_ENTROPY, {}


def scored_unusually(group: Any, kind: str) -> tuple[dict[str, Any], list[Any]]:
    model, batches, loss, options = unusual(kind)
    options["units"] = unproven(model, batches)
    scores = fk.score(model, batches, loss, gram=True, ranks=group, progress=False, **options)
    return spoken(scores), [g.removed for g in scores.plan(keep_params=0.8, removal="residual").groups]


def pruned_unusually(group: Any, kind: str) -> dict[str, Any]:
    model, batches, loss, options = unusual(kind)
    options |= {"keep_params": 0.8, "compensate": "sequential", "progress": False, "units": unproven(model, batches)}
    small, _ = fk.prune(model, batches, loss, ranks=group, **options)
    return {name: tensor.detach().numpy() for name, tensor in small.state_dict().items()}


def scored_by_place(group: Any, count: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = PerPlace()
    batches = [(torch.randn(2, 1, 6, 6), torch.randint(0, 3, (2, 6, 6))) for _ in range(count)]
    options: dict[str, Any] = {"class_of": lambda batch: batch[1], "samples_per_class": 20, "gram": True}
    options["units"] = unproven(model, batches)
    return spoken(fk.score(model, batches, CROSS_ENTROPY, ranks=group, progress=False, **options))


def kept(group: Any, count: int) -> list[str]:
    torch.manual_seed(0)
    batches = [(torch.randn(6, 4), torch.arange(6) % 3) for _ in range(count)]
    model = Keeps()
    units = unproven(model, batches)
    scores = fk.score(model, batches, CROSS_ENTROPY, units=units, ranks=group, progress=False)
    return scores.provenance.get("keeps", [])


def pruned(group: Any, sizes: tuple[int, ...], options: dict[str, Any]) -> tuple[dict[str, Any], list[Any], Any]:
    small, report = fk.prune(net().double(), doubles(sizes), CROSS_ENTROPY, ranks=group, progress=False, **options)
    assert report.plan is not None
    said = (report.stages, report.before, report.after, report.choices)
    return {n: t.detach().numpy() for n, t in small.state_dict().items()}, [g.removed for g in report.plan.groups], said


def doubles(sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    return [(x.double(), y) for x, y in data(sizes)]


def recalibrated(group: Any, sizes: tuple[int, ...]) -> dict[str, Any]:
    model = net().double()
    fk.recalibrate(model, doubles(sizes), ranks=group)
    return {name: buffer.numpy() for name, buffer in model.named_buffers()}


def summed(group: Any, piece: int) -> tuple[list[Tensor], list[Tensor]]:
    """Sums of values of which the order of addition decides; and what every process has brought."""
    team._PIECE = piece
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(rank)
    own = torch.randn(29, generator=generator, dtype=torch.float64) * 10.0 ** torch.randint(-9, 9, (29,))
    own[:3] = torch.tensor([1e16, 1.0, -1e16])[torch.arange(rank, rank + 3) % 3]
    tensors = [own, own.flip(0).float(), torch.full((2, 5), rank), torch.zeros(0, 3), own[3]]
    with together(group, "test()") as ranks:
        return ranks.summed("numbers", tensors), tensors


def passed_on(group: Any) -> dict[str, Any]:
    with together(group, "test()") as ranks:
        rank = ranks.rank
        mine = torch.arange(rank * 3, dtype=torch.bfloat16).view(rank, 3)
        given = torch.full((4,), float(rank))
        ranks.spread("values", [given])
        return {
            "gathered": [len(value) for value in ranks.gathered("texts", "x" * (rank * 30_000))],
            "told": ranks.told("a text", lambda: f"{rank}" * 40_000, by=1),
            "brought": [None if t is None else t.float().tolist() for t in ranks.brought("rows", 1, mine)],
            "spread": given.tolist(),
            "shared": ranks.shared_out("jobs", [lambda k=k: (k, rank) for k in range(5)], [1, 9, 3, 3, 2]),
        }


def raises(group: Any, who: int) -> float:
    """How long it took until all knew; the loader of one process raises in the middle of a pass."""
    rank = dist.get_rank()

    def loader() -> Iterator[Any]:
        for number, batch in enumerate(data()):
            if number == 3 and rank == who:
                raise OSError("the disk is gone")
            yield batch

    fk.score(net(), loader(), CROSS_ENTROPY, units=fk.trace(net(), data()[0][0][:2]), ranks=group, progress=False)
    return 0.0


def apart(group: Any, what: str) -> Any:
    """One process is given something else than the others."""
    odd = dist.get_rank() == 1
    model, batches, options = net(int(odd and what == "model")), data(), {}
    if odd and what == "option":
        options["samples_per_class"] = 7
    if odd and what == "order":
        batches = batches[::-1]
    if odd and what == "length":
        batches = batches[:-1]
    if odd and what == "nothing":
        batches = []
    if what == "blocks":
        options["walk"] = "blocks"
    if what == "plan":
        scores = fk.score(model, batches, CROSS_ENTROPY, gram=True, ranks=False, progress=False)
        plan = scores.plan(keep_params=0.5 - 0.2 * odd)
        return fk.apply(model, plan, compensate="sequential", scores=scores, loader=batches, ranks=group)
    if odd and what == "elsewhere":
        return fk.recalibrate(model, batches, ranks=group)
    return fk.score(model, batches, CROSS_ENTROPY, ranks=group, progress=False, **options)


def unsaid(group: Any) -> list[str]:
    """What stages say where there are several processes and nothing is said of them."""
    model, batches = net(), data()
    units = fk.trace(model, batches[0][0][:2])
    scores = fk.score(model, batches, CROSS_ENTROPY, units=units, gram=True, ranks=False, progress=False)
    plan = scores.plan(keep_params=0.5)
    small = fk.apply(model, plan)  # a function of what it is given
    x = batches[0][0]
    calls: list[Callable[[], Any]] = [
        lambda: fk.score(model, batches, CROSS_ENTROPY),
        lambda: fk.prune(model, batches, CROSS_ENTROPY, keep_params=0.5),
        lambda: fk.apply(model, plan, compensate="sequential", scores=scores, loader=batches),
        lambda: fk.recalibrate(small, batches),
        lambda: fk.heal(small, model, batches, steps=1),
        lambda: fk.latency(model, x),
        lambda: fk.latency_table(model, units, x),
        lambda: fk.plan_latency(scores, model, x, 0.9),
    ]
    said = []
    for call in calls:
        try:
            call()
            said.append("")
        except fk.InputError as error:
            said.append(str(error))
    return said


def dies(group: Any, who: int) -> float:
    """One process is killed in the middle of a pass; how long it was until another knew is in its error."""
    batches = data((8,) * 6)
    started = time.monotonic()

    def loader() -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if number == 2 and dist.get_rank() == who:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    try:
        fk.score(net(), loader(), CROSS_ENTROPY, units=fk.trace(net(), batches[0][0][:2]), ranks=group, progress=False)
    except fk.RankError as error:
        if f"rank {who} " not in str(error):
            raise
        return time.monotonic() - started
    return -1.0


def folder_pruned(group: Any, source: str, out: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Weights that lie in the folder, and what the report measured after the cut."""
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    if not os.path.exists(source):
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(vocab_size=64, max_position_embeddings=32, bos_token_id=0, eos_token_id=1, **sizes)
        LlamaForCausalLM(config).save_pretrained(source)
    generator = torch.Generator().manual_seed(3)
    documents = [torch.randint(2, 64, (24,), generator=generator).tolist() for _ in range(40)]
    how: dict[str, Any] = {"sequence": 16, "samples": 12, "keep_params": 0.8, "progress": False, "device": "cpu"}
    report = fk.hf.prune(source, documents, out=out, ranks=group, **how)
    weights = load_file(os.path.join(out, "model.safetensors"))
    return {name: tensor.numpy() for name, tensor in weights.items()}, dict(report.after)


def commanded(group: Any, folder: str, arguments: list[str]) -> tuple[int, str]:
    """The command line in a process that `torchrun` might have started: its exit code, and what it said."""
    os.environ |= {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
    said, here = io.StringIO(), os.getcwd()
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.modules.pop("given", None)
    try:
        with contextlib.redirect_stderr(said):
            return main(arguments), said.getvalue()
    finally:
        os.chdir(here)
        sys.path.remove(folder)
        for name in ("RANK", "WORLD_SIZE"):
            del os.environ[name]


def swept(group: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Rows of a sweep, and of the budgets that `prune` tried, without their seconds; and how often was evaluated."""
    model, batches, calls = net(), data(), [0]
    units = unproven(model, batches)

    def evaluate(small: nn.Module) -> Tensor:
        calls[0] += 1
        return CROSS_ENTROPY(small(batches[0][0]), batches[0][1])

    how: dict[str, Any] = {"units": units, "evaluate": evaluate, "ranks": group, "progress": False}
    found = fk.sweep(model, batches, CROSS_ENTROPY, budgets=(0.8, 0.5), methods=["tod", "residual"], **how)
    _, report = fk.prune(model, batches, CROSS_ENTROPY, keep_params=0.5, budgets=(0.8,), **how)
    rows, curve = ([{**row, "seconds": 0.0} for row in made] for made in (found.rows, report.curve))
    return rows, curve, calls[0]
