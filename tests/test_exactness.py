"""Invariant 1 over whole families: the cut model computes what the masked model computes, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal

zoo = pytest.importorskip("torchvision").models
LIMIT = 1e-9

# family -> builder, image size. One member of every torchvision family that tracing has rules for.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (lambda: zoo.alexnet(weights=None, num_classes=10), 64),
    "vgg": (lambda: zoo.vgg11(weights=None, num_classes=10), 32),
    "vgg with batch norm": (lambda: zoo.vgg11_bn(weights=None, num_classes=10), 32),
    "resnet, basic": (lambda: zoo.resnet18(weights=None, num_classes=10), 64),
    "resnet, bottleneck": (lambda: zoo.resnet50(weights=None, num_classes=10), 64),
    "resnext": (lambda: zoo.resnext50_32x4d(weights=None, num_classes=10), 64),
    "densenet": (lambda: zoo.densenet121(weights=None, num_classes=10), 64),
    "mobilenet v2": (lambda: zoo.mobilenet_v2(weights=None, num_classes=10), 64),
    "mobilenet v3": (lambda: zoo.mobilenet_v3_small(weights=None, num_classes=10), 64),
    "mnasnet": (lambda: zoo.mnasnet0_5(weights=None, num_classes=10), 64),
    "efficientnet": (lambda: zoo.efficientnet_b0(weights=None, num_classes=10), 64),
    "efficientnet v2": (lambda: zoo.efficientnet_v2_s(weights=None, num_classes=10), 64),
    "regnet x": (lambda: zoo.regnet_x_400mf(weights=None, num_classes=10), 64),
    "regnet y": (lambda: zoo.regnet_y_400mf(weights=None, num_classes=10), 64),
    "squeezenet": (lambda: zoo.squeezenet1_1(weights=None, num_classes=10), 64),
    "googlenet, with auxiliary heads": (
        lambda: zoo.googlenet(weights=None, num_classes=10, init_weights=False, aux_logits=True),
        64,
    ),
    "inception, with auxiliary head": (
        lambda: zoo.inception_v3(weights=None, num_classes=10, init_weights=False, aux_logits=True),
        299,
    ),
    "shufflenet": (lambda: zoo.shufflenet_v2_x0_5(weights=None, num_classes=10), 64),
}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, eval mode, BatchNorm statistics and constant parameters drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
            ):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * (high - low) + low)
    return model


def relative_error(expected: Tensor, found: Tensor) -> float:
    return float((expected - found).abs().max() / expected.abs().max())


@pytest.fixture(params=FAMILIES, scope="module")
def traced(request: pytest.FixtureRequest) -> tuple[nn.Module, fk.UnitMap, Tensor]:
    builder, size = FAMILIES[request.param]
    torch.manual_seed(0)
    model = randomised(builder())
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    # Batch norm in train mode needs more than one value per channel, which auxiliary heads pool down to.
    return model, fk.trace(model, x.repeat(2, 1, 1, 1), verify=False), x


@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_cut_equals_masked(traced: tuple[nn.Module, fk.UnitMap, Tensor], fraction: float) -> None:
    model, units, x = traced
    plan = build(units, random_removal(units, fraction, seed=int(10 * fraction)))
    small = fk.apply(model, plan)
    assert sum(p.numel() for p in small.parameters()) == plan.result["params_after"]
    with torch.no_grad():
        whole, cut = model(x), small(x)
        with fk.Plan(**vars(plan)).masked(model):
            masked = model(x)
        again = model(x)
    assert relative_error(masked, cut) < LIMIT
    assert torch.equal(whole, again), "masking has to be undone"
    assert relative_error(whole, cut) > 1e-6, "nothing was removed"


def test_most_of_the_model_can_be_cut(traced: tuple[nn.Module, fk.UnitMap, Tensor]) -> None:
    """In a CNN at least 90 % of the parameters lie on an axis that can be cut."""
    model, units, _ = traced
    sizes = {n: p.numel() for n, p in model.named_parameters() if "aux" not in n.lower()}  # not there in eval mode
    on_axes = {a.axis.tensor for g in units.prunable for a in units.groups[g].axes}
    assert sum(n for name, n in sizes.items() if name in on_axes) > 0.9 * sum(sizes.values())


@pytest.mark.parametrize("builder", [zoo.resnet18, zoo.mobilenet_v3_small, zoo.squeezenet1_1])
def test_plans_from_scores_are_exact(builder: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    model = randomised(builder(weights=None, num_classes=3))
    loader = [
        (torch.randn(6, 3, 48, 48, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])),
        (torch.randn(6, 3, 48, 48, dtype=torch.float64), torch.tensor([2, 1, 0, 2, 1, 0])),
    ]
    scores = fk.score(model, loader, nn.CrossEntropyLoss(), projections=16, progress=False)
    x = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    for options in ({"keep_params": 0.4}, {"keep_flops": 0.5, "round_to": 8}, {"tod": 0.3}):
        plan = scores.plan(**options)
        small = fk.apply(model, plan)
        with torch.no_grad(), plan.masked(model):
            masked = model(x)
        with torch.no_grad():
            assert relative_error(masked, small(x)) < LIMIT, options


def test_proof_agrees_on_a_family_member() -> None:
    units = fk.trace(zoo.mobilenet_v2(weights=None, num_classes=10), torch.randn(1, 3, 64, 64))
    assert units.proven
    assert all(g.frozen is None for g in units.groups)
    assert np.sum([g.units for g in units.groups]) > 8000
