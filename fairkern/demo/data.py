"""The handwritten digits that ship with scikit-learn: 1,797 real images of 8 × 8 pixels, ten classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import fairkern as fk

BATCH = 64
TEST_SHARE = 0.2
SPLIT_SEED = 0
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Digits:
    """Images `[N, 1, 8, 8]` in −1 … 1 and labels `[N]` in 0 … 9, split once and for all."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def train_batches(self, size: int = BATCH) -> Batches:
        return _batches(self.train_x, self.train_y, size)

    def test_batches(self, size: int = BATCH) -> Batches:
        return _batches(self.test_x, self.test_y, size)


def digits() -> Digits:
    """Load and split the digits: 1,437 for training, 360 for testing, each class in the same share in both."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise fk.FairkernError(missing("scikit-learn", error)) from error
    bunch = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        bunch.images, bunch.target, test_size=TEST_SHARE, stratify=bunch.target, random_state=SPLIT_SEED
    )
    return Digits(_images(train_x), _labels(train_y), _images(test_x), _labels(test_y))


def calibration() -> Batches:
    """The training images in batches, unshuffled: what the demo scores on."""
    return digits().train_batches()


def test() -> Batches:
    """The test images in batches."""
    return digits().test_batches()


def example() -> Tensor:
    """One batch of two training images, `[2, 1, 8, 8]`: inputs to trace with."""
    return digits().train_x[:2]


def shuffled(x: Tensor, y: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of equal size in random order, every image moved by up to one pixel; a remainder is left out."""
    order = torch.randperm(len(x), generator=generator, device="cpu")
    for picked in order[: len(x) // size * size].split(size):
        yield _moved(x[picked], generator), y[picked]


def missing(package: str, error: ImportError) -> str:
    """What to say when a package of the `demo` extra is not there."""
    return f"the demo needs {package}, which could not be imported ({error}): pip install 'fairkern[demo]'"


def _images(pixels: object) -> Tensor:
    return torch.as_tensor(pixels, dtype=torch.float32, device="cpu").unsqueeze(1) / 8 - 1


def _labels(numbers: object) -> Tensor:
    return torch.as_tensor(numbers, dtype=torch.int64, device="cpu")


def _batches(x: Tensor, y: Tensor, size: int) -> Batches:
    return list(zip(x.split(size), y.split(size), strict=True))


def _moved(x: Tensor, generator: torch.Generator) -> Tensor:
    n, _, height, width = x.shape
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)
    top, left = torch.randint(0, 3, (2, n, 1), generator=generator, device="cpu")
    rows = (top + torch.arange(height, device="cpu"))[:, :, None]
    columns = (left + torch.arange(width, device="cpu"))[:, None, :]
    return padded[torch.arange(n, device="cpu")[:, None, None], 0, rows, columns].unsqueeze(1)
