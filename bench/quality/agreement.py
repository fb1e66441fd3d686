"""`recipe="paper"` beside network-pruner: where both should give the same, and what the package does elsewhere.

Both are run on nets without BatchNorm and dropout, with equally many images of every class and equal batches. There U
of a linear layer and R of any layer are the same quantities. Every other row changes one of these conditions.
"""

from __future__ import annotations

import contextlib
import copy
import io
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fairkern as fk
from fairkern.demo.data import digits

PER_CLASS, BATCH = 64, 80
TOLERANCES = (0.02, 0.05, 0.1, 0.2, 0.4)
_STEPS = 60


def rows() -> list[dict[str, Any]]:
    """What was compared, on what, and the figures. Takes a quarter of a minute."""
    images, labels = _equal(PER_CLASS)
    return [
        *(_same(_trained(net, images, labels), images, labels) for net in (_mlp(), _cnn())),
        _other_counts(),
        _batch_norm(images, labels),
        _batch_size(images, labels),
        _labels_from_100(),
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as a table."""
    lines = ["| | on | found |", "|---|---|---|"]
    return lines + [f"| {row['what']} | {row['on']} | {row['found']} |" for row in rows]


def _same(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    theirs, ours = _theirs(net, images, labels, BATCH), _ours(net, images, labels, BATCH)
    units = [(g, group) for g, group in enumerate(ours.units.groups) if group.frozen is None]
    linear, spatial, reconstruction = [], [], []
    for number, (g, group) in enumerate(units):
        u, r = (np.asarray(theirs[key.format(number)], dtype=float) for key in ("D_{}", "RE_{}_hat"))
        own_u, own_r = ours.signals["wasserstein"][g], ours.signals["taylor"][g]
        reconstruction.append(_apart(r / (len(images) // BATCH), own_r))
        if isinstance(net.get_submodule(group.name), nn.Linear):
            linear.append(_apart(u, own_u))
        else:
            spatial.append(float(np.corrcoef(u, own_u)[0, 1]))
    from Network_Pruner import FAIR_Pruner

    plans = []
    for tolerance in TOLERANCES:
        with contextlib.redirect_stdout(io.StringIO()):
            removed = FAIR_Pruner.get_ratios(net, theirs, ToD_level=tolerance)
        plan = ours.plan(tod=tolerance, max_remove=0.99)
        plans += [(a, len(plan.groups[g].removed)) for a, (g, _) in zip(removed, units, strict=True)]
    told = [f"R: {max(reconstruction):.0e} apart, once divided by the number of batches"]
    if linear:
        told.append(f"U of linear layers: {max(linear):.0e} apart")
    if spatial:
        told.append(f"U of convolutions, each with its own random directions: correlation {min(spatial):.3f}")
    equal = sum(a == b for a, b in plans)
    told.append(f"units to remove: the same in {equal} of {len(plans)} layers and tolerances")
    return {
        "what": "the same by definition",
        "on": f"a net of {' and '.join(sorted({type(m).__name__ for m in net.modules() if hasattr(m, 'weight')}))}",
        "found": "; ".join(told),
        "apart_r": max(reconstruction),
        "apart_u": max(linear, default=None),
        "correlation_u": min(spatial, default=None),
        "plans": [list(pair) for pair in plans],
    }


def _other_counts() -> dict[str, Any]:
    """One distribution, two numbers of samples: W₁ is zero."""
    x, labels = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 1.0])[:, None], torch.tensor([0, 0, 1, 1, 1, 1])
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2)).eval()
    nn.init.ones_(net[0].weight)
    theirs = float(max(_theirs(net, x, labels, len(x))["D_0"]))
    ours = float(_ours(net, x, labels, len(x)).signals["wasserstein"][0].max())
    return {
        "what": "classes of unequal numbers: U at interpolated quantiles, not W₁",
        "on": "0, 1 against 0, 0, 1, 1: the same distribution",
        "found": f'{theirs:.3f}; `recipe="paper"` {ours:.3f}',
        "theirs": theirs,
        "ours": ours,
    }


def _batch_norm(images: Tensor, labels: Tensor) -> dict[str, Any]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    _trained(net, images, labels)
    scored = copy.deepcopy(net)
    metrics = _theirs(scored, images, labels, BATCH)
    before, after = net[1].running_var, scored[1].running_var
    r = float(np.asarray(metrics["RE_0_hat"]).max()) * BATCH / len(images)
    own = _ours(net, images, labels, BATCH).signals["taylor"][0]
    return {
        "what": "R in train mode, where BatchNorm hides the scale of the layer before it; its statistics move",
        "on": "Linear, BatchNorm, ReLU, Linear",
        "found": f"running variances moved by up to {_apart(before, after):.0%}; R {r:.1e} at most, "
        f'`recipe="paper"`, in eval mode, {float(own.max()):.1e}',
        "moved": _apart(before, after),
        "theirs": r,
        "ours": float(own.max()),
    }


def _batch_size(images: Tensor, labels: Tensor) -> dict[str, Any]:
    net = _trained(_mlp(), images, labels)
    orders, own = [], []
    for batch in (BATCH, 300):  # 640 images: the last batch has 40
        metrics = _theirs(net, images, labels, batch)
        orders.append(np.argsort(np.asarray(metrics["RE_0_hat"])))
        own.append(np.argsort(_ours(net, images, labels, batch).signals["taylor"][0], kind="stable"))
    moved, kept = (float((a != b).mean()) for a, b in (orders, own))
    return {
        "what": "R adds up means of batches: its scale and, with a short last one, its ranking follow the batch size",
        "on": f"the linear net, batches of {BATCH} and of 300",
        "found": f'{moved:.0%} of the first layer\'s units change their rank; `recipe="paper"` {kept:.0%}',
        "theirs": moved,
        "ours": kept,
    }


def _labels_from_100() -> dict[str, Any]:
    """110 classes of which only those from 100 on differ: nothing of them is heard."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(110).repeat_interleave(2)
    x = torch.zeros(len(labels), 4)
    x[labels >= 100] = torch.randn(int((labels >= 100).sum()), 4, generator=generator)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 110)).eval()
    theirs = np.asarray(_theirs(net, x, labels, len(x))["D_0"])
    ours = _ours(net, x, labels, len(x)).signals["wasserstein"][0]
    return {
        "what": "classes from the hundredth on are never compared",
        "on": "110 classes, of which only the last ten differ",
        "found": f'U {theirs.max():.3f} at most; `recipe="paper"` {ours.max():.3f}',
        "theirs": float(theirs.max()),
        "ours": float(ours.max()),
    }


def _theirs(net: nn.Module, images: Tensor, labels: Tensor, batch: int) -> dict[str, Any]:
    from Network_Pruner import FAIR_Pruner

    x = images if isinstance(net[0], nn.Conv2d) else images.flatten(1)
    data = TensorDataset(x, labels)
    data.classes = sorted(set(labels.tolist()))
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        torch.random.fork_rng([]),
    ):
        torch.manual_seed(0)
        random.seed(0)  # it draws pairs of classes, and their directions, in an order of its own
        found: dict[str, Any] = FAIR_Pruner.get_metrics(
            net, DataLoader(data, batch_size=batch), loss_function=nn.CrossEntropyLoss(), device=torch.device("cpu"),
            the_samplesize_for_compute_distance=len(x), results_save_path=str(Path(folder) / "metrics"),
        )  # fmt: skip
    return found


def _ours(net: nn.Module, images: Tensor, labels: Tensor, batch: int) -> fk.Scores:
    x = images if isinstance(net[0], nn.Conv2d) else images.flatten(1)
    loader = list(zip(x.split(batch), labels.split(batch), strict=True))
    units = fk.trace(net, x[:2])
    return fk.score(
        net, loader, nn.functional.cross_entropy, units=units, recipe="paper", samples_per_class=len(x), progress=False
    )


def _equal(per_class: int) -> tuple[Tensor, Tensor]:
    """As many training images of every digit, in turn: [10 · per_class, 1, 8, 8]."""
    data = digits()
    rows = torch.stack([(data.train_y == k).nonzero()[:per_class, 0] for k in range(10)], dim=1).reshape(-1)
    return data.train_x[rows], data.train_y[rows]


def _mlp() -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10))


def _cnn() -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 48), nn.ReLU(), nn.Linear(48, 10),
        )  # fmt: skip


def _trained(net: nn.Sequential, images: Tensor, labels: Tensor) -> nn.Sequential:
    x = images if isinstance(net[0], nn.Conv2d) else images.flatten(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    net.train()
    for _ in range(_STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net.eval()


def _apart(a: Any, b: Any) -> float:
    """The largest difference, in parts of the largest value."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return float(np.abs(x - y).max() / np.abs(x).max())
