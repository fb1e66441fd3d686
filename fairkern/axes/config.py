"""Fields of a model's configuration object (as transformers has them) that count inner units, heads or experts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from fairkern.model.fields import configurations, read_field
from fairkern.types import AxisGroup, ConfigField

_INNER = (
    "intermediate_size",
    "ffn_dim",
    "ffn_hidden_size",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "hidden_dim",
    "n_inner",
    "d_ff",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)
_HEADS = (
    "num_attention_heads",
    "num_key_value_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
)
_EXPERTS = re.compile(r"expert", re.IGNORECASE)
_OTHER_EXPERTS = re.compile(r"per_tok|top|shared|group|capacity|size|period|offset", re.IGNORECASE)


def config_fields(model: nn.Module, groups: Sequence[AxisGroup]) -> list[ConfigField]:
    """The fields that may follow groups, found by name and size; whether they do, building from them must show.

    Where heads are counted and their size is not a field of its own, `head_dim` is added: many models divide the
    width by the number of heads without it.
    """
    fields = []
    for prefix, config, scope in configurations(model):
        mine = [i for i, g in enumerate(groups) if g.frozen is None and f"{g.name}.".startswith(scope)]
        counts = {name: n for name in _HEADS if type(n := vars(config).get(name)) is int}
        heads = [i for i in mine if groups[i].kind == "head"] if counts else []
        for name, count in counts.items():
            followed = [i for i in _side(name, heads, groups) if count % groups[i].units == 0]
            if followed:
                fields.append(ConfigField(prefix + name, count, count, tuple(followed)))
        width = read_field(config, "hidden_size")
        stored = getattr(config, "attribute_map", {}).get("head_dim", "head_dim")  # the field that an alias stands for
        if heads and type(vars(config).get(stored)) is not int and type(width) is int:
            size = width // next(iter(counts.values()))
            fields.append(ConfigField(f"{prefix}head_dim", None, size, tuple(heads), fixed=True))
        for name, held in vars(config).items():
            counted = [i for i in mine if groups[i].kind == "expert" and groups[i].total == held]
            if counted and type(held) is int and _EXPERTS.search(name) and not _OTHER_EXPERTS.search(name):
                fields.append(ConfigField(prefix + name, held, held, tuple(counted)))
        for name in _INNER:
            held = vars(config).get(name, "absent")
            others = [i for i in _side(name, mine, groups) if i not in heads and groups[i].kind != "expert"]
            common = {groups[i].units for i in others}
            if held is None and len(common) == 1:  # a default that the model works out
                fields.append(ConfigField(prefix + name, None, common.pop(), tuple(others)))
            elif type(held) is int and held in common:
                followed = [i for i in others if groups[i].units == held]
                fields.append(ConfigField(prefix + name, held, held, tuple(followed)))
    return fields


def _side(name: str, candidates: Sequence[int], groups: Sequence[AxisGroup]) -> list[int]:
    """`encoder_…` and `decoder_…` count what lies in the encoder and in the decoder."""
    side = next((s for s in ("encoder.", "decoder.") if name.startswith(s[:-1])), "")
    return [i for i in candidates if side in groups[i].name]
