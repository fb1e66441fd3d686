"""Batches as the loops of detectors have them: lists of images, dictionaries as targets, losses in train mode."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.capture.joint import reading_points
from fairkern.compensate.refit import other_taps
from tests.axes.harness import Net
from tests.detectors import CLASSES, Detector, Queries, Records, TakesBatches, Unannotated, images, targets

IMAGES = images((16, 16), (16, 24), (24, 16), (16, 16))
TARGETS = targets(4)
PAIRS: list[Any] = [(IMAGES[:3], TARGETS[:3]), (IMAGES[3:], TARGETS[3:])]


def score(model: nn.Module, loader: Any, loss_fn: Any = None, **options: Any) -> fk.Scores:
    return fk.score(model, loader, loss_fn, **{"class_of": False, "progress": False, **options})


def same(one: fk.Scores, other: fk.Scores) -> None:
    assert set(one.signals) == set(other.signals)
    for name in one.signals:
        for a, b in zip(one.signals[name], other.signals[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, err_msg=name)
    assert one.provenance["loss"] == pytest.approx(other.provenance["loss"], rel=1e-12)
    assert one.provenance["samples"] == other.provenance["samples"]


def detector(kind: type[nn.Module] = Detector) -> nn.Module:
    return kind().double().eval()


WAYS: dict[str, Callable[[list[Tensor], list[Any]], Any]] = {
    "lists": lambda x, t: (x, t),
    "tuples, as zip makes them": lambda x, t: (tuple(x), tuple(t)),
    "a list of both": lambda x, t: [x, t],
    "positional": lambda x, t: ((x,), t),
    "keywords": lambda x, t: {"images": x, "targets": t},
}


@pytest.mark.parametrize("kind", [Detector, Unannotated])
@pytest.mark.parametrize("way", WAYS)
def test_all_ways_to_feed_a_detector_are_one(way: str, kind: type[nn.Module]) -> None:
    model = detector()
    units = fk.trace(model, (IMAGES[:2],))
    options: dict[str, Any] = {"units": units, "gram": True}
    expected = score(model, PAIRS, **options)
    same(expected, score(detector(kind), [WAYS[way](*pair) for pair in PAIRS], **options))
    assert expected.provenance["samples"] == 4
    assert expected.provenance["batches"] == 2


@pytest.mark.parametrize("seed", [0, 1])
def test_neither_neighbours_nor_the_size_of_a_batch_play_a_part(seed: int) -> None:
    """Rows per proposal are those of the image, whichever others it comes with, and padding is nobody's."""
    model = detector()
    options: dict[str, Any] = {"units": fk.trace(model, IMAGES[:2]), "gram": True, "seed": seed}
    whole = score(model, [(IMAGES, TARGETS)], **options)
    same(whole, score(model, PAIRS, **options))
    same(whole, score(model, [([x], [t]) for x, t in zip(IMAGES, TARGETS, strict=True)], **options))


def test_r_of_the_rows_of_an_image_is_that_of_the_image() -> None:
    model = detector()
    units = fk.trace(model, IMAGES[:2])
    group = next(g for g, found in enumerate(units.groups) if found.name == "head.0")
    found = score(model, PAIRS, lambda out, _: sum(o["scores"].square().sum() for o in out), units=units)
    total = np.zeros(7)
    for image in IMAGES:
        heard: list[Tensor] = []
        handle = model.head[2].register_forward_pre_hook(lambda _, args: heard.append(args[0].retain_grad() or args[0]))  # noqa: B023
        model([image])[0]["scores"].square().sum().backward()
        handle.remove()
        total += (heard[0] * heard[0].grad).sum(0).abs().detach().numpy()
    np.testing.assert_allclose(found.signals["taylor"][group], total / 4, rtol=1e-9)


def test_the_model_and_the_random_state_are_as_they_were() -> None:
    model = detector().train()
    model.body[1].eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    states = torch.get_rng_state(), random.getstate()
    score(model, PAIRS, gram=True)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"compensate": "least_squares"}, {"iterations": 2}])
def test_prune_leaves_a_detector_that_runs_and_trains(options: dict[str, Any]) -> None:
    model = detector()
    small, report = fk.prune(model, PAIRS, keep_params=0.7, progress=False, **options)
    assert report.after["params"] < 0.8 * report.before["params"]
    assert report.choices["scoring"]["classes"] == {}
    assert report.choices["scoring"]["singly"]
    assert report.choices["compensation"] == options.get("compensate", "sequential")
    assert len(small(IMAGES)) == 4
    torch.manual_seed(0)
    sum(small.train()(IMAGES, TARGETS).values()).backward()
    assert all(p.grad is not None for p in small.parameters())


def test_rows_that_a_model_chooses_by_its_values_are_not_refitted() -> None:
    """The cut model chooses other places: what it reads there says nothing of what was read before."""
    model = detector()
    units = fk.trace(model, IMAGES[:2])
    names = [p.name for p in reading_points(model, PAIRS, units, other_taps(model, units))]
    assert names == ["body.0:input", "body.3:input", "score:input"]


@pytest.mark.parametrize("residual", [True, False])
def test_rows_that_are_put_back_are_refitted(residual: bool) -> None:
    """Tokens that an expert was given, and that are then those of the batch again."""

    def run(m: Any, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        picked = m.gate(flat)[:, 0].topk(6).indices
        if residual:  # weighed where they are, and taken back by the inverse order
            order = m.gate(flat)[:, 0].argsort()
            flat = flat + m.up(flat[order].relu())[order.argsort()]
        else:
            flat = torch.zeros_like(flat).index_add(0, picked, m.up(flat[picked]))
        return m.out(m.hidden(flat).relu()).view(*x.shape[:2], 2).mean(1)

    torch.manual_seed(0)
    layers = {"gate": nn.Linear(5, 1), "up": nn.Linear(5, 5), "hidden": nn.Linear(5, 8), "out": nn.Linear(8, 2)}
    model, x = Net(run, **layers).double().eval(), torch.randn(4, 3, 5, dtype=torch.float64)
    units = fk.trace(model, x, verify=False)
    names = [p.name for p in reading_points(model, [(x, None)], units, other_taps(model, units))]
    assert {"hidden:input", "out:input"} <= set(names)
    assert "up:input" not in names


def test_a_batch_that_a_model_takes_whole_is_traced_and_counted_by_its_images() -> None:
    model, generator = TakesBatches().double().eval(), torch.Generator().manual_seed(1)

    def batch(n: int) -> dict[str, Any]:
        boxes = torch.arange(n).repeat_interleave(3)
        return {
            "img": torch.rand(n, 3, 8, 8, generator=generator, dtype=torch.float64),
            "cls": torch.randint(0, CLASSES, (3 * n, 1), generator=generator).double(),
            "batch_idx": boxes.double(),
        }

    loader = [batch(4), batch(2)]
    units = fk.trace(model, loader[0])
    assert units.shapes == fk.trace(model, loader[0]["img"]).shapes
    assert [units.groups[g].name for g in units.prunable] == ["body.0", "body.3"]
    found = score(model, loader, units=units, gram=True)
    assert found.provenance["samples"] == 6
    expected = score(model, [(b["img"], b) for b in loader], lambda out, b: model.loss(b, out)[0].sum(), units=units)
    assert found.provenance["loss"] == pytest.approx(expected.provenance["loss"], rel=1e-12)
    same(found, score(model, loader, lambda out, b: out[0].sum(), units=units, gram=True))
    small, _ = fk.prune(model, loader, keep_params=0.7, progress=False)
    assert small(loader[0]["img"]).shape[1] == CLASSES
    assert torch.isfinite(small(loader[0])[0]).all()


@pytest.mark.parametrize("width", [5, 2])
def test_labels_in_a_list_of_dictionaries(width: int) -> None:
    """`width` tokens: of two, for two samples, shapes do not say along which dimension the samples lie."""
    model = Queries().double().eval()
    x = torch.randn(4, width, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = [{"class_labels": torch.tensor([i % 3] * (1 + i % 2))} for i in range(4)]
    loader = [{"pixel_values": x[i : i + 2], "labels": labels[i : i + 2]} for i in (0, 2)]
    singly = [{"pixel_values": x[i : i + 1], "labels": labels[i : i + 1]} for i in range(4)]
    units = fk.trace(model, loader[0])
    same(score(model, loader, units=units, gram=True), score(model, singly, units=units, gram=True))
    small, report = fk.prune(model, loader, keep_params=0.7, progress=False)
    assert not report.choices["scoring"]["singly"]
    assert torch.isfinite(small(**loader[0])["loss"])


class Stacked(nn.Module):
    """Classes of images in a list, by a net that stacks them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(channels, 8, 3), nn.Conv2d(8, 3, 1)

    def forward(self, xs: list[Tensor]) -> Tensor:
        return self.b(self.a(torch.stack(xs)).relu()).mean((2, 3))


class Pyramid(nn.Module):
    """Reads maps of several sizes, each of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1)])
        self.out = nn.Linear(18, 2)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.out(
            torch.cat([layer(f).relu().mean((2, 3)) for layer, f in zip(self.layers, maps, strict=True)], 1)
        )


def test_a_class_for_every_image_of_a_list() -> None:
    """One after the other, and yet each with the class that it has in its batch."""
    torch.manual_seed(0)
    model = Stacked(3).double().eval()
    xs, y = list(torch.randn(8, 3, 5, 5, dtype=torch.float64)), torch.arange(8) % 2
    units = fk.trace(model, xs)
    options: dict[str, Any] = {"units": units, "progress": False, "projections": 4}
    found = fk.score(model, [(xs[:5], y[:5]), (xs[5:], y[5:])], F.cross_entropy, **options)
    listed = fk.score(
        model,
        [(xs, list(y))],
        lambda out, t: F.cross_entropy(out, torch.stack(t)),
        class_of=lambda batch: torch.stack(batch[1]),
        **options,
    )
    same(found, listed)
    assert found.provenance["classes"] == {"0": 4, "1": 4}
    plain = nn.Sequential(model.a, nn.ReLU(), model.b, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    traced = fk.trace(plain, torch.stack(xs))
    expected = fk.score(plain, [(torch.stack(xs), y)], F.cross_entropy, **{**options, "units": traced})
    np.testing.assert_allclose(found.signals["wasserstein"][0], expected.signals["wasserstein"][0], rtol=1e-9)


def test_classes_are_asked_for_where_they_cannot_be_known() -> None:
    with pytest.raises(fk.InputError, match=r"the targets of batch 0 are a list of 3.*class_of"):
        score(detector(), PAIRS, class_of=None)


class Pair(nn.Module):
    """Two arguments that need not be of the same number of rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, table: Tensor, index: Tensor) -> Tensor:
        return self.b(self.a(table).relu())[index]


def test_how_many_samples_there_are_is_said_where_it_cannot_be_known() -> None:
    model, table, index = Pair().eval(), torch.randn(7, 5), torch.tensor([0, 3, 4, 6])
    units = fk.trace(model, (table, index), verify=False)

    def loss(out: Tensor, _: Any) -> Tensor:
        return out.square().mean()

    with pytest.raises(fk.InputError, match=r"how many samples batch 0 holds cannot be told.*samples_of="):
        score(model, [((table, index), None)], loss, units=units)
    with pytest.raises(fk.InputError, match=r"samples_of\(batch 0\)=2.5 is a float"):
        score(model, [((table, index), None)], loss, units=units, samples_of=lambda batch: 2.5)
    with pytest.raises(fk.InputError, match="samples_of=3 is a int"):
        score(model, [((table, index), None)], loss, units=units, samples_of=3)
    found = score(model, [((table, index), None)], loss, units=units, samples_of=lambda batch: len(batch[0][0]))
    assert found.provenance["samples"] == 7


@pytest.mark.parametrize(("channels", "n"), [(3, 2), (3, 3), (2, 3)])
def test_samples_are_not_counted_by_an_images_channels(channels: int, n: int) -> None:
    model = Stacked(channels).double().eval()
    xs = [torch.randn(channels, 5, 5, dtype=torch.float64) for _ in range(n)]
    y = torch.arange(n) % 2
    found = score(model, [(xs, y)], F.cross_entropy, units=fk.trace(model, (xs,), verify=False))
    assert found.provenance["samples"] == n
    assert found.provenance["singly"]


def test_a_list_of_feature_maps_holds_a_row_of_every_sample_for_each() -> None:
    torch.manual_seed(0)
    model = Pyramid().double().eval()
    maps = [torch.randn(8, 4, size, size, dtype=torch.float64) for size in (8, 4, 2)]
    y = torch.arange(8) % 2
    units = fk.trace(model, (maps,))
    whole = fk.score(model, [(maps, y)], F.cross_entropy, units=units, progress=False)
    halves = [([m[i : i + 4] for m in maps], y[i : i + 4]) for i in (0, 4)]
    same(whole, fk.score(model, halves, F.cross_entropy, units=units, progress=False))
    assert whole.provenance["samples"] == 8
    assert not whole.provenance["singly"]


def test_recalibrate_takes_the_batches_of_a_detector() -> None:
    model = detector()
    assert fk.recalibrate(model, PAIRS) == 1
    padded = [[F.pad(x, (0, 24 - x.shape[2], 0, 24 - x.shape[1])) for x in IMAGES[:3]], IMAGES[3:]]
    read = [model.body[0](torch.stack(batch)) for batch in padded]
    expected = torch.stack([x.mean((0, 2, 3)) for x in read]).mean(0)
    torch.testing.assert_close(model.body[1].running_mean, expected)


class OneByOne(nn.Module):
    """Runs the images of a list one after the other: as many calls of its layers as there are images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, xs: list[Tensor]) -> Tensor:
        return torch.stack([self.head(self.body(x[None]).relu()).square().mean((0, 2, 3)) for x in xs])


def test_a_model_that_runs_images_one_by_one() -> None:
    model, loader = OneByOne().double().eval(), [(IMAGES[:3], None), (IMAGES[3:], None)]

    def loss(out: Tensor, _: Any) -> Tensor:
        return out.mean()

    counted = {"samples_of": lambda batch: len(batch[0])}
    same(score(model, loader, loss, **counted), score(model, [(IMAGES, None)], loss, **counted))
    small, _ = fk.prune(model, loader, loss, keep_params=0.7, progress=False, **counted)
    torch.testing.assert_close(small(IMAGES), torch.cat([small([x]) for x in IMAGES]))
    with pytest.raises(fk.InputError, match=r"does not reach head#1:input.*trace with inputs like a list of one image"):
        score(model, loader, loss, units=fk.trace(model, IMAGES[:2]), **counted)


@pytest.mark.parametrize("n", [2, 3])
def test_a_dictionary_for_every_image(n: int) -> None:
    model, records = Records().double().eval(), [{"image": x, **t} for x, t in zip(IMAGES, TARGETS, strict=True)]
    units = fk.trace(model, records[:2])
    loader = [records[:n], records[n:]]
    found = score(model, loader, units=units, gram=True)
    expected = score(detector(), PAIRS, units=fk.trace(detector(), IMAGES[:2]), gram=True)
    assert found.provenance["loss"] == pytest.approx(expected.provenance["loss"], rel=1e-12)
    same(expected, found)
    small, _ = fk.prune(model, loader, keep_params=0.7, progress=False)
    assert len(small(records)) == 4


def test_a_pair_of_dictionaries_is_inputs_and_targets() -> None:
    model, x, y = Stacked(3).double().eval(), torch.randn(8, 3, 5, 5, dtype=torch.float64), torch.arange(8) % 2
    plain = nn.Sequential(model.a, nn.ReLU(), model.b, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    expected = score(plain, [(x, y)], F.cross_entropy)
    loader = [[{"input": x}, {"classes": y}]]
    same(expected, score(plain, loader, lambda out, t: F.cross_entropy(out, t["classes"])))


class Boxes(nn.Module):
    """Takes a batch whole, and does not call itself; its boxes are of the images that `batch_idx` names."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TakesBatches()

    def forward(self, batch):  # type: ignore[no-untyped-def]
        return {"loss": sum(self.model.loss(batch, self.model(batch["img"].flatten(0, 1)))[0])}


def test_whole_batches_that_cannot_be_divided_are_run_as_they_are() -> None:
    """Two images in each of two groups, of which no shape says where the samples lie."""
    model, generator = Boxes().double().eval(), torch.Generator().manual_seed(1)

    def batch(n: int) -> dict[str, Any]:
        index = torch.arange(2 * n).repeat_interleave(3)
        return {
            "img": torch.rand(n, 2, 3, 8, 8, generator=generator, dtype=torch.float64),
            "cls": torch.randint(0, CLASSES, (len(index), 1), generator=generator),
            "batch_idx": index,
            "names": tuple("ab"[:n]),
        }

    units = fk.trace(model, batch(2))
    with pytest.raises(fk.InputError, match=r"cannot be taken out of the batch.*give batches of one sample"):
        score(model, [batch(2)], units=units)
    assert score(model, [batch(1), batch(1)], units=units).provenance["samples"] == 2
    small, _ = fk.prune(model, [batch(1), batch(1)], keep_params=0.8, progress=False)
    small(batch(2))["loss"].backward()


class Remembers(nn.Module):
    """Keeps what it made of one shape for the next time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.ones(8, dtype=x.dtype) / 2
        return self.b(self.a(x).relu() * self.kept.expand(len(x), -1)[:, : self.a.out_features])


def test_a_model_that_was_timed_can_be_trained() -> None:
    model, x = Remembers().double(), torch.randn(6, 5, dtype=torch.float64)
    small, _ = fk.prune(model, [(x, torch.arange(6) % 3)], F.cross_entropy, keep_params=0.7, progress=False)
    for net in (model, small):
        net.train()(x).sum().backward()
