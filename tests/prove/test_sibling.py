"""A smaller model of the same class is proven in place of a model: the map is that of a proof on the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.deadline import NO_LIMIT
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.prove import choice, difference, proof_bytes
from fairkern.prove.alike import NoSibling, aligned
from fairkern.prove.carried import OF_SIBLING
from fairkern.prove.shrinking import shrunk
from tests.prove.decoders import IDS, Block, Config, Decoder, decoder


def same(units: fk.UnitMap) -> Any:
    """A map without what says where it was proven."""
    told = [g.frozen and g.frozen.removeprefix(f"{OF_SIBLING}: ") for g in units.groups]
    notes = tuple(note.removeprefix(f"{OF_SIBLING}: ") for note in units.notes)
    groups = tuple(replace(g, frozen=why) for g, why in zip(units.groups, told, strict=True))
    return repr(replace(units, groups=groups, notes=notes, sibling=()))


def exact(model: nn.Module, units: fk.UnitMap, given: Any, seed: int) -> float:
    """How far a random cut is from the masked model, in float64."""
    model = model.double()
    plan = fk.Plan(**vars(build(units, random_removal(units, 0.4, seed=seed))))
    with plan.masked(model):
        return difference(model, fk.apply(model, plan), given)


@pytest.mark.parametrize("depth", [False, True])
def test_the_map_is_that_of_the_whole(depth: bool) -> None:
    model = decoder()
    units = fk.trace(model, IDS, verify="sibling", depth=depth)
    whole = fk.trace(model, IDS, verify="whole", depth=depth)
    assert same(units) == same(whole)
    assert units.proven
    assert not whole.sibling
    assert {field.name for field in units.config} == {"num_attention_heads", "intermediate_size"}
    assert all(exact(model, units, IDS, seed) < 1e-9 for seed in (1, 2))


def test_what_it_was_proven_on_is_said_and_kept(tmp_path: Path) -> None:
    units = fk.trace(decoder(), IDS, verify="sibling")
    changed = {c.name: (c.before, c.after) for c in units.sibling}
    assert changed["num_hidden_layers"] == (7, 3)
    assert changed["hidden_size"][0] == 48
    assert "proven: pruned equals masked, on a smaller model of the same class" in units.explain()
    assert "num_hidden_layers 7 → 3" in units.explain()
    fk.Scores(units, {}, {}, {}).save(tmp_path / "s")
    assert fk.Scores.load(tmp_path / "s").units.sibling == units.sibling


def test_sizes_that_differ_in_the_model_differ_in_the_sibling() -> None:
    model = decoder()
    changes = {c.name: c.after for c in shrunk(model, [IDS], NO_LIMIT)[0]}
    now = {**vars(model.config), **changes}
    sizes = [now[n] for n in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim")]
    assert len({*sizes, now["num_hidden_layers"], *IDS.shape}) == 8
    assert now["vocab_size"] > int(IDS.max())
    equal = decoder(num_attention_heads=8, num_hidden_layers=8, intermediate_size=48)
    now = {**vars(equal.config), **{c.name: c.after for c in shrunk(equal, [IDS], NO_LIMIT)[0]}}
    assert now["hidden_size"] == now["intermediate_size"], "what is equal may be asked for by code"
    assert now["num_attention_heads"] != now["num_hidden_layers"]


@pytest.mark.parametrize("depth", [False, True])
def test_a_model_without_values_is_proven(depth: bool) -> None:
    with torch.device("meta"):
        empty = Decoder(Config()).eval()
    units = fk.trace(empty, IDS, depth=depth)
    assert units.proven
    assert same(units) == same(fk.trace(decoder(), IDS, depth=depth))
    small = fk.apply(empty, units.plan(keep_params=0.6))
    assert sum(p.numel() for p in small.parameters()) <= 0.6 * sum(p.numel() for p in empty.parameters())
    assert all(p.is_meta for p in small.parameters())
    with pytest.raises(fk.InputError, match="the example inputs have no values"):
        fk.trace(empty, IDS.to("meta"))
    assert not fk.trace(empty, IDS, verify=False).proven


def scaled_by_their_number(mlp: Any, h: Tensor) -> Tensor:
    return h * h.shape[-1]


def test_what_fails_stays_with_its_reason() -> None:
    model = decoder(scaled_by_their_number)
    units, whole = (fk.trace(model, IDS, verify=how) for how in ("sibling", "whole"))
    frozen = [g for g in units.groups if g.frozen]
    assert {g.name for g in frozen} == {g.name for g in whole.groups if g.frozen} != set()
    assert all(g.frozen.startswith(f"{OF_SIBLING}: pruned differs from masked") for g in frozen)


def of_one_block(mlp: Any, h: Tensor) -> Tensor:
    return h * h.shape[-1] if mlp.index == 0 else h


def test_what_fails_in_the_first_block_stays_there() -> None:
    model = decoder(of_one_block)
    units, whole = (fk.trace(model, IDS, verify=how) for how in ("sibling", "whole"))
    assert [g.name for g in units.groups if g.frozen] == ["layers.0.mlp.up"]
    assert [g.name for g in whole.groups if g.frozen] == ["layers.0.mlp.up"]


def from_some_width_on(mlp: Any, h: Tensor) -> Tensor:
    return h.flip(-1) if mlp.width > 64 else h


def in_the_fourth_block(mlp: Any, h: Tensor) -> Tensor:
    return h.flip(-1).flip(-1) if mlp.index == 3 else h


@pytest.mark.parametrize("between", [in_the_fourth_block])
def test_code_that_goes_another_way_has_no_sibling(between: Callable[[Any, Tensor], Tensor]) -> None:
    with pytest.raises(
        fk.InputError, match=r"no smaller OwnDecoder speaks for it: the code of layers\.\d\.mlp runs an"
    ):
        fk.trace(decoder(between), IDS, verify="sibling")


def test_code_that_goes_by_a_width_is_proven_with_fewer_blocks() -> None:
    units = fk.trace(decoder(from_some_width_on), IDS, verify="sibling")
    assert [(c.name, c.before, c.after) for c in units.sibling] == [("num_hidden_layers", 7, 3)]
    assert exact(decoder(from_some_width_on), units, IDS, 1) < 1e-9


def a_fixed_part(mlp: Any, h: Tensor) -> Tensor:
    return torch.cat([h[..., :40] * 2, h[..., 40:]], -1)


def all_within_a_fixed_part(mlp: Any, h: Tensor) -> Tensor:
    return torch.cat([h[..., :300] * 2, h[..., 300:]], -1)


def in_rows_of_sixteen(mlp: Any, h: Tensor) -> Tensor:
    return h.unflatten(-1, (-1, 16)).transpose(-1, -2).flatten(-2)


def moved_by_their_number(mlp: Any, h: Tensor) -> Tensor:
    return h.roll(mlp.width // 160, -1)


def a_power_of_their_number(mlp: Any, h: Tensor) -> Tensor:
    return h * (mlp.width // 200)


@pytest.mark.parametrize(
    "between",
    [a_fixed_part, all_within_a_fixed_part, in_rows_of_sixteen, moved_by_their_number, a_power_of_their_number],
)
def test_what_only_its_own_size_shows(between: Callable[[Any, Tensor], Tensor]) -> None:
    """In the sibling a part is all, another factor of a view is the larger one, or nothing moves."""
    model = decoder(between, intermediate_size=320)
    whole = fk.trace(model, IDS, verify="whole")
    units = fk.trace(model, IDS, verify="sibling")
    assert units.sibling
    assert {g.name for g in units.groups if not g.frozen} <= {g.name for g in whole.groups if not g.frozen}
    assert all(exact(model, units, IDS, seed) < 1e-9 for seed in (1, 2))
    if between is a_power_of_their_number:  # of fewer it is zero, with which any cut is right
        assert all("so that nothing was shown" in g.frozen for g in units.groups if ".mlp" in g.name)


def by_a_threshold(mlp: Any, h: Tensor) -> Tensor:
    return h * (h.shape[-1] ** -0.5 if h.shape[-1] > 150 else 1.0)


def where_it_is_its_own_size(mlp: Any, h: Tensor) -> Tensor:
    return h * (1.0 if h.shape[-1] == 320 else 3.0)


def in_one_block_of_many(mlp: Any, h: Tensor) -> Tensor:
    return h * (h.shape[-1] / 100 if mlp.index == 4 else 2.0)


@pytest.mark.parametrize("between", [by_a_threshold, where_it_is_its_own_size, in_one_block_of_many])
def test_a_number_that_meets_no_shape_is_seen_on_the_model_itself(
    between: Callable[[Any, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same operators with the same shapes: in the sibling no cut changes the number."""
    model = decoder(between, intermediate_size=320)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(fk.InputError, match="of the model itself, pruned differs from masked by"):
        fk.trace(model, IDS, verify="sibling")
    monkeypatch.setattr(choice, "WHOLE_BELOW", 1)
    units, whole = fk.trace(model, IDS), fk.trace(model, IDS, verify="whole")
    assert not units.sibling
    assert {g.name: g.frozen for g in units.groups} == {g.name: g.frozen for g in whole.groups}
    assert any(".mlp" in g.name for g in units.groups if g.frozen)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_large_models_are_proven_by_a_sibling(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    assert not fk.trace(model, IDS).sibling
    monkeypatch.setattr(choice, "WHOLE_BELOW", 1)
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    assert proof_bytes(model) == weights
    assert 4 * weights == proof_bytes(model, "whole")
    assert proof_bytes(model, False) == 0
    units = fk.trace(decoder(vocab_size=4000), IDS)
    assert units.sibling
    odd = fk.trace(decoder(in_the_fourth_block, vocab_size=4000), IDS)
    assert odd.proven
    assert not odd.sibling
    assert any("proven on a whole copy, as no smaller OwnDecoder speaks for it" in note for note in odd.notes)


def test_a_model_that_its_configuration_does_not_build() -> None:
    model = decoder()
    model.layers[2].mlp.up = nn.Linear(48, 64)
    model.layers[2].mlp.down = nn.Linear(64, 48)
    with pytest.raises(fk.InputError, match=r"a model built from its configuration differs in layers\.2\.mlp\.up"):
        fk.trace(model, IDS, verify="sibling")
    assert fk.trace(model, IDS).proven
    hooked = decoder()
    hooked.layers[2].register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(fk.InputError, match=r"differs in layers\.2"):
        fk.trace(hooked, IDS, verify="sibling")
    with pytest.raises(fk.InputError, match="has no configuration"):
        fk.trace(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(2, 4), verify="sibling")
    with pytest.raises(fk.InputError, match="verify is 'all'; expected one of"):
        fk.trace(hooked, IDS, verify="all")


def test_tokens_that_a_smaller_table_has() -> None:
    """What the example inputs look up need not be in the sibling, but for tokens that the configuration knows."""
    ids = torch.tensor([[3, 3999, 900, 1], [41, 2, 1500, 40]])
    model = decoder(vocab_size=4000, eos_token_id=40)
    changes, (given,) = shrunk(model, [ids], NO_LIMIT)
    size = {c.name: c.after for c in changes}["vocab_size"]
    assert size < 200
    assert given.max() < size
    assert torch.equal(given == 40, ids == 40)
    assert torch.equal(given[ids < 41], ids[ids < 41])
    assert fk.trace(model, ids, verify="sibling").sibling
    assert torch.equal(ids[0], torch.tensor([3, 3999, 900, 1]))


def test_blocks_stand_for_blocks_of_their_kind() -> None:
    model, small = decoder(), decoder(num_hidden_layers=3)
    assert dict(aligned(model, small).entries["layers"]) == dict(zip("0123456", "0111112", strict=True))
    assert aligned(model, small).name("layers.4.mlp.up.weight") == "layers.1.mlp.up.weight"
    with pytest.raises(NoSibling, match=r"it has 2 of 7 modules like layers\.0"):
        aligned(model, decoder(num_hidden_layers=2))
    tied = decoder()
    tied.layers[4].mlp.up.weight = tied.layers[3].mlp.up.weight
    with pytest.raises(NoSibling, match="other tensors are tied"):
        aligned(tied, small)


def test_loading_into_a_model_without_values(tmp_path: Path) -> None:
    model = decoder()
    plan = fk.trace(model, IDS).plan(keep_params=0.7)
    small = fk.apply(model, plan)
    fk.save_pruned(small, plan, tmp_path / "small")
    with torch.device("meta"):
        empty = Decoder(Config()).eval()
    loaded = fk.load_pruned(empty, tmp_path / "small")
    assert torch.equal(loaded(IDS), small(IDS))
    assert empty.scale.is_meta


class ExpertsMlp(nn.Module):
    """Fused experts behind a router that takes the two largest, as transformers keeps them."""

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.router = nn.Linear(width, 6, bias=False)
        self.experts = ExpertsOf(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        weights, index = self.router(rows).softmax(-1).topk(2)
        return self.experts(rows, index, weights).view(x.shape)


class ExpertsOf(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.num_experts, self.act_fn = 6, nn.SiLU()
        self.up_proj = nn.Parameter(torch.randn(6, inner, width) / 8)
        self.down_proj = nn.Parameter(torch.randn(6, width, inner) / 8)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        for weight in (self.up_proj, self.down_proj):
            if weight.shape[-1] * weight.element_size() % 16:
                raise RuntimeError("strides should be multiple of 16 bytes")
        out = torch.zeros_like(hidden_states)
        for expert in range(self.num_experts):
            tokens, slots = torch.where(top_k_index == expert)
            made = self.act_fn(hidden_states[tokens] @ self.up_proj[expert].T) @ self.down_proj[expert].T
            out.index_add_(0, tokens, made * top_k_weights[tokens, slots, None])
        return out


class MixtureBlock(Block):
    mlp_class = ExpertsMlp


class MixtureDecoder(Decoder):
    block = MixtureBlock


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_fused_experts_stay_what_a_grouped_product_takes(dtype: torch.dtype) -> None:
    model = MixtureDecoder(Config(intermediate_size=48)).eval().to(dtype)
    changes = {c.name: c.after for c in shrunk(model, [IDS], NO_LIMIT)[0]}
    assert changes["hidden_size"] < 48
    for size in ("hidden_size", "intermediate_size"):
        assert changes.get(size, 48) * dtype.itemsize % 16 == 0
