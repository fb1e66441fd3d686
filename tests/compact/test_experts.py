"""Fused experts are cut as they are masked, and as the definition written out says."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _pop_mode

import fairkern as fk
from fairkern.plans.build import build as plan_of
from fairkern.plans.removals import random_removal
from fairkern.prove import difference
from fairkern.types import IndexArray
from tests.experts import (
    CHOSEN,
    EXPERTS,
    INNER,
    MIXTURES,
    Chosen,
    Fused,
    Mixture,
    OneByOne,
    Sigmoid,
    build,
    nothing,
    samples,
    the,
)

LIMIT = 1e-9


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
            score, bias = logits.sigmoid(), model.router.e_score_correction_bias.reshape(-1)
            chosen = sorted(stays, key=lambda e: -float(score[e] + bias[e]))[:CHOSEN]
            weights = score[chosen] / score[chosen].sum() * 1.5
        elif isinstance(model.router, OneByOne):  # each by the softmax over those that are not chosen yet
            chosen = sorted(stays, key=lambda e: -float(logits[e]))[:CHOSEN]
            ranked = sorted(stays, key=lambda e: -float(logits[e]))
            weights = torch.stack([logits[ranked[n:]].softmax(0)[0] for n in range(CHOSEN)])
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


def only_expert(units: fk.UnitMap, gone: int) -> list[IndexArray]:
    removed = nothing(units)
    removed[the(units, "expert")] = np.array([gone])
    return removed


def test_masks_of_experts_are_left_in_any_order_and_by_any_thread() -> None:
    model, x = build(), samples()[0]
    units = fk.trace(model, x)
    first, second = (fk.Plan(**vars(plan_of(units, only_expert(units, gone)))) for gone in (1, 2))
    with torch.no_grad():
        before = model(x)
        with second.masked(model):
            expected = model(x)
        one, other = first.masked(model), second.masked(model)
        one.__enter__()
        with torch.device("cpu"):
            other.__enter__()
            one.__exit__(None, None, None)
            assert torch.equal(model(x), expected)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(other.__exit__, None, None, None).result()
        assert torch.equal(model(x), before)
    _pop_mode()  # of what another thread has left, which does nothing now


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


def test_combinations_of_every_two_experts_are_exact() -> None:
    model, x = build(), samples()[0]
    units = fk.trace(model, x)
    for pair in itertools.combinations(range(EXPERTS), 2):
        removed = nothing(units)
        removed[the(units, "expert")] = np.array(pair)
        plan = plan_of(units, removed)
        with fk.Plan(**vars(plan)).masked(model):
            assert difference(model, fk.apply(model, plan), x) < LIMIT


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
