"""U, R and means against independent definitions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

import fairkern as fk
from fairkern.capture import sums
from fairkern.ops import taylor_many
from tests.capture.networks import Branches, Plain, build, loader, loss, samples, summed


def inputs_of(model: nn.Module, path: str, x: Tensor) -> Tensor:
    """What one module reads, from a hook of the test's own."""
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


def score(model: nn.Module, batches: list, **options: object) -> fk.Scores:
    options = {"projections": 16, "progress": False, **options}
    units = options.pop("units", None) or fk.trace(model, batches[0][0][:2], verify=False)
    return fk.score(model.eval(), batches, options.pop("loss_fn", loss), units=units, **options)


@pytest.mark.parametrize("kind", [Plain, Branches])
def test_signed_r_is_weight_times_its_gradient(kind: type[nn.Module]) -> None:
    """Σ a·∂L/∂a at a consumer's input equals Σ w·∂L/∂w over the consumer's weights of that channel."""
    model = build(kind).eval()
    x, y = samples()
    scores = score(model, loader(x, y, 7), reduction="signed")
    model.zero_grad()
    loss(model(x), y).backward()
    parameters = dict(model.named_parameters())
    for g, group in enumerate(scores.units.groups):
        expected = np.zeros(group.units)
        for tap in group.taps:
            at_tap = np.zeros(group.units)
            for weight in tap.weights:
                w = parameters[weight.tensor]
                other = [d for d in range(w.ndim) if d != weight.dim]
                per_position = (w * w.grad).sum(other).detach().numpy()
                axis = next(a for a in group.axes if a.axis == weight)
                at_tap += per_position[axis.positions].sum(1)
            expected += np.abs(at_tap)
        np.testing.assert_allclose(scores.signals["taylor"][g], expected, rtol=1e-9, atol=1e-14, err_msg=group.name)


@pytest.mark.parametrize("reduction", ["per_sample", "per_class"])
def test_r_sums_the_absolute_terms_of_samples_or_of_classes(reduction: str) -> None:
    model = build(Plain).eval()
    x, y = samples()
    scores = score(model, loader(x, y, 7), reduction=reduction)
    for name, path, shape in (("conv2", "fc1", (30, 5, 16)), ("fc1", "fc2", (30, 7, 1))):
        g = [group.name for group in scores.units.groups].index(name)
        terms = np.zeros(shape[:2])
        for i in range(len(x)):
            tap = inputs_of(model, path, x[i : i + 1]).requires_grad_()
            tail = model.fc2(torch.relu(model.fc1(tap))) if path == "fc1" else model.fc2(tap)
            (grad,) = torch.autograd.grad(loss(tail, y[i : i + 1]), tap)
            terms[i] = (tap * grad).detach().reshape(shape[1:]).sum(1).numpy()
        parts = terms if reduction == "per_sample" else np.stack([terms[y.numpy() == c].sum(0) for c in range(3)])
        total = np.abs(parts).sum(0)
        np.testing.assert_allclose(scores.signals["taylor"][g], total / len(x), rtol=1e-9, atol=1e-14)


def test_r_does_not_depend_on_how_the_loss_is_reduced() -> None:
    model = build(Plain).eval()
    x, y = samples()
    units = fk.trace(model, x[:2], verify=False)
    mean = score(model, loader(x, y, 7), units=units)
    total = score(model, loader(x, y, 4), units=units, loss_fn=summed, loss_reduction="sum")
    for a, b in zip(mean.signals["taylor"], total.signals["taylor"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize(("pairs", "over"), [("max", max), ("mean", np.mean)])
def test_u_of_scalar_units_is_the_largest_or_mean_scipy_distance(pairs: str, over: Callable) -> None:
    model = build(Plain).eval()
    x, y = samples()
    scores = score(model, loader(x, y, 8), samples_per_class=6, pairs=pairs)
    g = [group.name for group in scores.units.groups].index("fc1")
    kept = np.concatenate([np.flatnonzero(y.numpy() == c)[:6] for c in range(3)])
    act, labels = inputs_of(model, "fc2", x).numpy()[kept], y.numpy()[kept]
    expected = [
        over(
            [
                wasserstein_distance(act[labels == j, c], act[labels == k, c])
                for j, k in itertools.combinations(range(3), 2)
            ]
        )
        for c in range(7)
    ]
    np.testing.assert_allclose(scores.signals["wasserstein"][g], expected, rtol=1e-9)


@pytest.mark.parametrize(("name", "path", "units"), [("conv1", "conv2", 6), ("conv2", "fc1", 5)])
def test_u_of_maps_is_the_sliced_distance(name: str, path: str, units: int) -> None:
    model = build(Plain).eval()
    x, y = samples()
    scores = score(model, loader(x, y, 8), samples_per_class=32, projections=5, seed=3)
    g = [group.name for group in scores.units.groups].index(name)
    act = inputs_of(model, path, x).reshape(len(x), units, -1)
    projected = (act @ fk.ops.directions(act.shape[2], 5, 3).double()).numpy()
    expected = np.zeros(units)
    for c in range(units):
        for j, k in itertools.combinations(range(3), 2):
            sliced = np.mean([wasserstein_distance(projected[y == j, c, p], projected[y == k, c, p]) for p in range(5)])
            expected[c] = max(expected[c], sliced)
    np.testing.assert_allclose(scores.signals["wasserstein"][g], expected, rtol=1e-6)  # directions are float32


def test_a_group_with_several_taps_takes_its_largest_u() -> None:
    model = build(Branches).eval()
    x, y = samples()
    scores = score(model, loader(x, y, 8))
    units = scores.units
    stem = units.groups[[g.name for g in units.groups].index("stem")]
    assert len(stem.taps) >= 1
    assert sum(len(t.sites) for t in stem.taps) >= 2  # `left` and `right` read the same activation
    assert all((u >= 0).all() for u in scores.signals["wasserstein"])


def test_means_are_the_taps_means() -> None:
    model = build(Plain).eval()
    x, y = samples()
    scores = score(model, loader(x, y, 7))
    for path, dims in (("conv2", (0, 2, 3)), ("fc1", (0,)), ("fc2", (0,))):
        expected = inputs_of(model, path, x).mean(dims).numpy()
        np.testing.assert_allclose(scores.means[f"{path}:input"], expected, rtol=1e-9)


def test_paper_recipe_taps_the_layers_own_output() -> None:
    """R = |Σ a·∂L/∂a| at the convolution's output, before BatchNorm and ReLU."""
    model = build(Plain).eval()
    x, y = samples()
    scores = score(model, loader(x, y, 7), recipe="paper")
    assert scores.provenance["reduction"] == "signed"
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: object, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handle = model.conv1.register_forward_hook(keep)
    loss(model(x), y).backward()
    handle.remove()
    expected = (kept[0] * kept[0].grad).sum((0, 2, 3)).abs().detach().numpy()
    g = [group.name for group in scores.units.groups].index("conv1")
    np.testing.assert_allclose(scores.signals["taylor"][g], expected, rtol=1e-9)


@pytest.mark.parametrize("kind", [Plain, Branches])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plan_is_the_same_for_any_batch_size_and_backend(kind: type[nn.Module], dtype: torch.dtype) -> None:
    model = build(kind, dtype).eval()
    x, y = samples(60, dtype)
    units = fk.trace(model, x[:2], verify=False)
    plans = [
        score(model, loader(x, y, size), units=units, backend=backend).plan(keep_params=0.5)
        for size, backend in ((60, "auto"), (7, "auto"), (1, "auto"), (16, "reference"))
    ]
    for plan in plans[1:]:
        for a, b in zip(plans[0].groups, plan.groups, strict=True):
            assert np.array_equal(a.removed, b.removed), a.name


def test_repeated_scoring_gives_the_same_bits() -> None:
    model = build(Branches, torch.float32).eval()
    x, y = samples(40, torch.float32)
    units = fk.trace(model, x[:2], verify=False)
    first, second = (score(model, loader(x, y, 16), units=units) for _ in range(2))
    for name in ("wasserstein", "taylor"):
        for a, b in zip(first.signals[name], second.signals[name], strict=True):
            assert np.array_equal(a, b)


def test_memory_budget_takes_more_passes_and_gives_the_same_scores() -> None:
    model = build(Plain).eval()
    x, y = samples()
    units = fk.trace(model, x[:2], verify=False)
    whole = score(model, loader(x, y, 8), units=units, projections=32)
    assert whole.provenance["passes"] == 1
    largest = 3 * whole.provenance["sample_bytes"] // 4
    split = score(model, loader(x, y, 8), units=units, projections=32, memory_budget=largest)
    assert split.provenance["passes"] > 1
    assert split.provenance["sample_bytes"] <= largest < whole.provenance["sample_bytes"]
    for name in ("wasserstein", "taylor"):
        for a, b in zip(whole.signals[name], split.signals[name], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", [Plain, Branches])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("projections", [4, 16, 64])
def test_the_samples_take_what_was_predicted(kind: type[nn.Module], dtype: torch.dtype, projections: int) -> None:
    model = build(kind, dtype).eval()
    x, y = samples(60, dtype)
    scores = score(model, loader(x, y, 20), projections=projections, samples_per_class=10)
    predicted = scores.provenance["predicted_bytes"]
    assert scores.provenance["sample_bytes"] == predicted["samples"]
    taps = {tap.sites[0].module for group in scores.units.groups for tap in group.taps}
    assert predicted["layer"] == 2 * max(inputs_of(model, path, x[:20]).nbytes for path in taps)
    assert predicted["moments"] == 0


@pytest.mark.parametrize("most", [32, 10**6, 2**53 - 1])
@pytest.mark.parametrize("known", [True, False])
def test_no_more_room_is_taken_than_there_are_samples(most: int, known: bool) -> None:
    """A bound on the samples of a class is not their number."""
    model = build(Plain).eval()
    x, y = samples(30)
    units = fk.trace(model, x[:2], verify=False)
    data = loader(x, y, 8)
    expected = score(model, data, units=units, projections=32, samples_per_class=15)
    taken = expected.provenance["sample_bytes"]
    found = score(
        model, data if known else iter(data), units=units, projections=32, samples_per_class=most, memory_budget=taken
    )
    assert found.provenance["passes"] == 1
    assert found.provenance["sample_bytes"] == taken == found.provenance["predicted_bytes"]["samples"]
    for a, b in zip(expected.signals["wasserstein"], found.signals["wasserstein"], strict=True):
        np.testing.assert_array_equal(a, b)


def test_room_for_samples_that_come_class_after_class() -> None:
    model = build(Plain).eval()
    x, y = samples(30)
    order = y.argsort(stable=True)
    units = fk.trace(model, x[:2], verify=False)
    for most in (3, 10**6):
        found = score(model, loader(x[order], y[order], 4), units=units, projections=32, samples_per_class=most)
        assert found.provenance["sample_bytes"] == found.provenance["predicted_bytes"]["samples"]


def test_second_moments_take_what_was_predicted() -> None:
    model = build(Plain).eval()
    x, y = samples()
    scores = score(model, loader(x, y, 8), gram=True)
    assert scores.moments
    taken = sum(m.gram.nbytes + m.total.nbytes for m in scores.moments.values())
    assert scores.provenance["predicted_bytes"]["moments"] == taken


def test_a_pass_that_a_budget_splits_predicts_the_whole() -> None:
    model = build(Plain).eval()
    x, y = samples()
    units = fk.trace(model, x[:2], verify=False)
    whole = score(model, loader(x, y, 8), units=units, projections=32).provenance
    budget = 3 * whole["sample_bytes"] // 4
    split = score(model, loader(x, y, 8), units=units, projections=32, memory_budget=budget).provenance
    predicted = {name: size for name, size in split["predicted_bytes"].items() if name not in ("batch", "held")}
    assert predicted == whole["predicted_bytes"]
    assert split["sample_bytes"] < split["predicted_bytes"]["samples"]


def test_a_loader_that_runs_out_is_refused_only_when_a_second_pass_is_needed() -> None:
    model = build(Plain).eval()
    x, y = samples()
    units = fk.trace(model, x[:2], verify=False)
    fk.score(model, iter(loader(x, y, 8)), loss, units=units, projections=4, progress=False)
    with pytest.raises(fk.InputError, match="re-iterable"):
        fk.score(model, iter(loader(x, y, 8)), loss, units=units, projections=32, memory_budget=60_000, progress=False)
    with pytest.raises(fk.InputError, match="least that would do is 49,152"):
        fk.score(model, loader(x, y, 8), loss, units=units, projections=32, memory_budget=1000, progress=False)


def test_units_overwritten_after_they_were_read_are_scored_as_they_were() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            k = self.b(h)
            h.mul_(0.5)  # after `b` has read it
            return self.c(torch.tanh(k + h))

    torch.manual_seed(0)
    model = Overwrites().double().eval()
    x = torch.randn(12, 4, dtype=torch.float64)
    y = torch.arange(12) % 3
    scores = score(model, [(x, y)], reduction="signed")
    np.testing.assert_allclose(
        scores.means["b:input"], model.a(x).mean(0).detach().numpy(), rtol=1e-9, err_msg="before it was halved"
    )


def test_gradients_that_wait_for_each_other_give_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: several layers' sums in one call, none of them dropped."""
    model = build(Branches).eval()
    x, y = samples()
    batches = loader(x, y, 7)
    units = fk.trace(model, x[:2], verify=False)
    jobs: list[int] = []

    def counted(given: list, **options: object) -> list:
        jobs.append(len(given))
        return taylor_many(given, **options)

    monkeypatch.setattr(sums, "taylor_many", counted)
    expected = score(model, batches, units=units)
    one_by_one = list(jobs)
    jobs.clear()
    monkeypatch.setattr(sums, "AT_ONCE", ())
    actual = score(model, batches, units=units)
    assert sum(jobs) == sum(one_by_one)
    assert len(jobs) < len(one_by_one)
    for a, b in zip(expected.signals["taylor"], actual.signals["taylor"], strict=True):
        assert np.array_equal(a, b)
    for name, mean in expected.means.items():
        assert np.array_equal(mean, actual.means[name])
