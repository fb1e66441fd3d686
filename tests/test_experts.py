"""Mixtures of experts: what a trace finds, exactness against the definition written out, limits, bookkeeping, files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build as plan_of
from fairkern.plans.removals import random_removal
from fairkern.prove import difference
from fairkern.types import IndexArray, Plan, Silence, UnitMap
from tests.axes.harness import measured_flops
from tests.experts import CHOSEN, EXPERTS, INNER, Chosen, Fused, Listed, Mixture, Sigmoid, Softmax, build, samples

LIMIT = 1e-9
LAYOUTS = {
    "gated": Fused,
    "transposed, with bias": partial(Fused, transposed=True, bias=True),
    "not gated": partial(Fused, gated=False),
    "with bias": partial(Fused, bias=True),
}
ROUTERS: dict[str, Callable[[], nn.Module]] = {"softmax": Softmax, "sigmoid": Sigmoid, "softmax of the chosen": Chosen}
MIXTURES = {
    f"{layout}, {router}": partial(build, LAYOUTS[layout], ROUTERS[router])
    for layout, router in [("gated", r) for r in ROUTERS] + [(x, "softmax of the chosen") for x in LAYOUTS]
} | {
    "a residual stream that can be cut": partial(build, norm=False, shared=True),
    "a shared expert": partial(build, shared=True),
}


def written_out(model: Mixture, x: Tensor, gone: Sequence[int], silent: IndexArray | None) -> Tensor:
    """The model token by token, with experts that cannot be chosen and, per expert, inner units that are silent."""
    hidden = model.embed(x)
    tokens = model.norm(hidden).reshape(-1, hidden.shape[-1])
    rows = []
    for token in tokens:
        logits = token @ (model.router.gate.weight if isinstance(model.router, Chosen) else model.router.weight).T
        if isinstance(model.router, Chosen):
            logits = logits + model.router.gate.bias
        stays = [e for e in range(EXPERTS) if e not in gone]
        if isinstance(model.router, Sigmoid):
            score = logits.sigmoid()
            chosen = sorted(stays, key=lambda e: -float(score[e] + model.router.e_score_correction_bias[e]))[:CHOSEN]
            weights = score[chosen] / score[chosen].sum() * 1.5
        else:  # the softmax over all that stay, renormalised, is the softmax over the chosen
            chosen = sorted(stays, key=lambda e: -float(logits[e]))[:CHOSEN]
            weights = logits[chosen].softmax(0)
        out = torch.zeros_like(token)
        for expert, weight in zip(chosen, weights, strict=True):
            out = out + weight * _expert(model.experts, expert, token, None if silent is None else silent[expert])
        if model.shared is not None:
            out = out + model.shared_gate(token).sigmoid() * model.shared(token)
        rows.append(out)
    return model.head((hidden + torch.stack(rows).view(hidden.shape)).tanh().mean(1))


def _expert(experts: Fused, e: int, token: Tensor, silent: Any) -> Tensor:
    up, down = getattr(experts, experts.up)[e], experts.down_proj[e]
    if experts.is_transposed:
        up, down = up.T, down.T
    bias = hasattr(experts, "down_proj_bias")
    made = up @ token + (getattr(experts, f"{experts.up}_bias")[e] if bias else 0)
    made = experts.act_fn(made[:INNER]) * made[INNER:] if experts.gated else experts.act_fn(made)
    if silent is not None:
        made = made.clone()
        made[torch.as_tensor(silent)] = 0
    return down @ made + (experts.down_proj_bias[e] if bias else 0)


def the(units: UnitMap, kind: str) -> int:
    (g,) = [i for i, group in enumerate(units.groups) if group.kind == kind]
    return g


def nothing(units: UnitMap) -> list[IndexArray]:
    return [np.zeros(0, dtype=np.int64) for _ in units.groups]


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_and_their_inner_units_are_found(name: str) -> None:
    units = fk.trace(MIXTURES[name](), samples()[0])
    whole, inner = units.groups[the(units, "expert")], units.groups[the(units, "expert neuron")]
    assert (whole.units, whole.sets, whole.least, whole.frozen) == (EXPERTS, 1, CHOSEN, None)
    assert (inner.units, inner.sets, inner.least, inner.frozen) == (INNER, EXPERTS, 1, None)
    assert {str(a.axis) for a in whole.axes if a.silence is Silence.MINUS_INFINITY} <= {
        "router.weight:0",
        "router.gate.weight:0",
    }
    assert whole.name == "experts"
    assert inner.total == EXPERTS * INNER
    assert f"{EXPERTS} × {INNER}" in units.explain()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("name", MIXTURES)
def test_cut_equals_masked(name: str, fraction: float) -> None:
    model, x = MIXTURES[name](), samples()[0]
    units = fk.trace(model, x, verify=False)
    plan = plan_of(units, random_removal(units, fraction, seed=1))
    small = fk.apply(model, plan)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with fk.Plan(**vars(plan)).masked(model):
        assert difference(model, small, x) < LIMIT
    assert difference(model, small, x) > 1e-6, "nothing was removed"
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert sum(p.numel() for p in small.parameters()) == plan.result["params_after"]
    assert {len(p) for n, p in small.experts.named_parameters()} == {small.experts.num_experts}
    assert small.experts.down_proj.shape[1 if small.experts.is_transposed else 2] == small.experts.intermediate_dim


@pytest.mark.parametrize("name", [n for n in MIXTURES if "residual" not in n])
@pytest.mark.parametrize("kinds", [("expert",), ("expert neuron",), ("expert", "expert neuron")])
def test_cut_equals_the_definition(name: str, kinds: tuple[str, ...]) -> None:
    """The definition is written out above and looks at no plan: sets of experts and of inner units compose."""
    model, (x, _) = MIXTURES[name](), samples(3)
    units = fk.trace(model, x, verify=False)
    removed = nothing(units)
    silent = np.array([[0, 3], [1, 2], [0, 1], [3, 4]])
    gone = [1] if "expert" in kinds else []
    if "expert" in kinds:
        removed[the(units, "expert")] = np.array(gone)
    if "expert neuron" in kinds:
        removed[the(units, "expert neuron")] = silent
    small = fk.apply(model, plan_of(units, removed))
    with torch.no_grad():
        expected = written_out(model, x, gone, silent if "expert neuron" in kinds else None)
        assert (small(x) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", MIXTURES)
def test_costs_are_those_of_the_experts_that_a_token_is_sent_to(name: str) -> None:
    model, x = MIXTURES[name](), samples()[0]
    units = fk.trace(model, x, verify=False)
    plan = plan_of(units, random_removal(units, 0.5, seed=1))
    for net, when in ((model, "before"), (fk.apply(model, plan), "after")):
        assert plan.result[f"flops_{when}"] == measured_flops(net, x)
        assert plan.result[f"params_{when}"] == sum(p.numel() for p in net.parameters())


def test_pictures_show_sets(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, (x, y) = build(shared=True), samples()
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), progress=False)
    fk.picture(scores, scores.plan(keep_params=0.6), tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 10_000


def test_as_many_experts_stay_as_a_token_is_sent_to() -> None:
    model, x = build(), samples()[0]
    units = fk.trace(model, x)
    g = the(units, "expert")
    removed = nothing(units)
    removed[g] = np.arange(EXPERTS - CHOSEN)
    small = fk.apply(model, plan_of(units, removed))
    assert len(small.experts.down_proj) == CHOSEN
    removed[g] = np.arange(EXPERTS - CHOSEN + 1)
    with pytest.raises(fk.InputError, match=r"3 of the 4 units .* at least 2 must stay"):
        plan_of(units, removed)


def test_no_expert_goes_where_all_are_needed() -> None:
    class Dense(Softmax):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.weight.new_tensor(0) + (x @ self.weight.T).softmax(-1).topk(EXPERTS).values, (
                (x @ self.weight.T).softmax(-1).topk(EXPERTS).indices
            )

    units = fk.trace(build(router=Dense), samples()[0])
    assert units.groups[the(units, "expert")].frozen == "all of them are needed: 4 a token"
    assert units.groups[the(units, "expert neuron")].frozen is None


class Squashed(Softmax):
    """tanh turns a logit of −inf into −1: silencing is not removing."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = torch.tanh(x @ self.weight.T).softmax(-1).topk(CHOSEN, dim=-1)
        return weights, index


class Normed(Softmax):
    """The mean of the logits changes with an expert that goes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = x @ self.weight.T
        weights, index = (logits - logits.mean(-1, keepdim=True)).sigmoid().topk(CHOSEN, dim=-1)
        return weights, index


class Sorted(Softmax):
    """Experts chosen by a sort."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = (x @ self.weight.T).softmax(-1).sort(-1, descending=True)
        return weights[:, :CHOSEN], index[:, :CHOSEN]


class Grouped(Softmax):
    """Experts in two groups, of which the better one is used."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = (x @ self.weight.T).sigmoid()
        best = scores.view(-1, 2, EXPERTS // 2).sum(-1).topk(1, dim=-1).indices
        mask = torch.zeros_like(scores.view(-1, 2, EXPERTS // 2)[..., 0]).scatter(1, best, 1.0)
        mask = mask.unsqueeze(-1).expand(-1, 2, EXPERTS // 2).reshape(-1, EXPERTS)
        weights, index = scores.masked_fill(mask == 0, 0.0).topk(CHOSEN, dim=-1)
        return weights, index


@pytest.mark.parametrize("router", [Squashed, Normed, Sorted, Grouped])
def test_routers_that_do_not_let_an_expert_go_freeze_experts_alone(router: type[Softmax]) -> None:
    model, x = build(router=router), samples()[0]
    units = fk.trace(model, x)
    whole = [g.frozen for g in units.groups if g.kind == "expert"]
    assert all(whole) if whole else any(f.axis.tensor == "router.weight" and f.axis.dim == 0 for f in units.frozen)
    assert units.groups[the(units, "expert neuron")].frozen is None
    plan = plan_of(units, random_removal(units, 0.7, seed=0))
    with fk.Plan(**vars(plan)).masked(model):
        assert difference(model, fk.apply(model, plan), x) < LIMIT


def test_what_only_looks_like_fused_experts_is_not_taken_for_them() -> None:
    class Twice(Fused):
        def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
            return 2 * super().forward(hidden_states, top_k_index, top_k_weights)

    units = fk.trace(build(Twice, shared=True), samples()[0])
    assert "experts looks like fused experts and computes something else" in units.notes
    assert {g.kind for g in units.groups} == {"neuron"}


def test_experts_without_values_are_traced() -> None:
    """Routing depends on values, which the meta device has none of; the trace runs every expert on every token."""
    model, x = build(shared=True), samples()[0]
    expected = fk.trace(model, x, verify=False)
    found = fk.trace(build(shared=True).to("meta"), x.to("meta"), verify=False)
    assert found.explain() == expected.explain()


def test_a_vector_shared_by_the_experts_makes_one_set_of_their_inner_units() -> None:
    class Scaled(Fused):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(INNER) + 0.5)

        def _apply_gate(self, x: Tensor) -> Tensor:
            gate, up = x.chunk(2, dim=-1)
            return self.act_fn(gate) * up * self.scale

        def one(self, expert: int, x: Tensor) -> Tensor:
            return self._apply_gate(x @ self.gate_up_proj[expert].T) @ self.down_proj[expert].T

    model, (x, y) = build(Scaled), samples()
    units = fk.trace(model, x)
    (inner,) = [g for g in units.groups if any(a.axis.tensor == "experts.scale" for a in g.axes)]
    assert (inner.sets, inner.units, inner.frozen) == (1, INNER, None)
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), units=units, progress=False)
    small = fk.apply(model, plan := scores.plan(keep_params=0.8))
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT


def test_masks_leave_the_model_and_other_models_alone() -> None:
    model, other, x = build(), build(seed=1), samples()[0]
    units = fk.trace(model, x)
    plan = fk.Plan(**vars(plan_of(units, random_removal(units, 0.7, seed=0))))
    with torch.no_grad():
        before, elsewhere = model(x), other(x)
        with plan.masked(model):
            assert not torch.allclose(model(x), before)
            assert torch.equal(other(x), elsewhere)
        assert torch.equal(model(x), before)
        with pytest.raises(RuntimeError), plan.masked(model):
            model(x[..., :3])
        assert torch.equal(model(x), before)


def test_masked_routers_pass_gradients_to_the_experts_that_stay() -> None:
    model, (x, y) = build(), samples()
    units = fk.trace(model, x)
    removed = nothing(units)
    removed[the(units, "expert")] = np.array([2])
    plan = plan_of(units, removed)
    small = fk.apply(model, plan)
    nn.functional.cross_entropy(small(x), y).backward()
    with fk.Plan(**vars(plan)).masked(model):
        nn.functional.cross_entropy(model(x), y).backward()
    stays = [0, 1, 3]
    torch.testing.assert_close(model.router.weight.grad[stays], small.router.weight.grad)
    torch.testing.assert_close(model.experts.gate_up_proj.grad[stays], small.experts.gate_up_proj.grad)
    assert not model.router.weight.grad[2].any()


def test_plans_scores_and_models_come_back_from_files(tmp_path: Path) -> None:
    model, (x, y) = build(shared=True), samples()
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), progress=False)
    scores.save(tmp_path / "scores")
    again = fk.Scores.load(tmp_path / "scores")
    for a, b in zip(scores.units.groups, again.units.groups, strict=True):
        assert (a.sets, a.least, [x.silence for x in a.axes]) == (b.sets, b.least, [x.silence for x in b.axes])
    plan = scores.plan(keep_params=0.5)
    plan.save(tmp_path / "plan")
    assert same_plan(plan, again.plan(keep_params=0.5))
    assert same_plan(plan, fk.Plan.load(tmp_path / "plan"))
    small = fk.apply(model, plan)
    fk.save_pruned(small, plan, tmp_path / "small")
    loaded = fk.load_pruned(build(shared=True, seed=5), tmp_path / "small")
    assert difference(small, loaded, x) == 0
    assert loaded.experts.num_experts == len(loaded.experts.down_proj)


def same_plan(a: Plan, b: Plan) -> bool:
    pairs = [*zip(a.groups, b.groups, strict=True), *zip(a.axes, b.axes, strict=True)]
    return all(np.array_equal(p.removed, q.removed) and vars(p).keys() == vars(q).keys() for p, q in pairs)


def test_one_removal_count_for_all_sets_at_the_tolerance_of_their_overlaps() -> None:
    """ToD of a group with sets: overlaps counted within each set, summed, over k · sets."""
    model, (x, y) = build(), samples()
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), progress=False)
    g = the(scores.units, "expert neuron")
    u, r = (scores.signals[s][g].reshape(EXPERTS, INNER) for s in ("wasserstein", "taylor"))
    curve = []
    for k in range(1, INNER + 1):
        low = [set(np.argsort(row, kind="stable")[:k].tolist()) for row in u]
        high = [set(np.argsort(-row, kind="stable")[:k].tolist()) for row in r]
        curve.append(sum(len(a & b) for a, b in zip(low, high, strict=True)) / (k * EXPERTS))
    for tolerance in (0.0, 0.2, 0.4, 0.6, 0.8):
        removed = next(p for p in scores.plan(tod=tolerance).groups if p.kind == "expert neuron").removed
        allowed = [k for k in range(1, INNER) if curve[k - 1] <= tolerance]
        assert (removed.shape[-1] if removed.size else 0) == max(allowed, default=0)
        for row, gone in zip(u, removed, strict=False):
            assert set(gone) == set(np.argsort(row, kind="stable")[: len(gone)].tolist())


def test_sizes_follow_on_modules_and_where_all_layers_agree_on_the_configuration() -> None:
    class Config:
        num_local_experts, moe_intermediate_size = EXPERTS, INNER

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = Config()
            self.layers = nn.ModuleList([Mixture(), Mixture()])
            for layer in self.layers:
                layer.experts.config = self.config

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[0](x) + self.layers[1](x)

    torch.manual_seed(0)
    model, x = Two().double().eval(), samples()[0]
    units = fk.trace(model, x)
    kinds = [g.kind for g in units.groups]
    for counts, expected in (((1, 1), EXPERTS - 1), ((1, 2), EXPERTS)):
        removed = nothing(units)
        for g, count in zip([i for i, k in enumerate(kinds) if k == "expert"], counts, strict=True):
            removed[g] = np.arange(count)
        for g in (i for i, k in enumerate(kinds) if k == "expert neuron"):
            removed[g] = np.zeros((EXPERTS, 1), dtype=np.int64)
        small = fk.apply(model, plan_of(units, removed))
        assert [layer.experts.num_experts for layer in small.layers] == [EXPERTS - c for c in counts]
        assert small.config is small.layers[0].experts.config
        assert (small.config.num_local_experts, small.config.moe_intermediate_size) == (expected, INNER - 1)
    assert model.config.num_local_experts == EXPERTS


_TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "use_cache": False,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Olmoe": {"num_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 10, "shared_expert_intermediate_size": 9},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 10},
    "GptOss": {"num_local_experts": 4, "head_dim": 8, "pad_token_id": 0},
    "DeepseekV3": {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 10,
        "n_shared_experts": 1,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "qk_nope_head_dim": 4,
        "pad_token_id": 0,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_transformers(family: str) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**_TINY, **FAMILIES[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config).double().eval()
    model.set_experts_implementation("eager")
    x = {"input_ids": torch.randint(1, 60, (2, 9))}
    units = fk.trace(model, x)
    kinds = {g.kind for g in units.groups if g.frozen is None}
    assert {"expert", "expert neuron"} <= kinds
    shared = any("shared_expert" in g.name for g in units.groups if g.frozen is None)
    assert shared == (family in ("Qwen2Moe", "DeepseekV3"))
    for fraction in (0.3, 0.7):
        plan = plan_of(units, random_removal(units, fraction, seed=1))
        small = fk.apply(model, plan)
        with fk.Plan(**vars(plan)).masked(model):
            assert difference(model, small, x) < LIMIT
        assert difference(model, small, x) > 1e-6
    batches = [({"input_ids": torch.randint(1, 60, (6, 9))}, torch.arange(6) % 3) for _ in range(2)]
    loss = partial(_last_token, classes=3)
    scores = fk.score(model, batches, loss, units=units, progress=False)
    small = fk.apply(model, plan := scores.plan(keep_params=0.8))
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_grouped_products_ask_for_is_kept(dtype: torch.dtype) -> None:
    """The kernel that transformers takes by default knows no float64, and sizes of whole 16 bytes only."""
    transformers = pytest.importorskip("transformers", minversion="5")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**{**_TINY, "intermediate_size": 32}, num_local_experts=4)
    model = transformers.MixtralForCausalLM(config).to(dtype).eval()
    if model.config._experts_implementation != "grouped_mm":
        pytest.skip("this transformers has no grouped products here")
    x = {"input_ids": torch.randint(1, 60, (2, 9))}
    units = fk.trace(model, x)
    inner = units.groups[the(units, "expert neuron")]
    assert (inner.frozen, inner.multiple) == (None, 16 // dtype.itemsize)
    batches = [({"input_ids": torch.randint(1, 60, (6, 9))}, torch.arange(6) % 3) for _ in range(2)]
    scores = fk.score(model, batches, partial(_last_token, classes=3), units=units, progress=False)
    plan = scores.plan(keep_params=0.75)
    (removed,) = [g.removed for g in plan.groups if g.kind == "expert neuron"]
    assert removed.size
    assert removed.shape[1] % inner.multiple == 0
    for made in (plan, plan_of(units, random_removal(units, 0.3, seed=0)), units.plan(keep_params=0.8)):
        small = fk.apply(model, made)
        with fk.Plan(**vars(made)).masked(model):
            assert difference(model, small, x) < {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]


def _last_token(output: Any, y: Tensor, classes: int) -> Tensor:
    return nn.functional.cross_entropy(output.logits[:, -1, :classes], y)


def test_least_squares_repairs_inner_units_of_each_expert() -> None:
    """Where one unit of every expert is another one doubled, the fit finds it and nothing is lost."""
    model, (x, y) = build(shared=True), samples()
    with torch.no_grad():
        for e, (a, b) in enumerate(((0, 1), (2, 4), (3, 0), (1, 2))):
            up = model.experts.gate_up_proj[e]
            up[b], up[INNER + b] = up[a], 2 * up[INNER + a]
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), gram=True, progress=False)
    removed = nothing(scores.units)
    removed[the(scores.units, "expert neuron")] = np.array([[1], [4], [0], [2]])
    plan = plan_of(scores.units, removed)
    gap = {
        method: difference(model, fk.apply(model, plan, compensate=method, scores=scores), x)
        for method in ("none", "mean", "least_squares")
    }
    assert gap["none"] == gap["mean"] > 1e-2
    assert gap["least_squares"] < gap["none"] / 20, "what is left is the ridge"
    removed[the(scores.units, "expert")] = np.array([2])
    small = fk.apply(model, plan_of(scores.units, removed), compensate="least_squares", scores=scores)
    whole = nothing(scores.units)
    whole[the(scores.units, "expert")] = np.array([2])
    with fk.Plan(**vars(plan_of(scores.units, whole))).masked(model):
        assert difference(model, small, x) < gap["none"] / 20
    pruned, report = fk.prune(model, [(x, y)], nn.CrossEntropyLoss(), keep_params=0.7, progress=False)
    assert report.plan is not None
    assert report.plan.result["params_after"] <= 0.7 * report.before["params"]
    added = report.choices["added_biases"]  # which no plan counts
    assert (
        report.after["params"]
        == report.plan.result["params_after"] + added
        == sum(map(torch.numel, pruned.parameters()))
    )
    assert len(pruned.experts.down_proj) == pruned.experts.num_experts
    assert {row["kind"]: row["units"] for row in report.groups}["expert neuron"] == EXPERTS * INNER


@pytest.mark.parametrize("experts", [Fused, Listed])
def test_sequential_compensation_leaves_experts_their_own_fit(experts: type[nn.Module]) -> None:
    model, (x, y) = build(experts, shared=True), samples()
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), gram=True, progress=False)
    removed = random_removal(scores.units, 0.4, seed=2)
    plan = plan_of(scores.units, removed)
    options = {"scores": scores, "loader": [(x, y)]}
    small = fk.apply(model, plan, compensate="sequential", **options)
    once = fk.apply(model, plan, compensate="least_squares", scores=scores)
    for name, tensor in once.experts.named_parameters():
        torch.testing.assert_close(small.experts.get_parameter(name), tensor, msg=name)
    assert torch.isfinite(small(x)).all()
    untouched = build(experts, shared=True).state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("experts", [Fused, Listed])
def test_what_follows_experts_is_refitted_to_what_they_give_with_their_own_fit(experts: type[nn.Module]) -> None:
    model, (x, y) = build(experts, shared=True), samples()
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), gram=True, progress=False)
    plan = plan_of(scores.units, random_removal(scores.units, 0.4, seed=0))
    once = fk.apply(model, plan, compensate="least_squares", scores=scores)
    small = fk.apply(model, plan, compensate="sequential", scores=scores, loader=[(x, y)])
    assert difference(model, small, x) < difference(model, once, x)


def test_a_residual_stream_that_experts_read_can_be_compensated() -> None:
    model, (x, y) = build(norm=False, shared=True), samples()
    with torch.no_grad():
        model.embed.weight[4], model.embed.bias[4] = model.embed.weight[1] * 2, model.embed.bias[1] * 2
        model.experts.down_proj[:, 4], model.shared.down_proj.weight[4] = 0, 0
        model.experts.down_proj[:, 1], model.shared.down_proj.weight[1] = 0, 0
        model.head.weight[:, 4] = 0  # what it reads went through tanh
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), gram=True, progress=False)
    removed = random_removal(scores.units, 0.3, seed=0)
    (g,) = [i for i, group in enumerate(scores.units.groups) if group.name == "embed"]
    removed[g] = np.array([4])
    plan = plan_of(scores.units, removed)
    removed[g] = np.zeros(0, dtype=np.int64)
    rest = fk.Plan(**vars(plan_of(scores.units, removed)))
    repaired = fk.apply(model, plan, compensate="least_squares", scores=scores)
    expected = fk.apply(model, rest, compensate="least_squares", scores=scores)
    assert difference(expected, repaired, x) < difference(expected, fk.apply(model, plan), x) / 20


class Coarse(Softmax):
    """Probabilities in float32, whatever the model's type."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(x.float(), self.weight.type(torch.float32))
        weights, index = F.softmax(logits, dim=-1, dtype=torch.float32).topk(CHOSEN, dim=-1)
        return weights.to(x.dtype), index


@pytest.mark.parametrize("seed", range(4))
def test_a_router_that_computes_in_float32_is_proven_in_float64(seed: int) -> None:
    model, x = build(router=Coarse, seed=seed), samples()[0]
    units = fk.trace(model, x, seed=seed)
    assert units.groups[the(units, "expert")].frozen is None


def test_combinations_of_every_two_experts_are_exact() -> None:
    model, x = build(), samples()[0]
    units = fk.trace(model, x)
    for pair in itertools.combinations(range(EXPERTS), 2):
        removed = nothing(units)
        removed[the(units, "expert")] = np.array(pair)
        plan = plan_of(units, removed)
        with fk.Plan(**vars(plan)).masked(model):
            assert difference(model, fk.apply(model, plan), x) < LIMIT
