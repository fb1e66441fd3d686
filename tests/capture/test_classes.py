"""Classes of places (tokens, pixels), and scoring without any classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fairkern as fk
from fairkern.capture.classes import Selection
from fairkern.capture.growing import GrowingRows
from fairkern.ops import class_wasserstein

N, T, CLASSES = 12, 10, 3


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, CLASSES)).double()


def tokens(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, T, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (N, T), generator=generator)


def token_loss(output: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(output.flatten(0, -2), targets.flatten())


def second(batch: Any) -> Tensor:
    return batch[1]


def batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


@pytest.mark.parametrize("per_class", [4, 1000])
@pytest.mark.parametrize("size", [12, 5])
def test_places_are_compared_as_samples_of_their_own_would_be(per_class: int, size: int) -> None:
    x, y = tokens()
    model = net()
    options: dict[str, Any] = {"samples_per_class": per_class, "progress": False}
    found = fk.score(model, batches(x, y, size), token_loss, class_of=second, **options)
    alone = fk.score(model, batches(x.flatten(0, 1), y.flatten(), 30), cross_entropy, **options)
    for a, b in zip(found.signals["wasserstein"], alone.signals["wasserstein"], strict=True):
        np.testing.assert_array_equal(a, b)
    assert found.provenance["classes"] == alone.provenance["classes"]
    assert found.provenance["samples"] == N


def test_a_negative_label_is_of_no_class_and_a_single_place_is_compared_with_none() -> None:
    x, y = tokens()
    y[:, ::2] = -100
    y[3, 1] = CLASSES  # the only one
    model = net()
    units = fk.trace(model, x)
    scores = fk.score(model, [(x, y)], lambda out, t: out.square().mean(), class_of=second, units=units, progress=False)
    labels = y.flatten()
    kept = (labels >= 0) & (labels < CLASSES)
    hidden = model[1](model[0](x)).detach().flatten(0, 1)[kept]
    expected = class_wasserstein(hidden, labels[kept], "max", backend="reference")
    np.testing.assert_allclose(scores.signals["wasserstein"][0], expected, rtol=1e-9)


class Segmenter(nn.Module):
    """Half of the resolution within, whole at the end; `pooled`: a gate for each channel beside."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        self.entry, self.inner = nn.Conv2d(1, 5, 3, 2, 1), nn.Conv2d(5, 6, 3, padding=1)
        self.out = nn.Conv2d(6, CLASSES, 1)
        self.gate = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6)) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(torch.relu(self.entry(x))).sigmoid()
        if self.gate is not None:
            x = x * self.gate(x.mean((2, 3)))[:, :, None, None]
        return nn.functional.interpolate(self.out(x), scale_factor=2)


def test_a_coarser_grid_has_the_nearest_labels() -> None:
    torch.manual_seed(0)
    model, x = Segmenter().double(), torch.randn(4, 1, 8, 8, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (4, 8, 8))
    units = fk.trace(model, x)
    scores = fk.score(model, batches(x, y, 2), cross_entropy, class_of=second, units=units, progress=False)
    inner = torch.relu(model.entry(x)).detach().permute(0, 2, 3, 1).flatten(0, 2)
    labels = y[:, 1::2, 1::2].flatten()
    chosen = torch.cat([(labels == c).nonzero()[:32, 0] for c in range(CLASSES)]).sort().values
    expected = class_wasserstein(inner[chosen], labels[chosen], "max", backend="reference")
    g = next(g for g, group in enumerate(units.groups) if group.name == "entry")
    np.testing.assert_allclose(scores.signals["wasserstein"][g], expected, rtol=1e-9)


@pytest.mark.parametrize("size", [(8, 8), (8, 16)])
def test_a_coarser_grid_in_a_row_has_the_nearest_labels(size: tuple[int, int]) -> None:
    """Patches of a transformer, as tokens: they have the proportions of the image."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up, self.down = nn.Conv2d(1, 6, 4, 4), nn.Linear(6, 7), nn.Linear(7, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.down(self.up(self.embed(x).flatten(2).transpose(1, 2)).relu())
            return nn.functional.interpolate(tokens.mT.unflatten(2, (2, x.shape[3] // 4)), scale_factor=4)

    torch.manual_seed(0)
    model, x = Patches().double(), torch.randn(6, 1, *size, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (6, *size))
    units = fk.trace(model, x)
    scores = fk.score(model, [(x, y)], cross_entropy, class_of=second, units=units, progress=False)
    read = torch.relu(model.up(model.embed(x).flatten(2).transpose(1, 2))).detach().flatten(0, 1)
    expected = class_wasserstein(read, y[:, 2::4, 2::4].flatten(), "max", backend="reference")
    g = next(g for g, group in enumerate(units.groups) if group.name == "up")
    np.testing.assert_allclose(scores.signals["wasserstein"][g], expected, rtol=1e-9)


def regions(n: int) -> Tensor:
    """Labels [n, 8, 8]: most places of a sample are of the class of its number, some of none, and some of others."""
    y = torch.randint(0, CLASSES, (n, 8, 8), generator=torch.Generator().manual_seed(2))
    y[:, 2:, 1:] = (torch.arange(n) % CLASSES)[:, None, None]
    y[:, 0] = -1
    return y


@pytest.mark.parametrize("size", [12, 5])
def test_a_pooled_branch_has_the_class_of_most_places_of_the_sample(size: int) -> None:
    torch.manual_seed(0)
    model, x, y = Segmenter(pooled=True).double(), torch.randn(12, 1, 8, 8, dtype=torch.float64), regions(12)
    units = fk.trace(model, x)
    options: dict[str, Any] = {"class_of": second, "units": units, "progress": False}
    scores = fk.score(model, batches(x, y, size), lambda out, t: cross_entropy(out, t, ignore_index=-1), **options)
    gated = torch.relu(model.gate[0](model.inner(torch.relu(model.entry(x))).sigmoid().mean((2, 3)))).detach()
    expected = class_wasserstein(gated, torch.arange(12) % CLASSES, "max", backend="reference")
    g = next(g for g, group in enumerate(units.groups) if group.name == "gate.0")
    np.testing.assert_allclose(scores.signals["wasserstein"][g], expected, rtol=1e-9)
    assert scores.provenance["no_classes"] == []


def test_a_branch_that_is_heard_in_one_class_has_no_u_and_is_left_alone_where_u_is_read(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model, x = Segmenter(pooled=True).double(), torch.randn(6, 1, 8, 8, dtype=torch.float64)
    y = torch.zeros(6, 8, 8, dtype=torch.int64)
    y[:, :3] = 1
    data = batches(x, y, 3)
    units = fk.trace(model, x)
    scores = fk.score(model, data, cross_entropy, class_of=second, units=units, gram=True, progress=False)
    scores.save(tmp_path / "scores.safetensors")
    scores = fk.Scores.load(tmp_path / "scores.safetensors")
    assert scores.provenance["no_classes"] == ["gate.0"]
    for options in ({"removal": "wasserstein"}, {"removal": "taylor", "protect": "wasserstein"}):
        plan = scores.plan(tod=1.0, **options)
        assert {group.name for group in plan.groups if group.removed.size} == {"entry", "inner"}
        compared = plan
    assert any(g.name == "gate.0" and g.removed.size for g in scores.plan(keep_params=0.3).groups)
    report = fk.summarise(compared, scores=scores)
    assert "heard in fewer than two classes, without U: gate.0" in report.choices["notes"]
    small, _ = fk.prune(model, data, cross_entropy, tod=0.9, class_of=second, progress=False)
    assert small.gate[0].out_features == 7
    assert small(x).shape == model(x).shape


def test_classes_along_what_is_pooled_in_one_direction_are_those_of_most_places_there() -> None:
    """A gate for each row and one for each column (coordinate attention)."""

    class Strips(Segmenter):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(torch.relu(self.entry(x))).sigmoid()
            x = x * self.last(torch.relu(self.first(x.mean(2, keepdim=True))))
            return nn.functional.interpolate(self.out(x), scale_factor=2)

    torch.manual_seed(0)
    model, x = Strips().double(), torch.randn(6, 1, 8, 8, dtype=torch.float64)
    columns = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])
    y = columns.expand(6, 8, 8).clone()
    y[:, 0] = 0
    units = fk.trace(model, x)
    scores = fk.score(model, [(x, y)], cross_entropy, class_of=second, units=units, progress=False)
    inner = model.inner(torch.relu(model.entry(x))).sigmoid()
    read = torch.relu(model.first(inner.mean(2, keepdim=True)))
    rows = read.detach()[:, :, 0].permute(0, 2, 1).flatten(0, 1)
    expected = class_wasserstein(rows, columns[1::2].repeat(6), "max", backend="reference")
    g = next(g for g, group in enumerate(units.groups) if group.name == "first")
    np.testing.assert_allclose(scores.signals["wasserstein"][g], expected, rtol=1e-9)


def test_places_that_are_not_there_are_refused() -> None:
    x, labels = tokens()[0], torch.arange(2 * N * 3).view(N, 2, 3) % 3
    with pytest.raises(fk.InputError, match=r"places \[2, 3\].*have the shape \[10\]"):
        fk.score(net(), [(x, None)], lambda out, _: out.sum(), class_of=lambda b: labels, progress=False)


def test_targets_of_places_say_how_they_are_compared() -> None:
    x, y = tokens()
    with pytest.raises(fk.InputError, match=r"class_of=lambda batch: batch\[1\] to compare places"):
        fk.prune(net(), [(x, y)], token_loss, tod=0.1, progress=False)


class Windows(nn.Module):
    """Folds windows of two by two into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        x = x + self.down(torch.relu(self.up(x)))
        return x.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)


def test_windows_are_refused() -> None:
    torch.manual_seed(0)
    model, x, y = Windows(), torch.randn(6, 4, 4, 3), torch.randint(0, 3, (6, 4, 4))
    with pytest.raises(fk.InputError, match="folded into windows"):
        fk.score(model, [(x, y)], token_loss, class_of=second, progress=False)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(N, T, dtype=torch.int64), "yields 1 class of two places"),
        (torch.zeros(N + 1, T, dtype=torch.int64), "expected \\(12,\\)"),
        (torch.zeros(N, T), "integer class labels"),
    ],
    ids=["one class", "too many", "no integers"],
)
def test_labels_that_cannot_be_used(labels: Tensor, message: str) -> None:
    x, y = tokens()
    with pytest.raises(fk.InputError, match=message):
        fk.score(net(), [(x, y)], token_loss, class_of=lambda batch: labels, progress=False)


def test_r_within_classes_needs_a_class_per_sample() -> None:
    x, y = tokens()
    for class_of in (second, False):
        with pytest.raises(fk.InputError, match="per_class"):
            fk.score(net(), [(x, y)], token_loss, class_of=class_of, reduction="per_class", progress=False)


def test_without_classes_all_but_u_is_the_same() -> None:
    x, y = tokens()
    model = net()
    units = fk.trace(model, x)
    options: dict[str, Any] = {"units": units, "gram": True, "progress": False}
    whole = fk.score(model, batches(x, y, 5), token_loss, class_of=second, **options)
    bare = fk.score(model, batches(x, y, 5), token_loss, class_of=False, **options)
    assert set(bare.signals) == set(whole.signals) - {"wasserstein"}
    for name in bare.signals:
        for a, b in zip(bare.signals[name], whole.signals[name], strict=True):
            np.testing.assert_array_equal(a, b)
    assert bare.provenance["classes"] == {}
    assert bare.provenance["sample_bytes"] == bare.provenance["predicted_bytes"]["samples"] == 0
    for name in ("params_after", "units_removed"):
        assert bare.plan(keep_params=0.5).result[name] == whole.plan(keep_params=0.5).result[name]
    with pytest.raises(fk.InputError, match="wasserstein"):
        bare.plan(tod=0.1)


def test_prune_leaves_out_u_where_targets_are_no_classes_and_nothing_asks_for_them() -> None:
    x, y = tokens()
    small, report = fk.prune(net(), batches(x, y, 4), token_loss, keep_params=0.5, progress=False)
    assert report.choices["scoring"]["classes"] == {}
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in net().parameters())
    _, first_order = fk.prune(net(), batches(x, y, 4), token_loss, keep_params=0.5, gram=False, progress=False)
    assert first_order.choices["request"]["removal"] == "taylor"
    for asked in ({"tod": 0.1}, {"keep_params": 0.5, "removal": "wasserstein"}):
        with pytest.raises(fk.InputError, match="class_of"):
            fk.prune(net(), batches(x, y, 4), token_loss, progress=False, **asked)


def test_prune_compares_classes_where_there_are_some() -> None:
    x, y = tokens()
    data = batches(x.flatten(0, 1), y.flatten(), 30)
    _, report = fk.prune(net(), data, cross_entropy, keep_params=0.5, progress=False)
    assert set(report.choices["scoring"]["classes"]) == {"0", "1", "2"}


def test_a_loader_that_runs_out_is_looked_at_once() -> None:
    x, y = tokens()

    def once() -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches(x, y, 4)

    _, report = fk.prune(net(), once(), token_loss, keep_params=0.5, progress=False)
    assert report.choices["scoring"]["samples"] == N


def test_rows_that_there_may_be_are_bounded_by_what_has_a_class_and_by_what_classes_hold() -> None:
    chosen = Selection(4)
    chosen.take(torch.tensor([0, 0, 0, 1, -1]))
    assert (chosen.expected(0.5), chosen.at_most(0.5)) == (4 + 2, 8)
    assert chosen.at_most(1.0) == 4
    chosen.take(torch.tensor([0, 0, 0, 1, 2]))
    assert (chosen.expected(1.0), chosen.at_most(1.0)) == (4 + 2 + 1, 9)


def test_samples_are_not_moved_where_the_first_batch_has_few_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the second class are expected to be a third of what they become."""
    made: list[int] = []
    resized = GrowingRows._resized

    def counted(self: GrowingRows, buffer: Tensor, rows: int) -> Tensor:
        made.append(rows)
        return resized(self, buffer, rows)

    monkeypatch.setattr(GrowingRows, "_resized", counted)
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(24, 6, generator=generator, dtype=torch.float64),
        torch.tensor([0, 0, 0, 1] * 2 + [0, 1, 1, 1] * 4),
    )
    units = fk.trace(net(), x[:1])
    fk.score(net(), batches(x, y, 4), cross_entropy, units=units, samples_per_class=14, progress=False)
    assert made == [24, 24]
