"""What servers ask of a plan, on maps written by hand: who moves together, who stays, and who can load what is left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fairkern.errors import InputError
from fairkern.plans.build import build
from fairkern.plans.serving import BLOCKS, Server, Serving, constraints, layer_of, listed, plural, serves, serving
from fairkern.types import AxisGroup, Blocks, Branch, BranchPart, ConfigChange, ConfigField, KeptUnits, Silence, UnitMap
from tests.plans.maps import gone, group, held, unit_map

HEADS, WIDTH = "num_attention_heads", "intermediate_size"


def mlp(layer: int, units: int = 8, name: str = "mlp", **more: Any) -> AxisGroup:
    """Gated: made by two matrices, read by a third."""
    path = f"layers.{layer}.{name}"
    axes = (held(f"{path}.up.weight", 0, units), held(f"{path}.down.weight", 1, units, Silence.ZERO))
    return group(f"{path}.gate", units, *axes, kind="neuron", **more)


def attention(layer: int, units: int = 4, **more: Any) -> AxisGroup:
    """Heads of one position each, read by the output projection in two."""
    path = f"layers.{layer}.attn"
    pairs = replace(
        held(f"{path}.o.weight", 1, 2 * units, Silence.ZERO), positions=np.arange(2 * units).reshape(units, 2)
    )
    return group(f"{path}.q", units, pairs, kind="head", **more)


def shapes(*groups: AxisGroup, norms: int = 2, extra: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
    found = {a.axis.tensor: (8, 8) for g in groups for a in g.axes}
    found |= {f"layers.{layer}.norm{i}.weight": (8,) for layer in (0, 1) for i in range(norms)}
    return found | {"norm.weight": (8,), "head.weight": (9, 8)} | dict.fromkeys(extra, (8,))


def llama(**more: Any) -> UnitMap:
    """Two layers of four heads and eight neurons; 12 and 8 by the configuration (three query heads to a key head)."""
    groups = (attention(0), mlp(0), attention(1), mlp(1))
    config = (
        ConfigField(HEADS, 12, 12, (0, 2), admitted=(3, 6, 12)),
        ConfigField("num_key_value_heads", 4, 4, (0, 2), admitted=(1, 2, 4)),
        ConfigField("head_dim", None, 2, (0, 2), fixed=True),
        ConfigField(WIDTH, 8, 8, (1, 3)),
    )
    return unit_map(*groups, **{"config": config, "shapes": shapes(*groups), **more})


def asked(units: UnitMap, serve: str) -> tuple[list[tuple[tuple[int, ...], int, Any]], dict[int, str], dict[int, int]]:
    found = constraints(units, serving(serve))
    ties = [(t.groups, t.grain, None if t.parts is None else t.parts.tolist()) for t in found.ties]
    return ties, dict(found.stays), dict(found.multiples)


def told(units: UnitMap, *counts: int) -> dict[str, str]:
    """`serves` where the first so many units of each group go."""
    return serves(units, [np.arange(n) for n in counts])


def test_what_serve_may_name() -> None:
    assert serving(None) is None
    assert serving("hf") == Serving(Server.HF, "hf", 1)
    assert serving("vLLM") == Serving(Server.VLLM, "vllm", 1)
    assert serving("gguf") == Serving(Server.GGUF, "gguf", 1)
    assert serving("GGUF:Q8_0") == Serving(Server.GGUF, "gguf:q8_0", 32)
    assert serving("gguf:q4_k_m") == Serving(Server.GGUF, "gguf:q4_k_m", 256)
    assert serving("gguf:bf16") == Serving(Server.GGUF, "gguf:bf16", 1)


def test_blocks_of_types() -> None:
    found = {size: {kind for kind, block in BLOCKS.items() if block == size} for size in BLOCKS.values()}
    large = (
        "q2_k q3_k q4_k q5_k q6_k q2_k_s q3_k_s q3_k_m q3_k_l q4_k_s q4_k_m q5_k_s q5_k_m iq1_s iq1_m iq2_xxs iq2_xs"
    )
    assert found == {
        1: {"f32", "f16", "bf16"},
        32: {"q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4"},
        64: {"nvfp4"},
        128: {"q1_0"},
        256: {*large.split(), *["iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "iq3_s", "iq3_m", "iq4_xs", "tq1_0", "tq2_0"]},
    }


def test_blocks_are_those_of_the_format() -> None:
    gguf = pytest.importorskip("gguf")
    sizes = {kind.name.lower(): gguf.GGML_QUANT_SIZES[kind][0] for kind in gguf.GGMLQuantizationType}
    for kind, block in BLOCKS.items():
        base = kind.rpartition("_")[0]  # q4_k_m is of q4_k, iq3_xs of iq3_s
        base = next(name for name in (kind, base, f"{base}_s") if name in sizes)
        assert sizes[base] == block, kind


def test_without_a_server_nothing_is_asked() -> None:
    for units in (llama(), llama(config=())):
        found = constraints(units, None)
        assert (found.ties, found.stays, found.multiples) == ((), {}, {})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "tgi",
            r"serve is 'tgi'; expected one of 'hf', 'vllm', 'gguf', 'deci', 'gguf:TYPE' as in 'gguf:q8_0', or None",
        ),
        ("vlm", r"or None; did you mean 'vllm'\?$"),
        ("", "serve is ''"),
        (True, "serve is True"),
        (["hf"], "serve is \\['hf'\\]"),
        ("hf:q8_0", "serve is 'hf:q8_0'"),
        ("deci:q8_0", "serve is 'deci:q8_0'"),
        ("gguf:", "a type that GGUF does not have"),
        ("gguf:q8_1", "a type that GGUF does not have; near names: q8_0"),
        ("gguf:ü", "; names are for example f32, f16, bf16"),
    ],
)
def test_what_no_server_is_called(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        serving(value)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.gate_proj", "model.layers.3"),
        ("model.layers.31", "model.layers.31"),
        ("h.0.attn.experts.2.up", "h.0"),
        ("0.weight", "0"),
        ("lm_head.weight", ""),
        ("conv1.weight", ""),
        ("stage2.block1.conv", ""),
        ("a.2b.c", ""),
    ],
)
def test_a_layer_is_told_by_the_first_number(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_one_configuration_for_all_layers() -> None:
    """Heads in parts of a quarter, of which three quarters are refused; neurons one by one."""
    assert asked(llama(), "hf") == ([((0, 2), 4, [2, 3]), ((1, 3), 8, None)], {}, {})


def test_one_number_of_heads_and_widths_of_their_own() -> None:
    assert asked(llama(), "vllm") == ([((0, 2), 4, [2, 3]), ((1,), 8, None), ((3,), 8, None)], {}, {})


@pytest.mark.parametrize("serve", ["gguf", "deci", "gguf:f16"])
def test_lengths_per_layer(serve: str) -> None:
    assert asked(llama(), serve) == ([], {}, {})


def test_units_of_a_kind() -> None:
    assert [plural(kind) for kind in ("head", "expert neuron", "branch")] == ["heads", "expert neurons", "branches"]


def test_blocks_of_a_type_are_filled() -> None:
    """A head is read in two places, a neuron in one."""
    assert constraints(llama(), serving("gguf:q8_0")).multiples == {0: 16, 1: 32, 2: 16, 3: 32}
    assert constraints(llama(), serving("gguf:q4_k")).multiples == {0: 128, 1: 256, 2: 128, 3: 256}


def test_what_has_no_smaller_number_that_fills_a_block_stays() -> None:
    why = "no smaller number of its units fills blocks of 256 weights"
    assert asked(llama(), "gguf:q4_k")[:2] == ([], dict.fromkeys(range(4), why))
    groups = (mlp(0, 64), mlp(1))
    units = unit_map(*groups, shapes=shapes(*groups), config=(ConfigField(WIDTH, 64, 64, (0, 1)),))
    own = why.replace("256", "32")
    assert asked(units, "gguf:q8_0") == ([], {1: own}, {0: 32, 1: 32})
    together = replace(units, shapes=shapes(*groups, norms=3))  # nothing that deci holds: layers are equal
    assert asked(together, "gguf:q8_0")[:2] == ([], {0: f"{own} in layers.1.mlp.gate", 1: own})


def test_what_no_field_counts_stays() -> None:
    units = llama()
    units = replace(units, groups=(*units.groups, group("stream", 5)))
    why = {4: "no field of the configuration counts its channels"}
    assert asked(units, "hf") == ([((0, 2), 4, [2, 3]), ((1, 3), 8, None)], why, {})
    assert asked(units, "vllm")[1] == why
    assert asked(units, "deci")[1] == {4: "deci has numbers per layer for heads and feed-forward widths only"}
    assert constraints(units, serving("hf")).said("hf") == {4: f"{why[4]} (serve='hf')"}


def test_a_group_that_is_frozen_holds_those_that_move_with_it() -> None:
    units = llama().freeze({2: "asked"})
    ties, stays, _ = asked(units, "hf")
    assert ties == [((1, 3), 8, None)]
    assert stays == {0: f"{HEADS} counts layers.1.attn.q as well, which stays"}
    assert asked(llama().freeze({0: "asked", 2: "asked"}), "hf")[:2] == ([((1, 3), 8, None)], {})
    three = replace(llama(), groups=(*llama().groups, attention(2)))
    three = replace(three, config=tuple(replace(f, groups=(*f.groups, 4)) for f in three.config[:2]))
    two = asked(three.freeze({0: "asked", 2: "asked"}), "hf")[1]
    assert two[4] == f"{HEADS} counts layers.0.attn.q as well, which stays"
    units = llama().freeze({1: "asked"})
    assert asked(units, "vllm")[:2] == ([((0, 2), 4, [2, 3]), ((3,), 8, None)], {})


def test_fields_that_share_a_group_tie_all_of_theirs() -> None:
    """The width of routed experts (8, of two sets) is that of the shared one, which is twice as wide, and another field
    counts the shared one."""
    groups = (
        replace(mlp(0, name="experts", sets=2), kind="expert neuron"),
        mlp(0, units=16, name="shared"),
        mlp(1, units=6),
    )
    config = (
        ConfigField("moe", 8, 8, (0, 1)),
        ConfigField("width", 6, 6, (2,)),
        ConfigField("shared", 4, 4, (1,)),
    )
    units = unit_map(*groups, config=config, shapes=shapes(*groups))
    assert asked(units, "hf")[0] == [((0, 1), 4, None), ((2,), 6, None)]
    assert asked(units, "vllm")[0] == [((0, 1), 4, None), ((2,), 6, None)]
    assert asked(units, "gguf") == asked(units, "hf")  # deci has no experts
    assert asked(units, "gguf:q8_0")[2] == {0: 32, 1: 32, 2: 32}


def test_the_values_that_several_fields_admit() -> None:
    units = llama()
    config = (replace(units.config[0], admitted=(3, 6, 9, 12)), replace(units.config[1], admitted=(3, 4)))
    assert asked(replace(units, config=config), "hf")[0] == [((0, 2), 4, [1])]


@pytest.mark.parametrize("serve", ["hf", "vllm", "gguf", "deci"])
def test_a_model_without_fields_cannot_be_served(serve: str) -> None:
    note = "the configuration (width) does not describe a pruned model: it has no width"
    message = f"serve='{serve}' goes by the fields of a configuration .*, and none of Net's does"
    for config in ((), (ConfigField("head_dim", None, 2, (0,), fixed=True),)):
        with pytest.raises(InputError, match=rf"{message}: give a transformers model .* or leave out serve="):
            constraints(llama(config=config), serving(serve))
        with pytest.raises(InputError, match="has no width"):
            constraints(llama(config=config, notes=("another", note)), serving(serve))


def experts() -> UnitMap:
    return replace(llama(), kept=(KeptUnits("expert", "layers.0.moe", "asked"),))


def more(**tensors: tuple[int, ...]) -> UnitMap:
    units = llama()
    return replace(units, shapes={**units.shapes, **{k.replace("_", "."): v for k, v in tensors.items()}})


def ungated() -> UnitMap:
    units = llama()
    plain = replace(units.groups[1], axes=(units.groups[1].axes[0], units.groups[1].axes[2]))
    return replace(units, groups=(units.groups[0], plain, *units.groups[2:]))


UNLIKE = {
    "experts": (experts(), "deci has no experts"),
    "biases of norms": (
        more(layers_0_norm0_bias=(8,)),
        "deci's norms have no biases, and layers.0.norm0 has one",
    ),
    "three norms": (
        more(layers_1_norm2_weight=(8,)),
        "a layer of deci has 2 norms, and layers.1 has 3",
    ),
    "one norm": (
        replace(llama(), shapes={k: v for k, v in llama().shapes.items() if k != "layers.1.norm0.weight"}),
        "a layer of deci has 2 norms, and layers.1 has 1",
    ),
    "more matrices": (
        more(**{f"layers_0_cross_{name}_weight": (8, 8) for name in "qkv"}),
        "a layer of deci has 7 matrices, and layers.0 has 8",
    ),
    "no gate": (ungated(), "deci's feed-forward parts are gated, and layers.0.mlp.gate is not"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_deci_cannot_hold(name: str) -> None:
    units, why = UNLIKE[name]
    with pytest.raises(InputError) as caught:
        constraints(units, serving("deci"))
    assert f"serve='deci' cannot load what is cut from Net: {why}; use serve='hf'" in str(caught.value)
    assert asked(units, "gguf") == asked(units, "hf")
    assert told(units, 2, 3, 2, 3) == {"hf": "yes", "vllm": "yes", "gguf": "yes", "deci": why}
    uneven = told(units, 2, 3, 2, 2)
    assert uneven["gguf"] == f"only as deci, since {uneven['hf']}, and {why}"


def test_vectors_outside_of_layers_are_no_norms_of_one() -> None:
    assert told(more(norm_bias=(8,), embed_bias=(3,)), 0, 1, 0, 0)["deci"] == "yes"
    assert told(more(layers_0_attn_q_bias=(8,)), 0, 1, 0, 0)["deci"] == "yes"


def test_a_bias_makes_no_gate() -> None:
    units = ungated()
    plain = units.groups[1]
    plain = replace(plain, axes=(*plain.axes, held("layers.0.mlp.gate.bias", 0, 8)))
    groups = (units.groups[0], plain, *units.groups[2:])
    shapes_ = {**units.shapes, "layers.0.mlp.gate.bias": (8,)}
    why = "deci's feed-forward parts are gated, and layers.0.mlp.gate is not"
    assert told(replace(units, groups=groups, shapes=shapes_), 0, 1, 0, 0)["deci"] == why


def test_a_fused_gate_is_one() -> None:
    """One matrix of twice the rows, a unit having one of either half."""
    units = ungated()
    both = np.stack([np.arange(8), np.arange(8, 16)], axis=1)
    fused = replace(units.groups[1].axes[0], length=16, positions=both)
    groups = (units.groups[0], replace(units.groups[1], axes=(fused, units.groups[1].axes[1])), *units.groups[2:])
    assert told(replace(units, groups=groups), 0, 1, 0, 0)["deci"] == "yes"


def test_who_can_load_what_is_left() -> None:
    refused = f"the configuration refuses {HEADS}=9; it admits 12, 6, 3"
    uneven = f"{WIDTH} is one whole number, and 5 to 6 would be right"
    for counts, hf, vllm in (
        ((0, 0, 0, 0), "yes", "yes"),
        ((2, 3, 2, 3), "yes", "yes"),
        ((2, 3, 2, 2), uneven, "yes"),
        ((1, 3, 1, 3), refused, refused),
        ((1, 3, 1, 2), refused, refused),
        ((2, 0, 3, 0), *[f"{HEADS} is one whole number, and 3 to 6 would be right"] * 2),
    ):
        assert told(llama(), *counts) == {"hf": hf, "vllm": vllm, "gguf": "yes", "deci": "yes"}, counts


def test_numbers_that_are_admitted_are_listed() -> None:
    units = replace(llama(), config=(ConfigField(WIDTH, 8, 8, (1, 3), admitted=()), llama().config[0]))
    assert told(units, 0, 1, 0, 1)["hf"] == f"the configuration refuses {WIDTH}=7; it admits none"
    assert told(units, 0, 0, 0, 0)["hf"] == "yes"
    assert listed(range(1, 9)) == "8, 7, 6, 5, 4, 3, 2, 1"
    assert listed(range(1, 11)) == "10, 9, 8, 7, 6, 5, 4, …"


def test_numbers_that_are_not_whole() -> None:
    units = replace(llama(), config=(ConfigField(WIDTH, 4, 4, (1, 3)), ConfigField(HEADS, 4, 4, (0, 2))))
    assert told(units, 0, 1, 0, 1)["hf"] == f"{WIDTH} is one whole number, and 3.5 would be right"
    assert told(units, 0, 1, 0, 2)["vllm"] == f"{WIDTH} is one whole number in layers.0, and 3.5 would be right"
    assert told(units, 0, 2, 0, 2)["hf"] == "yes"


def test_units_that_no_field_counts() -> None:
    units = llama()
    assert told(replace(units, config=units.config[:3]), 0, 1, 0, 0)["hf"] == (
        "no field of the configuration counts the neurons of layers.0.mlp.gate"
    )
    units = replace(units, groups=(*units.groups, group("stream", 5), group("layers.0.other", 5)))
    assert told(units, 0, 1, 0, 1, 0, 0)["hf"] == "yes"
    found = told(units, 0, 1, 0, 1, 1, 1)
    assert found["hf"] == found["vllm"] == "no field of the configuration counts the channels of stream and 1 more"
    assert found["deci"] == "deci has no number per layer for the units of stream"
    assert told(units, 0, 1, 0, 1, 0, 1)["deci"] == "deci has no number per layer for the units of layers.0.other"


def test_a_plan_says_who_can_load_it() -> None:
    plan = build(llama(), gone([0, 1], [0], [2, 3], [1]))
    assert plan.result["serves"] == dict.fromkeys(("hf", "vllm", "gguf", "deci"), "yes")
    nobody = build(llama(config=()), gone([0, 1], [0], [2, 3], [1])).result["serves"]
    assert set(nobody.values()) == {"no field of a configuration counts what can be cut"}


def test_a_number_that_the_configuration_refuses_is_left_with_all_that_count_the_same_groups() -> None:
    plan = build(llama(), gone([0], [0], [1], [1]))
    assert plan.config == (ConfigChange(WIDTH, 8, 7),)
    assert plan.result["config_left"] == [HEADS, "num_key_value_heads", "head_dim"]
    plan = build(llama(), gone([0, 1], [], [1, 2], []))
    assert plan.config == (
        ConfigChange(HEADS, 12, 6),
        ConfigChange("num_key_value_heads", 4, 2),
        ConfigChange("head_dim", None, 2),
    )
    assert "config_left" not in plan.result


def test_the_size_of_a_head_is_set_whatever_their_number() -> None:
    """Three of four heads of size two: one and a half is no size, and none is meant."""
    config = (ConfigField(HEADS, 4, 4, (0,)), ConfigField("head_dim", None, 2, (0,), fixed=True))
    plan = build(unit_map(attention(0), config=config), gone([1]))
    assert plan.config == (ConfigChange(HEADS, 4, 3), ConfigChange("head_dim", None, 2))


def test_what_a_constraint_keeps_is_said() -> None:
    why = {0: "because", 2: "because", 3: "also"}
    lines = ["heads of layers.0.attn.q and 1 more stay: because", "neurons of layers.1.mlp.gate stay: also"]
    assert build(llama(), gone([], [], [], []), stays=why).result["left_alone"] == lines
    assert build(llama(), gone([], [1], [], []), stays=why).result["left_alone"] == lines
    only = build(llama(), gone([], [1], [], []), stays={3: "also"}).result["left_alone"]
    spared = "no head was cut: the plan spared those of layers.0.attn.q and 1 more, which could be cut"
    assert only == [spared, lines[1]]


def deep(counts: tuple[tuple[str, str], ...] = (("", "config.num_hidden_layers"),), own: Any = None) -> UnitMap:
    """The two layers' branches as units 4 (attention) and 5 (feed-forward)."""
    units = llama()

    def branches(name: str) -> tuple[Branch, ...]:
        return tuple(Branch((BranchPart(f"layers.{k}.{name}"),), -1, 8) for k in range(2))

    groups = tuple(
        AxisGroup(f"layers.*.{name}", "branch", 2, (held(f"layers.*.{name}", 0, 2, Silence.NOTHING_ADDED),), ())
        for name in ("attn", "mlp")
    )
    blocks = own or tuple((("layers.*.attn", k), ("layers.*.mlp", k)) for k in range(2))
    return replace(
        units,
        groups=(*units.groups, *groups),
        branches={group.name: branches(group.name.rpartition(".")[2]) for group in groups},
        blocks={"layers": Blocks(("0", "1"), blocks, ("", ""), counts=counts)},
    )


def test_layers_go_whole_where_one_number_counts_them() -> None:
    ties = constraints(deep(), serving("hf")).ties
    assert [(t.groups, t.same) for t in ties] == [((0, 2), False), ((1, 3), False), ((4, 5), True)]
    assert ties[2].grain == 2
    assert constraints(deep(), serving("hf")).stays == {}
    for serve in ("vllm", "deci", "gguf"):  # parts of layers may be absent
        found = constraints(deep(), serving(serve))
        assert found.stays == {}
        assert not any(tie.same for tie in found.ties)


@pytest.mark.parametrize(
    "units",
    [
        deep(counts=()),
        deep(counts=(("", "depth"),)),
        deep(own=((("layers.*.attn", 0), ("layers.*.mlp", 0)), ())),
        deep(own=((("layers.*.attn", 0), ("layers.*.mlp", 1)), (("layers.*.attn", 1), ("layers.*.mlp", 0)))),
        deep(own=((("layers.*.attn", 0), ("layers.*.mlp", 0)), (("layers.*.attn", 1),))),
    ],
    ids=["no count", "no configuration", "one stays", "another order", "a part is missing"],
)
def test_branches_stay_where_no_number_counts_their_layers(units: UnitMap) -> None:
    found = constraints(units, serving("hf"))
    assert found.stays == dict.fromkeys((4, 5), "every layer is built with all its branches")
    assert not any(tie.same for tie in found.ties)


def test_who_can_load_what_has_fewer_branches() -> None:
    def said(units: UnitMap, attention: list[int], feed_forward: list[int]) -> dict[str, str]:
        return serves(units, gone([], [], [], [], attention, feed_forward))

    for whole in ([0], [1]):
        assert set(said(deep(), whole, whole).values()) == {"yes"}
    part = "every layer is built with all its branches, and of one only layers.{}.{} goes"
    assert said(deep(), [1], []) == {"hf": part.format(1, "attn"), "vllm": "yes", "gguf": "yes", "deci": "yes"}
    assert said(deep(), [0], [1])["hf"] == part.format(0, "attn")
    assert said(deep(), [0], [0, 1])["hf"] == part.format(1, "mlp")
    assert said(deep(counts=()), [0], [0])["hf"] == part.format(0, "attn")
    outside = replace(deep(), branches={**deep().branches, "layers.*.mlp": (Branch((BranchPart("tail"),), -1, 8),) * 2})
    assert said(outside, [], [1])["deci"] == "deci has no number per layer for the units of layers.*.mlp"
