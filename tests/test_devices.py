"""The whole pipeline on a GPU against the CPU (`-m gpu`); the same tests run on the CPU, where they hold trivially."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from bench.models import Bottleneck, ResNet, images, seeded
from fairkern.demo import models as demo
from tests.capture.networks import Branches, Plain, build, loader, loss, samples

CLASSES = 3
CPU = torch.device("cpu")


def bottlenecks() -> nn.Module:
    return seeded(lambda: ResNet(Bottleneck, (1, 2, 1, 1), CLASSES, width=8))


# network → model and data, on the CPU
NETWORKS: dict[str, Callable[[torch.dtype], tuple[nn.Module, Tensor, Tensor]]] = {
    "plain": lambda dtype: (build(Plain, dtype), *samples(60, dtype)),
    "branches": lambda dtype: (build(Branches, dtype), *samples(60, dtype)),
    "vgg": lambda dtype: (demo.vgg().to(dtype), *converted(images(90, CLASSES, 1, 8), dtype)),
    "resnet": lambda dtype: (demo.resnet().to(dtype), *converted(images(90, CLASSES, 1, 8), dtype)),
    "bottlenecks": lambda dtype: (bottlenecks().to(dtype), *converted(images(48, CLASSES, 3, 64), dtype)),
}
DTYPES = [torch.float32, torch.float64]


def converted(data: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return data[0].to(dtype), data[1]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Without TF32, and with deterministic convolutions."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    switches = ((torch.backends.cuda.matmul, "allow_tf32", False), (torch.backends.cudnn, "allow_tf32", False))
    switches += ((torch.backends.cudnn, "deterministic", True),)
    before = [getattr(module, name) for module, name, _ in switches]
    for module, name, value in switches:
        setattr(module, name, value)
    try:
        yield torch.device(request.param, 0) if request.param == "cuda" else CPU
    finally:
        for (module, name, _), value in zip(switches, before, strict=True):
            setattr(module, name, value)


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Callable[[torch.dtype], tuple[nn.Module, Tensor, Tensor]]:
    return NETWORKS[request.param]


def score(model: nn.Module, x: Tensor, y: Tensor, size: int = 16, **options: object) -> fk.Scores:
    units = fk.trace(model, x[:2].to(next(model.parameters()).device), verify=False)
    options = {"projections": 16, "samples_per_class": 8, "progress": False, **options}
    return fk.score(model.eval(), loader(x, y, size), loss, units=units, **options)


@cache
def scored(network: Callable[[torch.dtype], tuple[nn.Module, Tensor, Tensor]], dtype: torch.dtype, gram: bool = False):
    """Model, data and scores on the CPU, which every device is held against."""
    model, x, y = network(dtype)
    return model, x, y, score(model, x, y, gram=gram)


def there(model: nn.Module, device: torch.device) -> nn.Module:
    return copy.deepcopy(model).eval().to(device)


def assert_same_plans(a: fk.Plan, b: fk.Plan) -> None:
    for first, second in zip(a.groups, b.groups, strict=True):
        assert np.array_equal(first.removed, second.removed), first.name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_and_plan_are_those_of_the_cpu(network, dtype, device) -> None:
    model, x, y, here = scored(network, dtype)
    away = score(there(model, device), x, y)
    assert away.provenance["device"] == str(device)
    relative = 1e-3 if dtype == torch.float32 else 1e-6  # directions are float32
    for name in ("wasserstein", "taylor"):
        for group, a, b in zip(here.units.groups, here.signals[name], away.signals[name], strict=True):
            np.testing.assert_allclose(b, a, rtol=relative, atol=relative * a.max(), err_msg=f"{name} {group.name}")
    assert here.means.keys() == away.means.keys()
    for tap, mean in here.means.items():
        np.testing.assert_allclose(away.means[tap], mean, rtol=relative, atol=relative * abs(mean).max(), err_msg=tap)
    for budget in ({"keep_params": 0.5}, {"tod": 0.3}):
        assert_same_plans(here.plan(**budget), away.plan(**budget))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scoring_twice_gives_the_same_bits(network, dtype, device) -> None:
    model, x, y = network(dtype)
    away = there(model, device)
    first, second = score(away, x, y), score(away, x, y)
    for name in ("wasserstein", "taylor"):
        for a, b in zip(first.signals[name], second.signals[name], strict=True):
            assert np.array_equal(a, b)


def test_the_plan_does_not_depend_on_the_batch_size(network, device) -> None:
    model, x, y = network(torch.float32)
    away = there(model, device)
    whole = score(away, x, y, size=len(x)).plan(keep_params=0.5)
    for size in (7, 1):
        assert_same_plans(score(away, x, y, size=size).plan(keep_params=0.5), whole)


def test_the_plan_does_not_depend_on_the_backend(network, device) -> None:
    model, x, y = network(torch.float32)
    away = there(model, device)
    plans = [score(away, x, y, backend=backend).plan(keep_params=0.5) for backend in ("auto", "reference")]
    assert_same_plans(*plans)


def test_scoring_leaves_the_model_and_the_random_state(network, device) -> None:
    model, x, y = network(torch.float32)
    away = there(model, device).train()
    before = {name: tensor.clone() for name, tensor in away.state_dict().items()}
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    units = fk.trace(away, x[:2].to(device), verify=False)
    fk.score(away, loader(x, y, 16), loss, units=units, projections=8, progress=False)
    assert away.training
    assert all(p.grad is None and p.requires_grad for p in away.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in away.state_dict().items())
    assert torch.equal(state, torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state())


def test_samples_take_what_was_predicted_and_a_budget_gives_the_same_scores(device) -> None:
    model, x, y = NETWORKS["plain"](torch.float32)
    away = there(model, device)
    whole = score(away, x, y, samples_per_class=15)
    taken = whole.provenance["sample_bytes"]
    assert taken == whole.provenance["predicted_bytes"]["samples"]
    split = score(away, x, y, samples_per_class=15, memory_budget=2 * taken // 3)
    assert split.provenance["passes"] > 1
    for a, b in zip(whole.signals["wasserstein"], split.signals["wasserstein"], strict=True):
        assert np.array_equal(a, b)


def test_scoring_under_autocast(network, device) -> None:
    model, x, y = network(torch.float32)
    exact = score(there(model, device), x, y)
    with torch.autocast(device.type, torch.bfloat16):
        rounded = score(there(model, device), x, y)
    for name in ("wasserstein", "taylor"):
        for a, b in zip(exact.signals[name], rounded.signals[name], strict=True):
            assert np.isfinite(b).all()
            assert np.abs(a - b).max() < 0.2 * a.max()


@pytest.mark.parametrize("backend", ["auto", "reference", pytest.param("triton", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("inplace", [False, True])
def test_cut_equals_masked_and_the_cut_of_the_cpu(network, backend, inplace, device) -> None:
    if backend == "triton" and device.type == "cpu":
        pytest.skip("Triton runs on a GPU")
    model, x, _, scores = scored(network, torch.float64)
    plan = scores.plan(keep_params=0.5)
    away, inputs = there(model, device), x[:5].to(device)
    with torch.no_grad():
        with plan.masked(away):
            masked = away(inputs)
        here = fk.apply(model, plan).eval()(x[:5])
        small = fk.apply(away, plan, inplace=inplace, backend=backend)
        found = small(inputs)
    assert {p.device for p in small.parameters()} == {device}
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    scale = masked.abs().max()
    assert (found - masked).abs().max() < 1e-9 * scale
    assert (found.cpu() - here).abs().max() < 1e-9 * scale.cpu()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compensation_is_that_of_the_cpu(network, dtype, device) -> None:
    model, x, y, here = scored(network, dtype, gram=True)
    away = score(there(model, device), x, y, gram=True)
    relative = 1e-3 if dtype == torch.float32 else 1e-9
    for tap, moments in here.moments.items():
        found = away.moments[tap]
        assert (found.count, found.per_unit) == (moments.count, moments.per_unit)
        np.testing.assert_allclose(found.gram, moments.gram, rtol=relative, atol=relative * abs(moments.gram).max())
    if dtype == torch.float32:
        return  # what follows solves with them, which magnifies the last bits
    plan = here.plan(keep_params=0.6)
    with torch.no_grad():
        expected = fk.apply(model, plan, compensate="least_squares", scores=here).eval()(x[:5])
        small = fk.apply(there(model, device), plan, compensate="least_squares", scores=away)
        assert (small(x[:5].to(device)).cpu() - expected).abs().max() < 1e-6 * expected.abs().max()


def test_tracing_and_proving_find_the_units_of_the_cpu(network, device) -> None:
    model, x, _ = network(torch.float32)
    here, away = fk.trace(model.eval(), x[:2]), fk.trace(there(model, device), x[:2].to(device))
    assert here.proven
    assert away.proven
    assert [(g.name, g.units, g.frozen) for g in here.groups] == [(g.name, g.units, g.frozen) for g in away.groups]


def test_a_pruned_model_comes_back_to_the_device(device, tmp_path: Path) -> None:
    model, x, y = NETWORKS["resnet"](torch.float32)
    plan = score(model, x, y).plan(keep_params=0.5)
    small = fk.apply(there(model, device), plan)
    fk.save_pruned(small, plan, tmp_path / "small")
    again = fk.load_pruned(demo.resnet().to(device), tmp_path / "small").to(device).eval()
    with torch.no_grad():
        assert torch.equal(small(x.to(device)), again(x.to(device)))
