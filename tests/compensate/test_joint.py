"""All layers fitted together, against divergences written down by hand and fits made by other means."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.compensate.divergence import Divergence, Loss
from fairkern.compensate.layers import DAMPING, Layer, layers_of, listened
from fairkern.plans.build import build
from tests.axes.harness import Net
from tests.compensate.test_corrections import Y, double, scored
from tests.compensate.test_refit import chain

TARGETS = torch.arange(48) % 3


def halves(x: Tensor, y: Any = TARGETS, at: int = 20) -> list[tuple[Tensor, Any]]:
    return [(x[:at], y[:at]), (x[at:], y[at:])]


def changed(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for i, p in enumerate(other.parameters()):
            p += 0.1 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(i))
    return other


def kullback_leibler(before: Tensor, now: Tensor) -> Tensor:
    p = before.softmax(-1)
    return (p * (before.log_softmax(-1) - now.log_softmax(-1))).sum(-1).mean()


def half_square(before: Tensor, now: Tensor) -> Tensor:
    return (before - now).square().mean()


def bernoulli(before: Tensor, now: Tensor) -> Tensor:
    p, q = before.sigmoid(), now.sigmoid()
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()


LOSSES: dict[str, tuple[Callable[..., Tensor], Any, Callable[[Tensor, Tensor], Tensor]]] = {
    "cross-entropy": (F.cross_entropy, TARGETS, kullback_leibler),
    "cross-entropy, other labels": (F.cross_entropy, (TARGETS + 1) % 3, kullback_leibler),
    "label smoothing": (lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2), TARGETS, kullback_leibler),
    "squared error": (F.mse_loss, torch.randn(48, 3, dtype=torch.float64), half_square),
    "binary": (F.binary_cross_entropy_with_logits, torch.rand(48, 3, dtype=torch.float64), bernoulli),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_divergence_is_the_losss_own_and_targets_cancel(name: str) -> None:
    function, targets, by_hand = LOSSES[name]
    model, x = chain()
    small = changed(model)
    held = list(small.parameters())
    divergence = Divergence(model, small, halves(x, targets), Loss(function))
    value, gradient = divergence(held)
    wanted = by_hand(model(x).detach(), small(x))
    assert value == pytest.approx(float(wanted.detach()), rel=1e-9)
    for ours, theirs in zip(gradient, torch.autograd.grad(wanted, held), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def test_positions_that_the_loss_ignores_count_for_nothing() -> None:
    model, x = chain()
    small = changed(model)
    ignoring = torch.where(torch.arange(48) % 4 == 0, -100, TARGETS)
    value, _ = Divergence(model, small, [(x, ignoring)], Loss(F.cross_entropy))(list(small.parameters()))
    counted = ignoring >= 0
    assert value == pytest.approx(float(kullback_leibler(model(x)[counted], small(x)[counted]).detach()), rel=1e-9)


def test_summed_losses_and_batches_of_other_sizes_give_the_same() -> None:
    model, x = chain()
    small = changed(model)
    held = list(small.parameters())
    whole, _ = Divergence(model, small, [(x, TARGETS)], Loss(F.cross_entropy))(held)
    summed = Loss(lambda z, y: F.cross_entropy(z, y, reduction="sum"), mean=False)
    for found in (
        Divergence(model, small, halves(x), Loss(F.cross_entropy))(held)[0],
        Divergence(model, small, halves(x, at=47), summed)(held)[0],
    ):
        assert found == pytest.approx(whole, rel=1e-9)


class Talking(nn.Module):
    """Gives its loss itself, and with it a state that its logits are made from."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        state = torch.relu(self.a(x))
        logits = self.b(state)
        found = {"state": state, "logits": logits, "again": logits}
        return found if labels is None else {"loss": F.cross_entropy(logits, labels), **found}


def test_a_models_own_loss_is_met_at_what_it_is_made_from_last() -> None:
    torch.manual_seed(0)
    model = Talking().double()
    small = changed(model)
    x = torch.randn(48, 5, dtype=torch.float64)
    divergence = Divergence(model, small, [{"x": x, "labels": TARGETS}], Loss())
    wanted = kullback_leibler(model(x)["logits"], small(x)["logits"])
    assert divergence(list(small.parameters()))[0] == pytest.approx(float(wanted.detach()), rel=1e-9)


def test_a_linear_model_gets_its_least_squares() -> None:
    """One layer reads what is left; nothing lies behind it, and the squared error is a parabola."""
    torch.manual_seed(0)
    model = double(Net(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(5, 9), b=nn.Linear(9, 3)))
    x = torch.randn(48, 5, dtype=torch.float64)
    scores = scored(model, x)
    plan = build(scores.units, [np.array([0, 4, 7, 8])])
    start = fk.apply(model, plan, compensate="sequential", scores=scores, loader=[(x, Y)])
    small = fk.apply(model, plan, compensate="joint", scores=scores, loader=[(x, Y)], loss_fn=lambda z, y: (z**2).sum())
    best = np.linalg.lstsq(
        np.hstack([torch.relu(start.a(x)).detach().numpy(), np.ones((48, 1))]), model(x).detach().numpy(), rcond=None
    )[1].sum()
    left = float((small(x) - model(x)).square().sum())
    assert left < best  # the first layer gives way as well
    assert left < float((start(x) - model(x)).square().sum())


def curvature_by_hand(layer: Layer, weight: Tensor) -> Tensor:
    """`weight (C + ridge)⁻¹` for a layer without groups, the input in front."""
    mean = layer.moments[0] / layer.positions
    ridge = DAMPING * mean.diagonal().mean() * torch.eye(len(mean), dtype=torch.float64)
    inner = 0 if getattr(layer.module, "transposed", False) else 1
    return torch.tensordot(weight, torch.linalg.inv(mean + ridge), ([inner], [0])).movedim(-1, inner)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(6, 4), (7, 3, 6)),
        (nn.Conv1d(6, 4, 3), (5, 6, 9)),
        (nn.Conv2d(6, 4, 3, groups=2), (5, 6, 4, 5)),
        (nn.Conv2d(6, 6, 3, groups=6), (5, 6, 4, 5)),
        (nn.ConvTranspose2d(6, 4, 2), (5, 6, 4, 5)),
        (nn.ConvTranspose2d(6, 4, 2, groups=2), (5, 6, 4, 5)),
        (nn.Conv1d(6, 4, 3), (6, 9)),  # without a batch
    ],
    ids=str,
)
def test_a_layers_curvature_is_that_of_its_groups_alone(module: nn.Module, shape: tuple[int, ...]) -> None:
    module = module.double()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = Layer(module)
    with listened([layer]):
        module(x).square().sum().backward()
    weight = torch.randn(module.weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bias = torch.ones_like(module.bias)
    ours, ours_bias = layer.scaled([weight, bias], samples=1)
    outputs = module(x)
    power = float((2 * outputs).square().sum()) / (outputs.numel() // max(outputs[0, ..., 0].numel(), 1) and len(bias))
    torch.testing.assert_close(ours_bias * power, bias)
    groups = getattr(module, "groups", 1)
    if groups == 1:
        torch.testing.assert_close(ours * power, curvature_by_hand(layer, weight))
        return
    transposed = module.transposed
    parts = weight.chunk(groups, 0)
    for g, part in enumerate(parts):
        mean = layer.moments[g] / layer.positions
        ridge = DAMPING * mean.diagonal().mean() * torch.eye(len(mean), dtype=torch.float64)
        wanted = torch.tensordot(part, torch.linalg.inv(mean + ridge), ([0 if transposed else 1], [0]))
        rows = slice(g * len(part), (g + 1) * len(part))
        torch.testing.assert_close(ours[rows] * power, wanted.movedim(-1, 0 if transposed else 1))


def test_second_moments_are_those_of_what_is_read() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2).double()
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    layer = Layer(conv)
    with listened([layer]), torch.no_grad():
        conv(x)
        conv(x[:1])
    rows = torch.cat([x, x[:1]]).movedim(1, -1).reshape(-1, 4)
    for g in range(2):
        own = rows[:, 2 * g : 2 * g + 2]
        torch.testing.assert_close(layer.moments[g], own.T @ own)
    assert layer.positions == len(rows)


class Tied(nn.Module):
    """Its head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.down(torch.relu(self.up(x))))


def of_tokens() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    ids = torch.randint(0, 11, (24, 7), generator=torch.Generator().manual_seed(0))
    model = Tied().eval()
    with torch.no_grad():
        for p in model.parameters():
            p *= 3
    return model.double(), [(part[:, :-1], part[:, 1:]) for part in ids.split(8)]


def next_token(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), ids.flatten())


def test_prune_says_what_it_came_to_and_leaves_tied_weights_alone() -> None:
    model, loader = of_tokens()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    small, report = fk.prune(model, loader, next_token, keep_params=0.7, compensate="joint", progress=False)
    assert report.choices["compensation"] == "joint"
    apart, left = report.choices["divergence"]
    assert 0 < left < 0.7 * apart
    held = float(sum(kullback_leibler(model(x), small(x)) * len(x) for x, _ in loader) / sum(len(x) for x, _ in loader))
    assert held == pytest.approx(left, rel=1e-6)
    assert small.head.weight is small.embed.weight
    assert torch.equal(small.head.weight, before["embed.weight"])
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for net in (model, small) for p in net.parameters())
    assert not any(m._forward_hooks for net in (model, small) for m in net.modules())


def test_it_is_the_same_every_time_and_labels_do_not_count() -> None:
    model, loader = of_tokens()
    options: dict[str, Any] = {"keep_params": 0.7, "compensate": "joint", "progress": False}
    once, again = (fk.prune(model, loader, next_token, **options)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), again.state_dict().values(), strict=True))
    scores = fk.score(model, loader, next_token, class_of=False, gram=True, progress=False)
    plan = scores.plan(keep_params=0.7)
    others = [(x, (y + 3) % 11) for x, y in loader]
    one, two = (
        fk.apply(model, plan, compensate="joint", scores=scores, loader=data, loss_fn=next_token)
        for data in (loader, others)
    )
    x = loader[0][0]
    torch.testing.assert_close(one(x), two(x), rtol=0, atol=1e-6)


def test_several_steps_are_fitted_to_the_whole_model() -> None:
    model, loader = of_tokens()
    options: dict[str, Any] = {"keep_params": 0.7, "compensate": "joint", "progress": False}
    small, report = fk.prune(model, loader, next_token, iterations=2, **options)
    held = sum(kullback_leibler(model(x), small(x)) * len(x) for x, _ in loader) / sum(len(x) for x, _ in loader)
    assert float(held) == pytest.approx(report.choices["divergence"][1], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, loader = of_tokens()
    model.to(dtype)
    small, report = fk.prune(
        model, loader, lambda z, y: next_token(z.float(), y), keep_params=0.7, compensate="joint", progress=False
    )
    assert {p.dtype for p in small.parameters()} == {dtype}
    apart, left = report.choices["divergence"]
    assert left < apart


def test_modules_that_do_not_run_stay() -> None:
    model = double(Net(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(5, 9), b=nn.Linear(9, 3), c=nn.Linear(4, 4)))
    x = torch.randn(48, 5, dtype=torch.float64)
    scores = fk.score(model, [(x, TARGETS)], F.cross_entropy, gram=True, progress=False)
    plan = scores.plan(keep_params=0.8)
    small = fk.apply(model, plan, compensate="joint", scores=scores, loader=[(x, TARGETS)], loss_fn=F.cross_entropy)
    assert torch.equal(small.c.weight, model.c.weight)
    assert not torch.equal(small.b.weight, fk.apply(model, plan).b.weight)


def test_a_model_that_loses_nothing_stays_what_it_is() -> None:
    model, x = chain()
    scores = scored(model, x)
    plan = build(scores.units, [np.zeros(0, np.int64)] * 2)
    loader = [(x, TARGETS)]
    small = fk.apply(model, plan, compensate="joint", scores=scores, loader=loader, loss_fn=F.cross_entropy)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), model.parameters(), strict=True))


def test_weights_that_are_shared_or_computed_are_none_of_them() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"one": shared, "two": nn.Linear(4, 4, bias=False), "three": nn.Linear(4, 4)})
    model["three"].weight = model["one"].weight
    nn.utils.parametrizations.weight_norm(model["two"])
    assert layers_of(model, set()) == {}
    model["three"].weight = nn.Parameter(torch.ones(4, 4))
    assert set(layers_of(model, set())) == {"one", "three"}
    assert set(layers_of(model, {"one.weight"})) == {"three"}


def bad(name: str) -> tuple[dict[str, Any], str]:
    x = chain()[1]
    loader = [(x, TARGETS)]
    given: dict[str, tuple[dict[str, Any], str]] = {
        "no loader": ({"loss_fn": F.cross_entropy}, "needs a loader"),
        "an iterator": ({"loader": iter(loader), "loss_fn": F.cross_entropy}, "iterated once only"),
        "in place": ({"loader": loader, "loss_fn": F.cross_entropy, "inplace": True}, "inplace=True"),
        "nothing": ({"loader": [], "loss_fn": F.cross_entropy}, "yields no batch"),
        "no loss": ({"loader": loader}, "gives no loss"),
        "a constant": ({"loader": loader, "loss_fn": lambda z, y: torch.zeros(())}, "not made from any tensor"),
        "not convex": ({"loader": loader, "loss_fn": lambda z, y: -z.square().sum()}, "not convex"),
        "no function": ({"loader": loader, "loss_fn": 3}, "a function of output and targets"),
    }
    return given[name]


@pytest.mark.parametrize(
    "name",
    ["no loader", "an iterator", "in place", "nothing", "no loss", "a constant", "not convex", "no function"],
)
def test_what_is_missing_is_said(name: str) -> None:
    model, x = chain()
    scores = scored(model, x)
    plan = scores.plan(keep_params=0.6)
    options, message = bad(name)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(fk.InputError, match=message):
        fk.apply(model, plan, compensate="joint", scores=scores, **options)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_loss_that_is_linear_has_nothing_to_say() -> None:
    """Its slope says all of it, so that no cut is far away by it."""
    model, x = chain()
    scores = scored(model, x)
    with pytest.raises(fk.InputError, match="linear"):
        fk.apply(
            model,
            scores.plan(keep_params=0.6),
            compensate="joint",
            scores=scores,
            loader=[(x, Y)],
            loss_fn=lambda z, y: z.sum(),
        )


def test_outputs_of_other_shapes_are_refused() -> None:
    net, x = chain()
    small = Net(lambda m, x: m.c(x)[:-1], c=nn.Linear(5, 3)).double()
    divergence = Divergence(net, small, [(x, TARGETS)], Loss(lambda z, y: F.cross_entropy(z, y[: len(z)])))
    with pytest.raises(fk.InputError, match="chosen by its values"):
        divergence(list(small.parameters()))


def test_a_language_model_of_transformers_by_its_own_loss() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).double().eval()
    ids = torch.randint(0, 40, (16, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::3, :4] = 0
    labels = ids.masked_fill(mask == 0, -100)
    rows = [t.split(8) for t in (ids, mask, labels)]
    loader = [{"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in zip(*rows, strict=True)]
    small, report = fk.prune(model, loader, keep_params=0.75, compensate="joint", progress=False)
    held = 0.0
    with torch.no_grad():
        for batch in loader:
            counted = batch["labels"][:, 1:] >= 0
            before, now = (net(**batch).logits[:, :-1][counted] for net in (model, small))
            held += float(kullback_leibler(before, now)) / len(loader)
    apart, left = report.choices["divergence"]
    assert held == pytest.approx(left, rel=1e-3)  # the model's own loss is one of logits in float32
    assert left < 0.5 * apart
