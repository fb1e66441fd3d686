"""Conjugate gradients against systems that are solved outright, and on functions that are no parabola."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fairkern.compensate.descent import Point, dot, minimise


def same(gradient: Point) -> Point:
    return gradient


def parabola(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, dtype=torch.float64, generator=generator)
    return root @ root.T + torch.eye(n, dtype=torch.float64), torch.randn(n, dtype=torch.float64, generator=generator)


def of(curvature: Tensor, slope: Tensor, asked: list[int] | None = None):
    """`½ xᵀ A x − bᵀ x + c`, zero at its lowest; `x` in two parts."""
    least = 0.5 * float(slope @ torch.linalg.solve(curvature, slope))

    def function(point: Point) -> tuple[float, Point]:
        if asked is not None:
            asked.append(1)
        x = torch.cat([p.reshape(-1) for p in point])
        gradient = curvature @ x - slope
        value = 0.5 * float(x @ curvature @ x) - float(slope @ x) + least
        return value, [
            g.reshape(p.shape) for g, p in zip(gradient.split([p.numel() for p in point]), point, strict=True)
        ]

    return function


def test_a_parabola_is_solved() -> None:
    curvature, slope = parabola(8)
    start = [torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    found = minimise(of(curvature, slope), start, same, 80)
    x = torch.cat([p.reshape(-1) for p in found.point])
    assert found.first == of(curvature, slope)(start)[0]
    assert found.value == of(curvature, slope)(found.point)[0]
    torch.testing.assert_close(x, torch.linalg.solve(curvature, slope), rtol=1e-6, atol=1e-8)
    assert not any(p.any() for p in start)


def test_with_the_curvature_itself_it_takes_a_step() -> None:
    curvature, slope = parabola(8)
    asked: list[int] = []

    def newton(gradient: Point) -> Point:
        return [torch.linalg.solve(curvature, gradient[0])]

    (x,) = minimise(of(curvature, slope, asked), [torch.zeros(8, dtype=torch.float64)], newton, 1).point
    torch.testing.assert_close(x, torch.linalg.solve(curvature, slope), rtol=1e-9, atol=1e-12)
    assert len(asked) <= 3


def test_it_never_ends_higher() -> None:
    """On a valley that bends (Rosenbrock's), for any number of steps."""

    def valley(point: Point) -> tuple[float, Point]:
        x = point[0].clone().requires_grad_(True)
        value = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
        return float(value.detach()), list(torch.autograd.grad(value, [x]))

    start = [torch.tensor([-1.2, 1.0], dtype=torch.float64)]
    values = [minimise(valley, start, same, steps).value for steps in (0, 1, 3, 10, 200)]
    assert values == sorted(values, reverse=True)
    assert values[0] == valley(start)[0]
    assert values[-1] < 1e-6


@pytest.mark.parametrize("beyond", [math.nan, math.inf])
def test_where_it_is_not_finite_it_steps_back(beyond: float) -> None:
    def wall(point: Point) -> tuple[float, Point]:
        (x,) = point
        value = float((x - 1).square().sum())
        return (value if x.max() < 1.5 else beyond), [2 * (x - 1)]

    start = [torch.tensor([-30.0, 0.5], dtype=torch.float64)]
    (x,) = minimise(wall, start, lambda g: [g[0] * torch.tensor([40.0, 1.0])], 30).point
    assert wall([x])[0] < 1e-3 * wall(start)[0]


def test_nothing_to_gain_leaves_everything_as_it_is() -> None:
    start = [torch.ones(3)]
    (x,) = minimise(lambda p: (0.0, [torch.zeros(3)]), start, same, 5).point
    assert torch.equal(x, torch.ones(3))
    (x,) = minimise(lambda p: (1.0, [torch.ones(3)]), start, same, 5).point  # a value that does not follow its slope
    assert torch.equal(x, torch.ones(3))


def test_products_are_summed_in_float64() -> None:
    big = torch.tensor([1e8, 1.0, -1e8])
    assert dot([big], [torch.ones(3)]) == 1.0
