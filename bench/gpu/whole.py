"""Whole stages on whole models in bfloat16: elimination, sequential compensation, the block walk, `prune`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fairkern as fk
from bench._training import forward_backward
from bench.gpu.cases import Bench, Case, Measured, against
from bench.gpu.llama import llama, next_token
from bench.gpu.workloads import batches_of
from bench.models import images
from fairkern.ops import View, eliminate

KEEP = 0.7  # of the parameters


@dataclass
class Task:
    """A model in bfloat16 twice (training changes its own), and data on the device."""

    model: nn.Module
    twin: nn.Module
    batches: list[tuple[Tensor, Tensor]]
    loss_fn: Callable[[Tensor, Tensor], Tensor]

    def train(self) -> None:
        forward_backward(self.twin, self.batches, self.loss_fn)

    def forward(self) -> None:
        with torch.no_grad():
            for x, _ in self.batches:
                self.model(x)

    def scores(self, **options: Any) -> fk.Scores:
        return fk.score(self.model, self.batches, self.loss_fn, progress=False, **options)


def resnet(bench: Bench) -> Task:
    scale, device = bench.scale, bench.machine.device
    model, twin = (scale.resnet().to(device, torch.bfloat16).eval() for _ in range(2))
    x, y = images(scale.classes * scale.per_class, scale.classes, 3, scale.image, device)
    return Task(model, twin, batches_of(x.bfloat16(), y, scale.batch), nn.CrossEntropyLoss())


def language(bench: Bench) -> Task:
    scale, device = bench.scale, bench.machine.device
    model, twin = (llama(scale.language, scale.tokens, device) for _ in range(2))
    generator = torch.Generator(device).manual_seed(0)
    shape = (scale.texts * scale.sequences, scale.tokens)
    ids = torch.randint(0, scale.language.vocab_size, shape, generator=generator, device=device)
    return Task(model, twin, batches_of(ids, ids, scale.sequences), next_token)


def elimination(bench: Bench) -> Measured:
    """As many causes as an eighth of the positions, seen through noise; beside it a float64 product of that size."""
    n, device = bench.scale.positions, bench.machine.device
    generator = torch.Generator(device).manual_seed(0)
    make: dict[str, Any] = {"dtype": torch.float64, "device": device, "generator": generator}
    causes, weight = (torch.randn(n, max(1, n // k), **make) for k in (8, 2))
    covariance, output = causes @ causes.T, weight @ weight.T
    covariance.diagonal().add_(0.1 * covariance.diagonal().mean())
    given = View(covariance, output, torch.arange(n, device=device)[:, None])
    room = torch.empty_like(output)
    found = eliminate([given])
    assert torch.equal(found.order.sort().values, torch.arange(n, device=found.order.device))
    first = int(found.order[0])  # the cheapest by itself, to what its cost rounds to
    alone = output.diagonal() / torch.linalg.inv(covariance).diagonal()
    assert float(alone[first]) <= float(alone.min()) + 1e-5 * float((output.diagonal() * covariance.diagonal())[first])
    mine, theirs = bench.machine.times(
        lambda: eliminate([given]),
        lambda: torch.mm(covariance, output, out=room),
        rounds=min(3, bench.scale.slow_rounds),
        warmup=1,
    )
    return Measured(theirs.p50 / mine.p50, against(mine, theirs, rival="a float64 product of the same size"))


def sequential(bench: Bench) -> Measured:
    """What it takes beyond a cut with least squares, which makes the same solves, in forward passes over the data."""
    task = resnet(bench)
    scores = task.scores(gram=True)
    plan = scores.plan(keep_params=KEEP)

    def cut(method: str) -> Callable[[], nn.Module]:
        return lambda: fk.apply(task.model, plan, compensate=method, scores=scores, loader=task.batches)

    small = cut("sequential")()
    assert sum(p.numel() for p in small.parameters()) <= (KEEP + 0.01) * sum(p.numel() for p in task.model.parameters())
    calls = (cut("sequential"), cut("least_squares"), task.forward)
    mine, solves, forward = bench.machine.times(*calls, rounds=min(3, bench.scale.slow_rounds), warmup=0)
    more = against(mine, forward, rival="a forward pass over the same data", solves_s=solves.as_dict())
    return Measured(max(0.0, mine.p50 - solves.p50) / forward.p50, more)


def walk(bench: Bench) -> Measured:
    """Scores by blocks against those of one pass, and how much memory each takes; they are the same."""
    task = language(bench)
    units = fk.trace(task.model, task.batches[0][0][:1], verify=False)
    options = {"units": units, "class_of": False}
    kept: dict[str, fk.Scores] = {}

    def by(how: str) -> Callable[[], None]:
        return lambda: kept.update({how: task.scores(walk=how, **options)})

    peaks = {how: bench.machine.peak_bytes(by(how)) for how in ("blocks", "whole")}
    for one, other in zip(kept["blocks"].signals["taylor"], kept["whole"].signals["taylor"], strict=True):
        torch.testing.assert_close(
            torch.as_tensor(one), torch.as_tensor(other), rtol=1e-2, atol=1e-2 * abs(other).max()
        )
    rounds = min(3, bench.scale.slow_rounds)
    mine, theirs = bench.machine.times(by("blocks"), by("whole"), rounds=rounds, warmup=0)
    return Measured(mine.p50 / theirs.p50, against(mine, theirs, rival="scores of one pass", peak_bytes=peaks))


def prune(task_of: Callable[[Bench], Task]) -> Callable[[Bench], Measured]:
    """From a model and data to the smaller model, once; what its stages took, and an ordinary pass beside it."""

    def run(bench: Bench) -> Measured:
        task = task_of(bench)
        began = time.perf_counter()
        small, report = fk.prune(task.model, task.batches, task.loss_fn, keep_params=KEEP, progress=False)
        with torch.no_grad():
            found = small(task.batches[0][0])
        assert bool(found.isfinite().all())
        seconds = time.perf_counter() - began
        share = report.after["params"] / report.before["params"]
        assert share <= KEEP + 0.01, share
        (theirs,) = bench.machine.times(task.train, rounds=bench.scale.slow_rounds, warmup=1)
        more = {
            "rival": "forward + backward over the same data, weight gradients included",
            "rival_s": theirs.as_dict(),
            "ordinary_passes": seconds / theirs.p50,
            "stages_s": dict(report.stages),
            "params": [report.before["params"], report.after["params"]],
            "compensation": report.choices["compensation"],
        }
        return Measured(seconds, more)

    return run


WHOLE = "seconds, from a model to the smaller one"
CASES: Sequence[Case] = (
    Case(
        "elimination", "elimination, 4,096 units", "rate over that of a float64 product of the same size", 0.6, True,
        elimination,
    ),
    Case(
        "sequential", "sequential compensation, ResNet-50, batch 64, bfloat16",
        "forward passes beyond a cut with least squares", 2.0, False, sequential,
    ),
    Case(
        "walk", "scoring by blocks, Llama-1B, 32 × 512 tokens, bfloat16", "time over that of one pass", 1.5, False,
        walk,
    ),
    Case("prune-resnet", "prune, ResNet-50, 100 classes × 32, bfloat16", WHOLE, None, False, prune(resnet)),
    Case("prune-llama", "prune, Llama-1B, 32 × 512 tokens, bfloat16", WHOLE, None, False, prune(language)),
)  # fmt: skip
