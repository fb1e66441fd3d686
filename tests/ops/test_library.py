"""The operators as the dispatcher sees them: schema, fake, and what opcheck asks of both."""

from __future__ import annotations

import pytest
import torch

from fairkern import ops
from fairkern.errors import InputError

X = torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 4


@pytest.mark.parametrize("reduce", ["max", "mean", "pairs"])
@pytest.mark.parametrize("x", [X, X[..., 0], X.double(), X.half()], ids=["3d", "2d", "float64", "float16"])
def test_class_wasserstein(x, reduce):
    operator = torch.ops.fairkern.class_wasserstein.default
    torch.library.opcheck(operator, (x, LABELS, 4, reduce))
    assert torch.equal(operator(x, LABELS, 4, reduce), ops.class_wasserstein(x, LABELS, reduce))


def test_class_wasserstein_checks_the_number_of_classes():
    with pytest.raises(InputError, match="classes is 3"):
        torch.ops.fairkern.class_wasserstein(X, LABELS, 3, "pairs")


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_taylor_sums(dim):
    operator = torch.ops.fairkern.taylor_sums.default
    torch.library.opcheck(operator, (X, X.flip(0), dim))
    sums = ops.taylor_sums(X, X.flip(0), dim)
    for actual, expected in zip(
        operator(X, X.flip(0), dim), (sums.signed, sums.per_sample, sums.activation), strict=True
    ):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dim", [1, 2])
def test_taylor_add(dim):
    operator = torch.ops.fairkern.taylor_add.default
    running, expected = (ops.TaylorSums.zeros(X.shape[dim]) for _ in range(2))
    torch.library.opcheck(operator, (*(torch.zeros(X.shape[dim]) for _ in range(3)), X, X.flip(0), dim, 2.0))
    for _ in range(2):
        operator(*running.fields, X, X.flip(0), dim, 2.0)
        ops.taylor_sums(X, X.flip(0), dim, out=expected, scale=2.0)
    for actual, value in zip(running.fields, expected.fields, strict=True):
        assert torch.equal(actual, value)


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_1d(p):
    operator = torch.ops.fairkern.wasserstein_1d.default
    x, y = X[..., 0], X[:7, :, 1].half()
    torch.library.opcheck(operator, (x, X[:7, :, 1], p))
    torch.library.opcheck(operator, (x.half(), y, p))
    assert torch.equal(operator(x, X[:7, :, 1], p), ops.wasserstein_1d(x, X[:7, :, 1], p))


@pytest.mark.parametrize("rows", [None, torch.tensor([4, 0, 4])])
def test_project(rows):
    operator, onto = torch.ops.fairkern.project.default, ops.directions(3, 6, seed=0)
    torch.library.opcheck(operator, (X, onto, rows))
    torch.library.opcheck(operator, (X.bfloat16(), onto, rows))
    assert torch.equal(operator(X, onto, rows), ops.project(X, onto, rows=rows))


@pytest.mark.parametrize("dims", [[], [0], [-1, 0]])
def test_gather(dims):
    operator = torch.ops.fairkern.gather.default
    indices = [torch.tensor([2, 0]) for _ in dims]
    torch.library.opcheck(operator, (X, dims, indices))
    assert torch.equal(operator(X, dims, indices), ops.gather(X, dict(zip(dims, indices, strict=True))))


def test_compiles_into_one_graph():
    def f(weight: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.ops.fairkern.gather(weight * 2, [0], [index]) + 1

    index = torch.tensor([3, 1])
    compiled = torch.compile(f, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X, index), f(X, index))
