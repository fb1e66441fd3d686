"""sliced_wasserstein against its definition: project, then compare."""

from __future__ import annotations

import pytest
import torch

from fairkern.errors import InputError
from fairkern.ops import Placed, class_wasserstein, directions, project, sliced_wasserstein
from fairkern.ops.sliced import _pieces
from fairkern.ops.wasserstein import group_by_class, native
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# units, positions, projections, samples per class
SHAPES = {
    "one of each": (1, 1, 1, [1, 1]),
    "fewer projections than lanes": (3, 4, 5, [3, 3]),
    "sorted in registers, 16": (2, 4, 32, [16, 16, 16]),
    "sorted in registers, 32": (3, 16, 128, [32] * 5),
    "odd counts": (5, 49, 70, [7, 7, 7]),
    "unequal counts": (2, 9, 33, [1, 2, 16, 31, 32]),
    "many positions": (2, 196, 20, [6, 6]),
}


def example(shape: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    units, positions, projections, counts = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.full((n,), 2 * k - 3) for k, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    x = torch.randn(len(labels), units, positions, generator=generator) + 0.3 * labels.view(-1, 1, 1)
    along = torch.randn(positions, projections, generator=generator) / positions**0.5
    return x.to(dtype), along, labels


@pytest.mark.parametrize("reduce", ["max", "mean", "pairs"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_its_definition(shape, dtype, reduce, backend):
    x, along, labels = example(shape, dtype)
    exact = project(x.double(), along.double(), backend="reference")
    expected = class_wasserstein(exact, labels, reduce, backend="reference")
    assert_close(sliced_wasserstein(x, along, labels, reduce, backend=backend), expected, dtype, scale=3)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits_on_every_instruction_set(shape, extension):
    x, along, labels = example(shape, torch.float32)
    order, offsets = group_by_class(labels, len(x), x.device)
    best = {"baseline": 1, "avx2": 2, "avx512": 3}[extension.build()["isa"]]
    results = [native.class_wasserstein(x, order, offsets, "pairs", isa, along) for isa in range(best + 1)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_any_strides(backend):
    x, along, labels = example("odd counts", torch.float32)
    view = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    expected = sliced_wasserstein(x, along, labels, backend=backend)
    turned = sliced_wasserstein(view, along.T.contiguous().T, labels, backend=backend)
    torch.testing.assert_close(turned, expected)


def test_nan_stays_in_its_unit(backend):
    x, along, labels = example("sorted in registers, 16", torch.float32)
    x[5, 1, 2] = float("nan")
    assert sliced_wasserstein(x, along, labels, backend=backend).isnan().tolist() == [False, True]
    x[5, 1, 2] = float("inf")  # projections of both signs: some are infinite, none may vanish
    assert not sliced_wasserstein(x, along, labels, backend=backend)[1].isfinite()


def test_pieces_are_projections(monkeypatch):
    x, along, _ = example("odd counts", torch.float32)
    monkeypatch.setattr("fairkern.ops.sliced.PIECE_CPU", 2 * len(x) * along.shape[1] * 4)
    parts = [part.clone() for part in _pieces(x, along, torch.float32)]
    assert [part.shape[1] for part in parts] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(parts, 1), project(x, along))


@pytest.mark.parametrize(
    ("x", "along", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(3, 2), r"\[N, C, D\]"),
        (torch.zeros(4, 3, 2), torch.zeros(3, 2), r"\[2, P\]"),
        (torch.zeros(4, 3, 2), torch.zeros(2, 0), r"\[2, P\]"),
        (torch.zeros(4, 3, 2, dtype=torch.int64), torch.zeros(2, 2), "int64"),
        (torch.zeros(4, 3, 2), directions(2, 2, 0).to("meta"), "different devices"),
    ],
)
def test_bad_input_is_named(x, along, message):
    with pytest.raises(InputError, match=message):
        sliced_wasserstein(x, along, torch.tensor([0, 0, 1, 1]))


SETS = 3


def rows_of(dtype: torch.dtype, positions: int = 9) -> tuple[torch.Tensor, torch.Tensor, Placed, torch.Tensor]:
    """Sets of units [sets, N, C, D], zero at most positions, one everywhere; rows of them in no order; labels."""
    generator = torch.Generator().manual_seed(1)
    heard = torch.rand(SETS, 20, positions, generator=generator) < 0.3
    heard[1] = False
    whole = torch.randn(SETS, 20, 7, positions, generator=generator).to(dtype) * heard[:, :, None]
    order = torch.randperm(int(heard.sum()), generator=generator)
    sets, samples, places = (of[order] for of in heard.nonzero().unbind(1))
    labels = torch.tensor([0, 1, 2, 2] * 5)
    return whole, whole[sets, samples, :, places], Placed(sets, samples, places, SETS), labels


@pytest.mark.parametrize("reduce", ["max", "mean", "pairs"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("projections", [1, 5, 33, 128])
def test_rows_give_what_zeros_around_them_give(projections, dtype, reduce, backend):
    whole, x, placed, labels = rows_of(dtype)
    along = directions(whole.shape[3], projections, seed=0)
    found = sliced_wasserstein(x, along, labels, reduce, backend=backend, placed=placed)
    expected = [sliced_wasserstein(own, along, labels, reduce, backend=backend) for own in whole]
    assert torch.equal(found, torch.stack(expected, -2))
    assert not found[..., 1, :].any()
    assert found[..., 0, :].all()


def test_rows_give_the_same_bits_on_every_instruction_set(extension):
    whole, x, placed, labels = rows_of(torch.float32)
    along = directions(whole.shape[3], 70, seed=0)
    order, offsets = group_by_class(labels, len(labels), x.device)
    bags = placed.sets * len(labels) + placed.samples
    sort = (bags * whole.shape[3] + placed.places).argsort()
    begins = torch.cat([torch.zeros(1, dtype=torch.int64), bags.bincount(minlength=SETS * len(labels)).cumsum(0)])
    given = x[sort], order, offsets, "pairs"
    best = {"baseline": 1, "avx2": 2, "avx512": 3}[extension.build()["isa"]]
    found = [
        native.class_wasserstein(*given, isa, along, placed=(begins, placed.places[sort])) for isa in range(best + 1)
    ]
    assert all(torch.equal(result, found[0]) for result in found)


def test_no_row_at_all(backend):
    nowhere = torch.zeros(0, dtype=torch.int64)
    placed = Placed(nowhere, nowhere, nowhere, 2)
    found = sliced_wasserstein(
        torch.zeros(0, 3), directions(4, 5, 0), torch.tensor([0, 0, 1, 1]), backend=backend, placed=placed
    )
    assert torch.equal(found, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sets": torch.tensor([0, 2])}, "placed.sets goes from 0 to 2"),
        ({"samples": torch.tensor([0, 4])}, "placed.samples goes from 0 to 4"),
        ({"places": torch.tensor([-1, 0])}, "placed.places goes from -1 to 0"),
        ({"places": torch.tensor([0])}, r"placed has \[2, 2, 1\] numbers"),
        ({"places": torch.tensor([0.0, 1.0])}, "placed.places is torch.float32"),
        ({"places": torch.tensor([1, 1])}, "names one position of a sample twice"),
        ({"total": 0}, "placed.total"),
    ],
)
def test_rows_that_are_nowhere(changed, words):
    zeros = torch.zeros(2, dtype=torch.int64)
    placed = Placed(zeros, zeros, torch.tensor([0, 1]), 2)._replace(**changed)
    with pytest.raises(InputError, match=words):
        sliced_wasserstein(torch.ones(2, 3), directions(2, 5, 0), torch.tensor([0, 0, 1, 1]), placed=placed)
