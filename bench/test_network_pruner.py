"""Scoring against `get_metrics` of network-pruner, the package that came with the method's paper.

Both get the same loader and as many samples per class. Beside them, in turn with both, one ordinary forward + backward
over the same batches: the unit in which the package's growth with layers × classes² shows.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fairkern as fk
from bench._compare import Comparison, in_turn
from bench._training import forward_backward, threads
from bench.models import cnn, images
from fairkern.demo.data import digits
from fairkern.demo.models import vgg

network_pruner = pytest.importorskip("Network_Pruner")
BATCH = 64
ROUNDS = 3


class Labelled(Dataset):
    """Images in memory. `classes` and `targets` spare the package a search for them."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.targets = x, y.tolist()
        self.classes = sorted(set(self.targets))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], self.targets[index]


def digits_vgg() -> tuple[nn.Module, nn.Module, Labelled, int]:
    pytest.importorskip("sklearn")
    data = digits()
    return vgg(), vgg(), Labelled(data.train_x, data.train_y), 32


def small_cnn(classes: int) -> Callable[[], tuple[nn.Module, nn.Module, Labelled, int]]:
    """Twice as many images as samples that are compared: R uses all, U the samples."""
    return lambda: (cnn(classes), cnn(classes), Labelled(*images(16 * classes, classes, 1, 8)), 8)


# case → setting, what is asked of the ratio (None: reported only)
CASES: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module, Labelled, int]], float | None]] = {
    "demo vgg, 10 classes, 32 samples each": (digits_vgg, 15.0),
    "3-layer CNN, 10 classes, 8 samples each": (small_cnn(10), None),
    "3-layer CNN, 20 classes, 8 samples each": (small_cnn(20), None),
    "3-layer CNN, 40 classes, 8 samples each": (small_cnn(40), 300.0),
}


@pytest.mark.parametrize("case", CASES)
def test_scoring_against_get_metrics(case: str, benchmark: Any, record: Callable[..., None], tmp_path: Path) -> None:
    setting, target = CASES[case]
    model, twin, data, per_class = setting()
    loader, loss_fn = DataLoader(data, batch_size=BATCH), nn.CrossEntropyLoss()
    units = fk.trace(model, data.x[:1])
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # it scores in train mode, which would change the network from layer to layer

    def ours(recipe: str = "default") -> fk.Scores:
        return fk.score(model, loader, loss_fn, units=units, samples_per_class=per_class, recipe=recipe, progress=False)

    def theirs() -> dict[str, Any]:
        with contextlib.redirect_stdout(io.StringIO()):
            return network_pruner.get_metrics(
                twin,
                loader,
                loss_function=loss_fn,
                device=torch.device("cpu"),
                the_samplesize_for_compute_distance=per_class,
                results_save_path=str(tmp_path / "metrics.pkl"),
            )

    with threads(1):
        check(theirs(), ours("paper"))
        forward_backward(twin, loader, loss_fn)
        mine, rival, ordinary = in_turn(
            (ours, theirs, lambda: forward_backward(twin, loader, loss_fn)), rounds=ROUNDS, warmup=0
        )
    benchmark.pedantic(ours, rounds=1)
    timed = Comparison(mine, rival)
    record(
        benchmark,
        timed,
        op="score",
        shape=f"{case}, {len(data)} images of 8 x 8",
        rival="network-pruner 2.16 get_metrics",
        threads=1,
        ordinary_s=ordinary.as_dict(),
        ordinary_passes={"ours": mine.p50 / ordinary.p50, "rival": rival.p50 / ordinary.p50},
        **({} if target is None else timed.bound("ratio", target, at_least=True)),
    )


def check(metrics: dict[str, Any], scores: fk.Scores) -> None:
    """It scored every layer, and its distances rank the units about as ours do where both listen to the layer itself.

    Not exactly: it draws samples and directions at random, and compares other quantiles.
    """
    groups = [group for group in scores.units.groups if group.frozen is None]
    assert sum(key.startswith("D_") and key.count("_") == 1 for key in metrics) == len(groups)
    for number, group in enumerate(groups):
        distances, terms = (np.asarray(metrics[key.format(number)]) for key in ("D_{}", "RE_{}_hat"))
        assert distances.shape == terms.shape == (group.units,)
        assert np.isfinite(distances).all()
        assert np.isfinite(terms).all()
        assert (distances > 0).any()
        ranks = [np.argsort(np.argsort(values)) for values in (distances, scores.signals["wasserstein"][number])]
        assert np.corrcoef(*ranks)[0, 1] > 0.5, group.name
