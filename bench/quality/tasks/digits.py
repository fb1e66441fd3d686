"""scikit-learn's handwritten digits, enlarged to 16 × 16 and jittered until they are hard."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from bench.quality.tasks.images import SIZE, Jitter, image_task
from bench.quality.tasks.task import Task

JITTER = Jitter(rotation=20, scale=0.2, shift=2.0, noise=0.35)
VIEWS = 2  # jittered copies of every test image
CALIBRATION = 512


@cache
def digits() -> Task:
    """Ten classes, 1,437 images to train on, 360 × 2 to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    parts = train_test_split(bunch.images, bunch.target, test_size=0.2, stratify=bunch.target, random_state=0)
    train_x, test_x, train_y, test_y = parts
    test = _enlarged(test_x).repeat(VIEWS, 1, 1, 1), torch.as_tensor(test_y).repeat(VIEWS)
    return image_task("digits", (_enlarged(train_x), torch.as_tensor(train_y)), test, JITTER, CALIBRATION)


def _enlarged(pixels: object) -> Tensor:
    x = torch.as_tensor(pixels, dtype=torch.float32).unsqueeze(1) / 8 - 1
    return nn.functional.interpolate(x, (SIZE, SIZE), mode="bilinear")
