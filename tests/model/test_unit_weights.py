"""Which weights make a unit: rows and their norms, against weights taken by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.model.unit_weights import weight_norms
from tests import experts, listed
from tests.axes.harness import Net
from tests.branching import Language, PreNorm, tokens


def norms(model: nn.Module, units: fk.UnitMap, group: str) -> tuple[np.ndarray, np.ndarray]:
    number = next(g for g, known in enumerate(units.groups) if known.name == group)
    found = weight_norms(model, units)
    return found["l1"][number], found["l2"][number]


def check(model: nn.Module, units: fk.UnitMap, group: str, *rows: Tensor) -> None:
    """`rows`: of each weight that makes the units, by hand, [units, values]."""
    found = units.weights(model, group)
    assert [tuple(r.shape) for r in found.values()] == [tuple(r.shape) for r in rows]
    assert all(torch.equal(mine, row) for mine, row in zip(found.values(), rows, strict=True))
    joined = torch.cat(list(rows), 1).double()
    for ours, order in zip(norms(model, units, group), (1, 2), strict=True):
        assert ours == pytest.approx(torch.linalg.vector_norm(joined, order, dim=1).detach().numpy(), rel=1e-6)


def test_filters_and_rows() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 5), nn.ReLU())
    model = nn.Sequential(*layers, nn.Linear(5, 3)).eval()
    units = fk.trace(model, torch.randn(2, 2, 4, 4))
    check(model, units, "0", model[0].weight.flatten(1))  # without biases and norms
    check(model, units, "4", model[4].weight)


def test_a_stream_is_made_by_all_that_write_to_it() -> None:
    torch.manual_seed(0)
    parts = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 6), "c": nn.Linear(6, 3)}
    model = Net(lambda m, x: m.c((h := m.a(x)) + m.b(torch.relu(h))), **parts).eval()
    units = fk.trace(model, torch.randn(2, 4))
    (group,) = [units.groups[g] for g in units.prunable]
    check(model, units, group.name, model.a.weight, model.b.weight)


def test_columns_of_an_embedding_and_a_transposed_convolution() -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Embedding(7, 6), b=nn.Linear(6, 3)).eval()
    check(model, fk.trace(model, torch.arange(6).view(2, 3)), "a", model.a.weight.T)
    model = Net(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.ConvTranspose2d(2, 6, 3), b=nn.Conv2d(6, 3, 1)).eval()
    units = fk.trace(model, torch.randn(2, 2, 4, 4))
    check(model, units, "a", model.a.weight.movedim(1, -1).reshape(-1, 6).T)


def test_heads_are_made_by_queries_keys_and_values() -> None:
    torch.manual_seed(0)

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (4, 3)).transpose(1, 2) for part in (m.q, m.k, m.v))
        return m.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(12, 12) for name in "qkvo"}
    model = Net(forward, **parts).eval()
    units = fk.trace(model, torch.randn(2, 5, 12))
    (group,) = [units.groups[g] for g in units.prunable if units.groups[g].kind == "head"]
    rows = {f"{name}.weight": parts[name].weight.view(4, 3, 12).transpose(1, 2).reshape(4, -1) for name in "qkv"}
    found = units.weights(model, group)
    assert found.keys() == rows.keys()
    for name, row in found.items():
        assert torch.equal(row.sort(1).values, rows[name].sort(1).values), name


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_of_a_stack(transposed: bool) -> None:
    """Inner units of each expert, one set after the other, and whole ones."""
    model = experts.build(lambda: experts.Fused(transposed=transposed))
    units = fk.trace(model, experts.samples()[0][:2], verify=False)
    inner, whole = (next(units.groups[g] for g in units.prunable if units.groups[g].kind == k) for k in KINDS)
    up, down, router = model.experts.gate_up_proj, model.experts.down_proj, model.router.weight
    up = up.transpose(1, 2) if transposed else up  # [experts, gate and up, width]
    n = experts.INNER
    made = torch.cat([up[:, :n], up[:, n:]], 2).reshape(experts.EXPERTS * n, -1)
    of_inner, of_whole = units.weights(model, inner), units.weights(model, whole)
    assert list(of_inner) == ["experts.gate_up_proj"]
    assert torch.equal(of_inner["experts.gate_up_proj"].sort(1).values, made.sort(1).values)
    assert of_whole.keys() == {"experts.gate_up_proj", "experts.down_proj", "router.weight"}
    for name, weight in (("experts.gate_up_proj", up), ("experts.down_proj", down), ("router.weight", router)):
        assert torch.equal(of_whole[name].sort(1).values, weight.flatten(1).sort(1).values), name
    for group in (inner, whole):
        rows = torch.cat(list(units.weights(model, group).values()), 1)
        for ours, order in zip(norms(model, units, group.name), (1, 2), strict=True):
            assert ours == pytest.approx(torch.linalg.vector_norm(rows, order, dim=1).detach().numpy(), rel=1e-12)


KINDS = ("expert neuron", "expert")


def test_experts_of_a_list_are_all_that_they_hold() -> None:
    model = experts.build(experts.Listed)
    units = fk.trace(model, experts.samples()[0][:2])
    (group,) = [units.groups[g] for g in units.prunable if units.groups[g].kind == "expert"]
    found = units.weights(model, group)
    held = torch.stack([torch.cat([p.reshape(-1) for p in expert.parameters()]) for expert in model.experts])
    assert found.keys() == {"experts", "router.weight"}
    assert torch.equal(found["experts"], held)
    assert torch.equal(found["router.weight"], model.router.weight)
    rows = torch.cat([held, model.router.weight], 1)
    for ours, order in zip(norms(model, units, group.name), (1, 2), strict=True):
        assert ours == pytest.approx(torch.linalg.vector_norm(rows, order, dim=1).detach().numpy(), rel=1e-12)


def test_branches_are_all_that_their_modules_hold() -> None:
    torch.manual_seed(0)
    model = Language(PreNorm).eval()
    units = fk.trace(model, tokens(2), depth=True)
    for g in units.branched:
        group = units.groups[g]
        branches = units.branches[group.name]
        held = [[p for part in b.parts for p in model.get_submodule(part.module).parameters()] for b in branches]
        rows = torch.stack([torch.cat([p.reshape(-1) for p in own]) for own in held])
        assert torch.equal(units.weights(model, group)[group.name], rows)
        l1, _ = norms(model, units, group.name)
        assert l1 == pytest.approx(rows.double().abs().sum(1).detach().numpy(), rel=1e-6)


def test_modules_of_unequal_size_have_norms_and_no_rows() -> None:
    model = listed.net(next(iter(listed.MIXTURES.values())), sizes=listed.UNEVEN)
    units = fk.trace(model, listed.X)
    g = listed.experts_of(units)[0]
    with pytest.raises(fk.InputError, match="modules of unequal size, whose weights are no rows"):
        units.weights(model, units.groups[g])
    l1 = weight_norms(model, units)["l1"][g]
    held = model.get_submodule(units.groups[g].name)
    router = model.get_submodule(units.groups[g].name.rpartition(".")[0]).router.weight
    for unit, expert in enumerate(held):
        expected = sum(float(p.double().abs().sum()) for p in expert.parameters()) + float(router[unit].abs().sum())
        assert l1[unit] == pytest.approx(expected, rel=1e-6)


def test_vectors_count_where_there_is_nothing_else() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.read = nn.Parameter(torch.randn(6)), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.read(torch.relu(x[:, :1] * self.scale))

    torch.manual_seed(0)
    model = Scaled().eval()
    units = fk.trace(model, torch.randn(4, 2))
    (group,) = [units.groups[g] for g in units.prunable]
    check(model, units, group.name, model.scale[:, None])


def test_large_weights_are_summed_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 13), nn.ReLU(), nn.Linear(13, 2)).eval()
    units = fk.trace(model, torch.randn(2, 9))
    monkeypatch.setattr("fairkern.model.unit_weights._ROWS", 4)
    monkeypatch.setattr("fairkern.model.unit_weights._COLUMNS", 2)
    check(model, units, "0", model[0].weight)


def test_other_models_and_groups_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    units = fk.trace(model, torch.randn(2, 4))
    with pytest.raises(fk.PlanMismatchError, match=r"0.weight has shape \(8, 4\); the map was made for \(6, 4\)"):
        units.weights(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), "0")
    with pytest.raises(fk.PlanMismatchError, match=r"Linear has no tensor 0\.weight, as the map has"):
        units.weights(nn.Linear(4, 6), "0")
    with pytest.raises(fk.InputError, match=r"group='00' is no group of Sequential; .*, or its name; near names: 0"):
        units.weights(model, "00")
    with pytest.raises(fk.InputError, match="group=3 is no group"):
        units.weights(model, 3)  # type: ignore[arg-type]
    with pytest.raises(fk.InputError, match="model='model' is a str"):
        units.weights("model", "0")  # type: ignore[arg-type]


def test_copies_are_given() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    units = fk.trace(model, torch.randn(2, 4))
    rows = units.weights(model, units.groups[0])["0.weight"]
    assert not rows.requires_grad
    before = model[0].weight.detach().clone()
    rows.zero_()
    assert torch.equal(model[0].weight, before)
    assert dataclasses.is_dataclass(units)
