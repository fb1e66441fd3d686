"""What is no cut in one shot: several cuts with new scores between them, and training of what one cut left."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fairkern as fk
from bench.quality.tasks.task import Task

STEPS = 3  # cuts
UPDATES, RATE, PRETRAINED = 300, 1e-3, 1e-4  # of healing: updates, and rates, of nets that were trained here and not
FURTHER = ("iterated", "healed")  # in the place of a compensation's name; both fit layer after layer first


def iterated(model: nn.Module, task: Task, keep_params: float) -> nn.Module:
    """`prune`'s defaults in several steps."""
    options: dict[str, Any] = {"class_of": task.class_of, "max_remove": 0.9999, "progress": False}
    return fk.prune(model, task.calibration, task.loss, keep_params=keep_params, iterations=STEPS, **options)[0]


def healed(small: nn.Module, model: nn.Module, task: Task, seed: int) -> nn.Module:
    """What one cut left, distilled on the training data (on the calibration data where there are no others)."""
    epoch = task.epoch
    loader = task.calibration if epoch is None else list(epoch(torch.Generator().manual_seed(seed)))
    divergence = "mse" if task.metric == "cosine" else "forward_kl"
    rate = PRETRAINED if epoch is None else RATE
    fk.heal(small, model, loader, steps=UPDATES, lr=rate, divergence=divergence, seed=seed, progress=False)
    return small
