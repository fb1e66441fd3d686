"""Costs against independent counts: parameters by hand, FLOPs by torch's own counter, before and after the cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fairkern.compact import apply
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from tests.axes.harness import assert_sizes, measured_flops, unit_map

zoo = pytest.importorskip("torchvision").models
MODELS: dict[str, Callable[[], nn.Module]] = {
    "alexnet": lambda: zoo.alexnet(weights=None, num_classes=10),
    "vgg11_bn": lambda: zoo.vgg11_bn(weights=None, num_classes=10),
    "resnet18": lambda: zoo.resnet18(weights=None, num_classes=10),
    "resnext50": lambda: zoo.resnext50_32x4d(weights=None, num_classes=10),
    "densenet121": lambda: zoo.densenet121(weights=None, num_classes=10),
    "mobilenet_v3_small": lambda: zoo.mobilenet_v3_small(weights=None, num_classes=10),
    "regnet_y_400mf": lambda: zoo.regnet_y_400mf(weights=None, num_classes=10),
    "squeezenet1_1": lambda: zoo.squeezenet1_1(weights=None, num_classes=10),
    "shufflenet_v2_x0_5": lambda: zoo.shufflenet_v2_x0_5(weights=None, num_classes=10),
    "googlenet": lambda: zoo.googlenet(weights=None, num_classes=10, init_weights=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_costs_of_whole_and_cut_model(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    x = torch.randn(2, 3, 64, 64)
    units = unit_map(model, [x])
    assert len(units.prunable) >= 7
    for fraction in (0.0, 0.3, 0.7):
        removed = [r if fraction else r[:0] for r in random_removal(units, fraction, seed=1)]
        plan = build(units, removed)
        small = apply(model, plan)
        assert plan.result["params_before"] == sum(p.numel() for p in model.parameters())
        assert plan.result["params_after"] == sum(p.numel() for p in small.parameters())
        assert plan.result["flops_before"] == measured_flops(model, x)
        assert plan.result["flops_after"] == measured_flops(small, x)
        assert_sizes(small)


def test_flops_count_the_first_inputs_only() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).eval()
    runs = [torch.randn(3, 4), torch.randn(100, 4)]
    plan = build(unit_map(model, runs), [[]])
    assert plan.result["flops_before"] == measured_flops(model, runs[0]) == 2 * 3 * (4 * 8 + 8 * 2)


def test_sites_once_for_several_inputs() -> None:
    """Further inputs pass the same sites: every group is tapped there once."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    one, two = (unit_map(model, [torch.randn(3, 4)] * n) for n in (1, 2))
    assert repr(one) == repr(two)
    assert len(two.groups[0].taps) == len(two.groups[0].outputs) == 1


def test_every_unit_has_the_same_share() -> None:
    """Positions are rectangular, disjoint between units, and within the axis."""
    torch.manual_seed(0)
    units = unit_map(zoo.shufflenet_v2_x0_5(weights=None).eval(), [torch.randn(1, 3, 64, 64)])
    for group in units.groups:
        for held in group.axes:
            assert held.positions.shape[0] == group.units
            flat = held.positions.ravel()
            assert len(set(flat.tolist())) == flat.size
            assert 0 <= flat.min() <= flat.max() < held.length == units.shapes[held.axis.tensor][held.axis.dim]


def test_memory_format_makes_no_difference() -> None:
    torch.manual_seed(0)
    model = zoo.mobilenet_v3_small(weights=None).eval()
    x = torch.randn(2, 3, 64, 64)
    plain = unit_map(model, [x])
    assert repr(
        unit_map(model.to(memory_format=torch.channels_last), [x.to(memory_format=torch.channels_last)])
    ) == repr(plain)
