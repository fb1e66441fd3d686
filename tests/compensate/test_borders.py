"""What a constant adds through a kernel that reaches over padded borders, against convolutions of ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern import compact
from fairkern.compensate.borders import kernel_shares
from fairkern.plans.build import build
from tests.axes.harness import Net
from tests.compensate.test_corrections import cut, double, images, scored
from tests.compensate.test_refit import sequential

MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "padded": (lambda: nn.Conv2d(1, 1, 3, padding=1), (4, 5)),
    "larger than the image": (lambda: nn.Conv2d(1, 1, 5, padding=2), (2, 3)),
    "strided": (lambda: nn.Conv2d(1, 1, 3, stride=2, padding=1), (5, 6)),
    "strided over the end": (lambda: nn.Conv2d(1, 1, (2, 3), stride=(2, 3), padding=(0, 2)), (5, 7)),
    "dilated": (lambda: nn.Conv2d(1, 1, 3, dilation=2, padding=2), (6, 5)),
    "same": (lambda: nn.Conv2d(1, 1, (4, 3), padding="same", dilation=(1, 2)), (6, 7)),
    "valid": (lambda: nn.Conv2d(1, 1, 3, padding="valid"), (6, 7)),
    "one dimension": (lambda: nn.Conv1d(1, 1, 5, padding=4, stride=3), (9,)),
    "three dimensions": (lambda: nn.Conv3d(1, 1, (3, 2, 1), padding=(1, 1, 0)), (3, 4, 2)),
    "transposed": (lambda: nn.ConvTranspose2d(1, 1, 3, stride=2, padding=1, output_padding=1), (4, 5)),
    "transposed, apart": (lambda: nn.ConvTranspose2d(1, 1, 2, stride=3), (3, 4)),
    "transposed, dilated": (lambda: nn.ConvTranspose1d(1, 1, 3, dilation=2, padding=1), (5,)),
}


@pytest.mark.parametrize("name", MODULES)
def test_shares_are_those_of_a_kernel_with_a_single_one(name: str) -> None:
    build_module, grid = MODULES[name]
    module = build_module().double()
    shares = kernel_shares(module, {grid: 3})
    assert shares is not None
    assert shares.shape == module.kernel_size
    ones = torch.ones(1, 1, *grid, dtype=torch.float64)
    with torch.no_grad():
        module.bias.zero_()
        for place in itertools.product(*(range(k) for k in module.kernel_size)):
            module.weight.zero_()
            module.weight[(0, 0, *place)] = 1
            assert float(shares[place]) == pytest.approx(float(module(ones).mean()), rel=1e-12)


def test_sizes_are_weighed_by_their_outputs() -> None:
    module = nn.Conv1d(1, 1, 3, padding=1)
    shares = kernel_shares(module, {(4,): 2, (10,): 1})
    np.testing.assert_allclose(shares, [(2 * 3 + 9) / 18, 1, (2 * 3 + 9) / 18])


def test_where_the_whole_kernel_counts() -> None:
    assert kernel_shares(nn.Linear(4, 4), {(3,): 1}) is None
    assert kernel_shares(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), {(4, 4): 1}) is None
    assert kernel_shares(nn.Conv2d(1, 1, 3, padding=1), {}) is None
    assert kernel_shares(nn.Conv2d(1, 1, 3, padding=1), {(4,): 1}) is None


CONSUMERS: dict[str, Callable[[], nn.Module]] = {
    "padded": lambda: nn.Conv2d(8, 3, 3, padding=1),
    "without bias": lambda: nn.Conv2d(8, 3, 3, stride=2, padding=1, bias=False),
    "same, dilated": lambda: nn.Conv2d(8, 3, (2, 3), padding="same", dilation=2),
    "reflected": lambda: nn.Conv2d(8, 3, 3, padding=2, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(8, 3, 3, stride=2, padding=1),
}


def network(consumer: nn.Module, constant: bool) -> nn.Module:
    model = double(Net(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Conv2d(2, 8, 1), b=consumer))
    if constant:  # units 2 and 5 are the same everywhere, and no other tells them
        with torch.no_grad():
            model.a.weight[[2, 5]] = 0
            model.a.bias[[2, 5]] = torch.tensor([1.5, 0.7], dtype=torch.float64)
    return model


def mean_error(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    """The largest over output channels, relative to the outputs' size."""
    with torch.no_grad():
        wanted = model(x)
        return float((small(x) - wanted).mean((0, 2, 3)).abs().max() / wanted.square().mean().sqrt())


@pytest.mark.parametrize("method", ["mean", "least_squares", "sequential"])
@pytest.mark.parametrize("name", CONSUMERS)
def test_a_constant_leaves_no_mean_error(name: str, method: str) -> None:
    model, x = network(CONSUMERS[name](), constant=True), images(size=5)
    scores = scored(model, x, (20, 28))
    if method == "sequential":
        removed = [np.array([2, 5] if g.name == "a" else [], dtype=np.int64) for g in scores.units.groups]
        loader = [(x[:20], torch.arange(20) % 3), (x[20:], torch.arange(28) % 3)]
        small = sequential(model, scores, build(scores.units, removed), loader)
    else:
        small, _ = cut(model, scores, "a", [2, 5], method)
    assert mean_error(model, small, x) < 1e-9


@pytest.mark.parametrize("name", [n for n in CONSUMERS if n != "reflected"])
def test_no_better_constant_where_all_places_have_one_mean(name: str) -> None:
    """Images moved to every place: the fit's error has mean zero in every output channel."""
    x = torch.cat([torch.roll(images(2, size=5), move, (2, 3)) for move in itertools.product(range(5), range(5))])
    model = network(CONSUMERS[name](), constant=False)
    units = fk.trace(model, x[:2])
    scores = fk.score(
        model, [(x, torch.arange(50) % 2)], lambda out, y: F.cross_entropy(out.mean((2, 3)), y), units=units,
        gram=True, projections=4, progress=False,
    )  # fmt: skip
    small, _ = cut(model, scores, "a", [1, 4, 6])
    assert mean_error(model, small, x) < 1e-9
    bare = compact.apply(model, build(scores.units, [np.array([1, 4, 6])]))
    assert mean_error(model, bare, x) > 1e-2


def test_images_of_several_sizes(tmp_path: Path) -> None:
    model = network(nn.Conv2d(8, 3, 3, padding=1), constant=True)
    batches = [images(20, size=4), images(28, size=7)]
    units = fk.trace(model, batches[0][:2])
    scores = fk.score(
        model,
        [(x, torch.arange(len(x)) % 3) for x in batches],
        lambda out, y: F.cross_entropy(out.mean((2, 3)), y),
        units=units,
        gram=True,
        samples_per_class=2,  # of the first batch alone: class samples have one size
        projections=4,
        progress=False,
    )
    assert scores.grids == {"b:input": {(4, 4): 20, (7, 7): 28}}
    scores.save(tmp_path / "scores")
    assert fk.Scores.load(tmp_path / "scores").grids == scores.grids
    small, _ = cut(model, scores, "a", [2, 5])
    with torch.no_grad():
        errors = [(small(x) - model(x)).sum((0, 2, 3)) for x in batches]
    torch.testing.assert_close(errors[0] + errors[1], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-7)


def test_of_what_is_flattened_no_grid_is_kept() -> None:
    model = double(Net(lambda m, x: m.b(torch.relu(m.a(x)).flatten(1)), a=nn.Conv2d(2, 8, 3), b=nn.Linear(128, 3)))
    assert scored(model, images()).grids == {}


@pytest.mark.parametrize("method", ["least_squares", "sequential"])
def test_a_function_that_is_given_the_weight_takes_the_whole_kernel(method: str) -> None:
    """How it pads is not known: here not at all, though the module that holds the weight would."""
    model = network(nn.Conv2d(8, 3, 3, padding=1), constant=True)
    model.run = lambda m, x: F.conv2d(torch.relu(m.a(x)), m.b.weight, m.b.bias)
    x = images(size=5)
    scores = scored(model, x)
    plan = build(scores.units, [np.array([2, 5]) if g.name == "a" else np.zeros(0, int) for g in scores.units.groups])
    if method == "least_squares":
        small, _ = cut(model, scores, "a", [2, 5])
    else:
        small = sequential(model, scores, plan, [(x, torch.arange(48) % 3)])
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x))
