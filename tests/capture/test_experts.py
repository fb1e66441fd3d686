"""U and R of fused experts against their definitions: an expert is silent for tokens that are not routed to it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

import fairkern as fk
from fairkern.capture import one_pass
from fairkern.capture.listener import Listener
from fairkern.capture.sums import TaylorStore
from fairkern.capture.together import Family
from fairkern.ops import directions
from fairkern.ops.eliminate.config import RIDGE
from tests.capture.networks import loader, loss
from tests.experts import (
    CHOSEN,
    CLASSES,
    EXPERTS,
    INNER,
    WIDTH,
    Chosen,
    Fused,
    Listed,
    Mixture,
    Sigmoid,
    build,
    samples,
)

P = 3


class TimeFirst(Mixture):
    """The same with tokens before samples while the experts run."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).transpose(0, 1)
        tokens = self.norm(x).reshape(-1, x.shape[-1])
        weights, index = self.router(tokens)
        return self.head((x + self.experts(tokens, index, weights).view(x.shape)).tanh().mean(0))


def score(model: nn.Module, batches: list, **options: object) -> fk.Scores:
    units = fk.trace(model, batches[0][0][:2], verify=False)
    return fk.score(model, batches, loss, units=units, progress=False, **{"projections": P, **options})


def of_kind(scores: fk.Scores, signal: str, kind: str) -> np.ndarray:
    (g,) = [g for g, group in enumerate(scores.units.groups) if group.kind == kind]
    return scores.signals[signal][g]


def heard(model: Mixture, x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Activation and its gradient, [samples, tokens, experts, n], of what lies in the experts and what they give.

    All experts run on all tokens, and zeros stand for those that a token is not sent to.
    """
    hidden = model.embed(x)
    tokens = model.norm(hidden)
    weights, index = model.router(tokens.reshape(-1, WIDTH))
    routing = torch.zeros(len(index), EXPERTS, dtype=x.dtype)
    for token, (experts, parts) in enumerate(zip(index, weights, strict=True)):
        routing[token, experts] = parts
    routing = routing.detach().view(*x.shape[:2], EXPERTS)
    routed = (routing > 0)[..., None]
    inner = torch.stack(
        [
            nn.functional.silu(gate) * up
            for gate, up in ((tokens @ w.T).chunk(2, dim=-1) for w in model.experts.gate_up_proj)
        ],
        dim=2,
    )
    inner = (inner * routed).detach().requires_grad_()
    made = torch.einsum("stei,ehi->steh", inner, model.experts.down_proj) * routing[..., None]
    output = made.detach().requires_grad_()
    found = {}
    for name, act, through in (("expert neuron", inner, made), ("expert", output, output)):
        result = model.head((hidden.detach() + through.sum(2)).tanh().mean(1))
        (gradient,) = torch.autograd.grad(loss(result, y) * len(x), act)
        found[name] = act.detach(), gradient
    return found


@pytest.mark.parametrize("reduction", ["signed", "per_sample"])
@pytest.mark.parametrize("kind", ["expert", "expert neuron"])
def test_r_is_the_taylor_term_of_every_token_routed_there(kind: str, reduction: str) -> None:
    model, (x, y) = build(), samples()
    act, gradient = heard(model, x, y)[kind]
    terms = act * gradient
    per_sample = terms.sum((1, 3)) if kind == "expert" else terms.sum(1).flatten(1)  # [samples, units]
    expected = per_sample.sum(0).abs() if reduction == "signed" else per_sample.abs().sum(0)
    found = of_kind(score(model, loader(x, y, 5), reduction=reduction), "taylor", kind)
    np.testing.assert_allclose(found, expected.detach() / len(x), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("directed", [P, 40])
@pytest.mark.parametrize("kind", ["expert", "expert neuron"])
def test_u_compares_classes_with_zeros_where_a_token_is_not_routed(kind: str, directed: int) -> None:
    """With fewer directions than tokens the rows are projected when they come, with more in the end."""
    model, (x, y) = build(), samples()
    act, _ = heard(model, x, y)[kind]
    values = act.permute(0, 2, 1, 3) if kind == "expert" else act.permute(0, 2, 3, 1).flatten(1, 2)
    if kind == "expert":  # a sign per token times a direction across the width
        tokens, width = values.shape[2:]
        signs = directions(tokens, directed, 1).sign().double() / tokens**0.5
        drawn = torch.einsum("tp,hp->thp", signs, directions(width, directed, 0).double()).flatten(0, 1)
        np.testing.assert_allclose(drawn.norm(dim=0), 1.0, rtol=1e-6)
    else:
        drawn = directions(values.flatten(2).shape[-1], directed, 0).double()
    projected = values.flatten(2) @ drawn
    expected = [
        max(
            np.mean([wasserstein_distance(unit[y == a, p], unit[y == b, p]) for p in range(directed)])
            for a, b in itertools.combinations(range(CLASSES), 2)
        )
        for unit in projected.transpose(0, 1)
    ]
    found = of_kind(score(model, loader(x, y, 5), projections=directed), "wasserstein", kind)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-14)


MODELS = {
    "softmax": build,
    "chosen, transposed, with bias": lambda: build(lambda: Fused(transposed=True, bias=True), Chosen),
    "sigmoid, shared expert": lambda: build(router=Sigmoid, shared=True),
    "residual stream cut": lambda: build(norm=False, shared=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_signed_r_is_weight_times_its_gradient(name: str) -> None:
    model, (x, y) = MODELS[name](), samples()
    scores = score(model, loader(x, y, 5), reduction="signed")
    loss(model(x), y).backward()
    parameters = dict(model.named_parameters())
    for g, group in enumerate(scores.units.groups):
        if group.kind == "expert" and "bias" in name:
            continue  # the bias of an expert belongs to what it gives, and to no weight that contracts
        expected = np.zeros(group.total)
        for tap in group.taps:
            at_tap = np.zeros(group.total)
            for weight in tap.weights:
                terms = parameters[weight.tensor] * parameters[weight.tensor].grad
                kept = (0, weight.dim) if group.sets > 1 else (weight.dim,)
                terms = terms.sum([d for d in range(terms.ndim) if d not in kept]).detach().numpy()
                positions = next(a for a in group.axes if a.axis == weight).positions
                at_tap += terms[..., positions].sum(-1).reshape(-1)
            expected += np.abs(at_tap)
        np.testing.assert_allclose(scores.signals["taylor"][g], expected, rtol=1e-9, atol=1e-14, err_msg=group.name)


@pytest.mark.parametrize("name", MODELS)
def test_scores_do_not_depend_on_batches(name: str) -> None:
    model, (x, y) = MODELS[name](), samples()
    one, other = (score(model, loader(x, y, size)) for size in (12, 1))
    for signal in one.signals:
        for a, b in zip(one.signals[signal], other.signals[signal], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-14)
    for tap, mean in one.means.items():
        np.testing.assert_allclose(mean, other.means[tap], rtol=1e-9, atol=1e-14, err_msg=tap)


def test_samples_are_found_where_tokens_come_first() -> None:
    (x, y), plain = samples(), build()
    turned = TimeFirst().double().eval()
    turned.load_state_dict(plain.state_dict())
    one, other = (score(model, loader(x, y, 6)) for model in (plain, turned))
    for signal in one.signals:
        for a, b in zip(one.signals[signal], other.signals[signal], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-14)


def test_an_expert_without_tokens_is_silent_and_not_missing() -> None:
    model, (x, y) = build(), samples()
    with torch.no_grad():
        model.router.weight[1] = 0
        model.router.weight[1, 0] = -100
        model.norm.bias[0] = 10  # the first feature is positive for every token
    scores = score(model, loader(x, y, 5))
    for signal in scores.signals.keys() - {"l1", "l2"}:  # which look at weights alone
        inner = of_kind(scores, signal, "expert neuron").reshape(EXPERTS, INNER)
        whole = of_kind(scores, signal, "expert")
        assert not inner[1].any()
        assert whole[1] == 0
        assert np.flatnonzero(whole).tolist() == np.flatnonzero(inner.any(axis=1)).tolist() != []


def test_a_small_budget_takes_more_passes_to_the_same_scores() -> None:
    model, (x, y) = build(), samples()
    one = score(model, loader(x, y, 5))
    other = score(model, loader(x, y, 5), memory_budget=one.provenance["sample_bytes"] // 3)
    assert other.provenance["passes"] > 1
    for a, b in zip(one.signals["wasserstein"], other.signals["wasserstein"], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("fails", [False, True])
def test_untouched(fails: bool) -> None:
    model, (x, y) = build(shared=True), samples()
    before = {path: dict(vars(m)) for path, m in model.named_modules()}
    expected = model(x)

    def stops(output: Tensor, targets: Tensor) -> Tensor:
        if fails:
            raise KeyboardInterrupt
        return loss(output, targets)

    units = fk.trace(model, x[:2])
    try:
        fk.score(model, loader(x, y, 5), stops, units=units, projections=P, progress=False)
    except KeyboardInterrupt:
        assert fails
    for path, module in model.named_modules():
        assert "forward" not in vars(module)
        assert vars(module).keys() == before[path].keys()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(model(x), expected)


def test_the_papers_recipe_says_that_experts_have_no_output_of_their_own() -> None:
    model, (x, y) = build(), samples()
    with pytest.raises(fk.InputError, match="has no output tap; use recipe='default'"):
        score(model, loader(x, y, 5), recipe="paper")


def test_residual_of_inner_units_is_the_fit_of_one_expert_and_of_experts_twice_what_they_add() -> None:
    """Against a ridge regression by numpy: the first unit of an expert to go, and what the loss is expected to rise by.

    Squared errors times squared gradients, both means over the tokens that the expert is given.
    """
    model, (x, y) = build(), samples()
    scores = score(model, loader(x, y, 5), gram=True)
    found = of_kind(scores, "residual", "expert neuron").reshape(EXPERTS, INNER)
    inner, output = (heard(model, x, y)[kind] for kind in ("expert neuron", "expert"))
    for e in range(EXPERTS):
        a, w = inner[0].flatten(0, 1)[:, e].numpy(), model.experts.down_proj[e].detach().numpy()
        given = int((a != 0).any(1).sum())
        square = a.T @ a + RIDGE * np.trace(a.T @ a) / INNER * np.eye(INNER)
        left = 1 / np.diag(np.linalg.inv(square))  # of each unit, told from all others
        gradient_power = float(inner[1][:, :, e].square().sum()) / given / np.sum(w**2)
        lost = left * (w**2).sum(0) * gradient_power / len(x)
        assert int(np.argmin(found[e])) == int(np.argmin(lost))
        np.testing.assert_allclose(found[e].min(), min(lost), rtol=1e-6)
        made, gradient = (t[:, :, e] for t in output)
        whole = float(made.square().sum() * gradient[made.ne(0).any(-1)].square().sum()) / given / made.shape[-1]
        np.testing.assert_allclose(of_kind(scores, "residual", "expert")[e], 2 * whole / len(x), rtol=1e-9)
    small = fk.apply(model, scores.plan(keep_params=0.7, removal="residual"), compensate="least_squares", scores=scores)
    assert torch.isfinite(small(x)).all()


def listed_like(fused: Mixture) -> Mixture:
    """The same experts as modules of a list."""
    model = Mixture(Listed).double().eval()
    state = {n: t for n, t in fused.state_dict().items() if not n.startswith("experts.")}
    for e, expert in enumerate(model.experts):
        gate, up = fused.experts.gate_up_proj[e].chunk(2)
        weights = {"gate_proj": gate, "up_proj": up, "down_proj": fused.experts.down_proj[e]}
        state |= {f"experts.{e}.{name}.weight": weight for name, weight in weights.items()}
        assert len(weights) == len(list(expert.parameters()))
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("idle", [False, True])
@pytest.mark.parametrize("size", [1, 5, 12])
def test_listed_experts_score_like_fused_ones(size: int, idle: bool) -> None:
    fused, (x, y) = build(), samples()
    if idle:
        with torch.no_grad():
            fused.router.weight[1] = 0
            fused.router.weight[1, 0] = -100
            fused.norm.bias[0] = 10
            fused.router.weight[[0, 2, 3], 0] = 0
    listed = listed_like(fused)
    assert torch.allclose(fused(x), listed(x), atol=1e-12)
    options = {"projections": P, "progress": False, "gram": True}
    expected = fk.score(fused, loader(x, y, size), loss, units=fk.trace(fused, x, verify=False), **options)
    found = fk.score(listed, loader(x, y, size), loss, units=fk.trace(listed, x, verify=False), **options)
    groups = [g for g, group in enumerate(found.units.groups) if group.name.startswith("experts.")]
    assert len(groups) == EXPERTS
    for signal in ("wasserstein", "taylor"):
        whole = of_kind(expected, signal, "expert neuron").reshape(EXPERTS, INNER)
        for g, row in zip(groups, whole, strict=True):
            np.testing.assert_allclose(found.signals[signal][g], row, rtol=1e-9, atol=1e-14)
    for e in range(EXPERTS):
        mean = expected.means[f"experts:inner[{e}]"]
        np.testing.assert_allclose(found.means[f"experts.{e}.down_proj:input"], mean, rtol=1e-9, atol=1e-14)
    small = fk.apply(listed, found.plan(keep_params=0.8), compensate="least_squares", scores=found)
    assert torch.isfinite(small(x)).all()


@pytest.mark.parametrize("experts", [Fused, Listed])
def test_the_samples_of_experts_take_what_was_predicted(experts: type[nn.Module]) -> None:
    model, (x, y) = build(experts), samples(12)
    scores = score(model, loader(x, y, 12), projections=2, samples_per_class=4, gram=True)
    predicted = scores.provenance["predicted_bytes"]
    assert scores.provenance["sample_bytes"] == predicted["samples"]
    assert sum(m.gram.nbytes + m.total.nbytes for m in scores.moments.values()) == predicted["moments"]


def test_the_experts_of_a_layer_are_added_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sum for a layer's neurons and one for what its experts give, in each batch; no expert by itself."""
    model, (x, y) = build(), samples()
    batches = loader(x, y, 5)
    plain, calls = TaylorStore.add_rows, list[tuple[int, int]]()

    def counted(self: TaylorStore, family: Family) -> None:
        calls.append((len(family.points), sum(family.rows)))
        plain(self, family)

    monkeypatch.setattr(TaylorStore, "add_rows", counted)
    score(model, batches)
    assert [points for points, _ in calls] == [EXPERTS] * (2 * len(batches))
    assert sum(rows for _, rows in calls) == 2 * x.shape[0] * x.shape[1] * CHOSEN


def test_no_zeros_are_kept_for_tokens_that_an_expert_was_not_given() -> None:
    model, (x, y) = build(), samples()
    directed, tokens = 40, x.shape[0] * x.shape[1]
    scores = score(model, loader(x, y, 5), projections=directed)
    (_, whole) = (heard(model, x, y)[kind][0] for kind in ("expert neuron", "expert"))
    other = len(x) * 8 * sum(g.units for g in scores.units.groups if g.kind not in ("expert", "expert neuron"))
    rows, projected = tokens * CHOSEN * (INNER + 1) * 8, len(x) * whole.shape[2] * directed * 8
    assert scores.provenance["sample_bytes"] == rows + projected + other


@pytest.mark.parametrize("first", [0, 1, 2])
def test_experts_of_a_layer_need_not_be_heard_together_in_every_batch(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole layers, each expert alone, and none as rows, in turn from batch to batch: to the bit the same U."""
    model, (x, y) = build(), samples()
    batches = loader(x, y, 2)
    expected, calls, plain = score(model, batches, projections=40), list[int](), one_pass.families

    def in_turn(listener: Listener, layouts: Mapping, points: Collection, *, alone: bool) -> list[Family]:
        calls.append(0)
        turn = (len(calls) - 1 + first) % 3
        found = [] if turn == 2 else plain(listener, layouts, points, alone=turn == 1)
        return found[::-1]

    monkeypatch.setattr(one_pass, "families", in_turn)
    found = score(model, batches, projections=40)
    assert len(calls) == len(batches) >= 6
    for own, values in zip(found.signals["wasserstein"], expected.signals["wasserstein"], strict=True):
        np.testing.assert_array_equal(own, values)


def test_without_classes_the_rest_of_the_scores_is_the_same() -> None:
    model, (x, y) = build(), samples()
    expected, found = score(model, loader(x, y, 5)), score(model, loader(x, y, 5), class_of=False)
    assert "wasserstein" not in found.signals
    for own, values in zip(found.signals["taylor"], expected.signals["taylor"], strict=True):
        np.testing.assert_array_equal(own, values)


class Again(Chosen):
    """Sends some tokens to the same expert twice, with a weight each."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = super().forward(x)
        first = index[:, :1]
        return weights, torch.cat([first, torch.where(x[:, :1] > 0, first, index[:, 1:])], 1)


class Added(Listed):
    """Experts that are given a token as often as it is sent to them."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        out = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            tokens, slots = torch.where(top_k_index == number)
            out = out.index_add(0, tokens, expert(hidden_states[tokens]) * top_k_weights[tokens, slots, None])
        return out


class Once(Listed):
    """The same, each token once with the sum of its weights."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        out = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            chosen = top_k_index == number
            (tokens,) = torch.where(chosen.any(1))
            weights = (chosen * top_k_weights).sum(1, keepdim=True)
            out = out.index_add(0, tokens, expert(hidden_states[tokens]) * weights[tokens])
        return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"projections": 64},
        {"reduction": "signed"},
        {"reduction": "per_class"},
        {"memory_budget": 10**6},
        {"class_of": lambda batch: (batch[0][..., 0] > 0).long()},
    ],
    ids=["few directions", "places", "signed", "by class", "a budget", "classes of tokens"],
)
def test_a_token_that_one_expert_is_given_twice_counts_as_one_with_both_weights(options: dict) -> None:
    once, twice = build(Once, Again), build(Added, Again)
    twice.load_state_dict(once.state_dict())
    batches = loader(*samples(), 4)
    expected, found = score(once, batches, **options), score(twice, batches, **options)
    assert {group.kind for group in found.units.groups if group.frozen is None} == {"neuron"}
    for signal in ("wasserstein", "taylor"):
        for own, values in zip(found.signals[signal], expected.signals[signal], strict=True):
            np.testing.assert_allclose(own, values, rtol=1e-9, atol=1e-12)
    for name, mean in expected.means.items():
        np.testing.assert_allclose(found.means[name], mean, rtol=1e-9, atol=1e-12)
