"""Operators against the bandwidth of a copy, the rate of additions and eager torch; each is checked, then timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.gpu.cases import Bench, Case, Measured, against, size_of
from bench.gpu.machine import full_precision
from bench.gpu.workloads import (
    Job,
    Shape,
    additions,
    class_samples,
    llama_activations,
    llama_cut,
    moved,
    noise,
    read_by_consumers,
    resnet_cut,
)
from fairkern import ops
from tests.tolerances import assert_close

COPY = "fraction of the bandwidth of a copy"
CHECKED = 3  # samples of a projection that are compared with a reference


def taylor(shapes: Callable[[Bench], list[Shape]], dtype: torch.dtype, dim: int, last: bool = False):
    """All layers of a model in one call."""

    def run(bench: Bench) -> Measured:
        chosen = shapes(bench)
        acts, grads = (noise(chosen, dtype, bench.machine.device, seed, last) for seed in (0, 1))
        jobs = [(act, grad, dim) for act, grad in zip(acts, grads, strict=True)]
        for (act, grad, _), sums in zip(jobs, ops.taylor_many(jobs), strict=True):
            terms = (act.double() * grad.double()).movedim(dim, 1).flatten(2) if act.ndim > 2 else act.double() * grad
            per_sample = terms.sum(2) if act.ndim > 2 else terms
            size = (act.numel() / act.shape[dim]) ** 0.5
            assert_close(sums.signed, per_sample.sum(0), dtype, scale=size)
            assert_close(sums.per_sample, per_sample.abs().sum(0), dtype, scale=size)
            others = [d for d in range(act.ndim) if d != dim % act.ndim]
            assert_close(sums.activation, act.double().sum(others), dtype, scale=size)
        return bench.streamed(lambda: ops.taylor_many(jobs), size_of(*acts, *grads))

    return run


def gather_many(cut: Callable[..., list[Job]]):
    """All tensors of a model in one call."""

    def run(bench: Bench) -> Measured:
        jobs = cut(bench.scale, bench.machine.device)
        for (weight, indices), taken in zip(jobs, ops.gather_many(jobs), strict=True):
            for dim, index in indices.items():
                weight = weight.index_select(dim, index)
            assert torch.equal(taken, weight)
        return bench.streamed(lambda: ops.gather_many(jobs), sum(moved(*job) for job in jobs))

    return run


def project(shapes: Callable[[Bench], list[Shape]], dtype: torch.dtype, units: int, last: bool = False):
    """Every activation with more positions than projections; a call per layer, as a scoring pass makes them."""

    def run(bench: Bench) -> Measured:
        device, count = bench.machine.device, bench.scale.projections
        acts = [x.movedim(units, 1) for x in noise(shapes(bench), dtype, device, 0, last)]
        acts = [x for x in acts if x.shape[2:].numel() > count and x.ndim > 2]
        onto = [ops.directions(x.shape[2:].numel(), count, seed=0).to(device) for x in acts]
        rooms = [torch.empty(*x.shape[:2], count, device=device) for x in acts]
        for x, directions, room in zip(acts, onto, rooms, strict=True):
            room.fill_(float("nan"))
            ops.project(x, directions, out=room)
            assert not room.isnan().any()
            some = x[:CHECKED].double().flatten(2)
            assert_close(room[:CHECKED], some @ directions.double(), dtype, scale=len(directions) ** 0.5)

        def call() -> None:
            for x, directions, room in zip(acts, onto, rooms, strict=True):
                ops.project(x, directions, out=room)

        return bench.streamed(call, size_of(*acts, *rooms), sum(x.numel() for x in acts) * count)

    return run


def eager_class_wasserstein(x: Tensor, classes: int, at_once: int = 1 << 28) -> Tensor:
    """Sort per class, all distances by `cdist(p=1)`, mean over projections, max over pairs; classes in turn.

    Some units at a time: `cdist` starts a block per distance, and a grid has fewer than 2^31.
    """
    parts = []
    for part in x.split(max(1, at_once // (x.shape[2] * classes**2)), dim=1):
        columns = part.unflatten(0, (-1, classes)).sort(0).values.permute(2, 3, 1, 0).contiguous()
        parts.append((torch.cdist(columns, columns, p=1) / columns.shape[-1]).mean(1).flatten(1).amax(1))
    return torch.cat(parts)


def class_wasserstein_pairs(bench: Bench) -> Measured:
    """The step that compares classes, without the sort, against the rate of additions."""
    x, labels = class_samples(bench.scale, bench.machine.device)

    def call() -> Tensor:
        return ops.class_wasserstein(x, labels)

    timing = bench.machine.times(call, rounds=bench.scale.rounds)[0]
    kernels = bench.machine.kernels(call)
    pairs = sum(seconds for name, seconds in kernels.items() if name.startswith(("_square", "_triangle", "_merge")))
    if not pairs:
        raise RuntimeError(f"the profiler saw no kernel of pairs among {sorted(kernels)}")
    clock = bench.machine.sm_clock(call)
    count, ceiling = additions(bench.scale), bench.machine.lanes * clock.hz
    more = {
        "ours_s": timing.as_dict(),
        "kernels_s": kernels,
        "additions": count,
        "additions_per_s_ceiling": ceiling,
        "sm_hz": clock.hz,
        "sm_hz_from": clock.source,
        "value_of_whole_call": count / timing.p50 / ceiling,
    }
    return Measured(count / pairs / ceiling, more)


def class_wasserstein_against_eager(bench: Bench) -> Measured:
    scale = bench.scale
    x, labels = class_samples(scale, bench.machine.device)

    def ours() -> Tensor:
        return ops.class_wasserstein(x, labels)

    def eager() -> Tensor:
        return eager_class_wasserstein(x, scale.classes)

    with full_precision():
        torch.testing.assert_close(ours(), eager(), rtol=1e-4, atol=0)
        mine, theirs = bench.machine.times(ours, eager, rounds=scale.slow_rounds)
    return Measured(theirs.p50 / mine.p50, against(mine, theirs, rival="torch sort + cdist(p=1) + max, same GPU"))


def _resnet(bench: Bench) -> list[Shape]:
    return read_by_consumers(bench.scale.resnet(), bench.scale.image, bench.scale.batch)


def _llama(bench: Bench) -> list[Shape]:
    return llama_activations(bench.scale)


R, L = "ResNet-50, batch 64", "Llama-8B, 4 layers, 4,096 tokens"
CASES: Sequence[Case] = (
    Case("taylor-resnet-fp32", f"taylor, {R}, float32", COPY, 0.90, True, taylor(_resnet, torch.float32, 1)),
    Case(
        "taylor-resnet-bf16",
        f"taylor, {R}, bfloat16, channels-last",
        COPY,
        0.90,
        True,
        taylor(_resnet, torch.bfloat16, 1, last=True),
    ),
    Case("taylor-llama", f"taylor, {L}, bfloat16", COPY, 0.90, True, taylor(_llama, torch.bfloat16, -1)),
    Case(
        "gather-resnet",
        "gather_many, ResNet-50, half of all channels, float32",
        COPY,
        0.85,
        True,
        gather_many(resnet_cut),
    ),
    Case(
        "gather-llama",
        "gather_many, Llama-8B, 4 layers, half of neurons and heads, bfloat16",
        COPY,
        0.85,
        True,
        gather_many(llama_cut),
    ),
    Case("project-resnet-fp32", f"project, {R}, float32", COPY, 0.80, True, project(_resnet, torch.float32, 1)),
    Case(
        "project-resnet-bf16",
        f"project, {R}, bfloat16, channels-last",
        COPY,
        0.80,
        True,
        project(_resnet, torch.bfloat16, 1, last=True),
    ),
    Case("project-llama", f"project, {L}, bfloat16", COPY, 0.80, True, project(_llama, torch.bfloat16, 2)),
    Case(
        "wasserstein-pairs",
        "class_wasserstein, its step of pairs, C=2048 K=100 n=32 P=128",
        "fraction of the rate of float32 additions, two per element",
        0.6,
        True,
        class_wasserstein_pairs,
    ),
    Case(
        "wasserstein-eager",
        "class_wasserstein, C=2048 K=100 n=32 P=128",
        "times as fast as eager torch",
        5.0,
        True,
        class_wasserstein_against_eager,
    ),
)
