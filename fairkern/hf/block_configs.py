"""Layers of different sizes, said layer by layer in a configuration, as those write it who read it.

Three ways of saying it, each with names of its own (the tests hold a copy of them):

- `block_configs` of DeciLM and Nemotron-NAS, which count query heads by key head (`n_heads_in_group`);
- `block_configs` of ModelOpt's Puzzletron and of vLLM's AnyModel, which count key heads and widths;
- `per_layer_config` of transformers, which has what differs from the rest of the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fairkern.errors import InputError
from fairkern.hf.blocks import Block, Blocks

SCHEMAS = ("deci", "anymodel")
_ROUNDED = 256  # DeciLM's ffn_mult gives a multiple of it


def block_configs(blocks: Blocks, schema: str) -> list[dict[str, Any]]:
    """One entry a layer, "attention" and "ffn", as `schema` names what is in them.

    Raises InputError where layers with attention have different numbers of query heads, which no entry counts.
    """
    heads_of(blocks)
    return [
        {"attention": _attention(block, schema), "ffn": _ffn(block, blocks.hidden, schema)} for block in blocks.blocks
    ]


def _attention(block: Block, schema: str) -> dict[str, Any]:
    no_op = not block.heads
    entry: dict[str, Any] = {"no_op": no_op, "replace_with_linear": False}
    if schema == "deci":
        return entry | {"n_heads_in_group": None if no_op else block.heads // block.key_heads}
    return entry | {"num_key_value_heads": None if no_op else block.key_heads}


def _ffn(block: Block, hidden: int, schema: str) -> dict[str, Any]:
    no_op = not block.width
    entry: dict[str, Any] = {"no_op": no_op, "replace_with_linear": False}
    entry["intermediate_size"] = None if no_op else block.width
    if schema == "deci" and (no_op or block.width % _ROUNDED == 0):  # else a reader would round it
        entry["ffn_mult"] = None if no_op else 3 * (block.width - _ROUNDED / 2) / (2 * hidden)
    return entry


def per_layer_config(blocks: Blocks, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What each layer has that the configuration does not say of all; what it skips."""
    digits = len(str(len(blocks.blocks) - 1))
    found = {}
    for index, block in enumerate(blocks.blocks):
        said: dict[str, Any] = {}
        if block.heads:
            said |= {"num_attention_heads": block.heads, "num_key_value_heads": block.key_heads}
        if block.width:
            said["intermediate_size"] = block.width
        said = {name: value for name, value in said.items() if config.get(name) != value}
        skipped = [name for name, there in (("attention", block.heads), ("mlp", block.width)) if not there]
        if skipped:
            said["skip"] = skipped
        if said:
            found[str(index).zfill(digits)] = said
    return found


def uneven_config(config: Mapping[str, Any], blocks: Blocks, schema: str) -> dict[str, Any]:
    """The content of a config.json for layers that differ: `config`, an even one's, with both of the above.

    `schema` is who reads the block configs: "deci" (DeciLM: vLLM, SGLang, TensorRT-LLM; there with the code that NVIDIA
    publishes beside such models) or "anymodel" (vLLM, ModelOpt). The numbers that count for all are the largest.

    Raises InputError for another schema, and for layers of different numbers of query heads.
    """
    if schema not in SCHEMAS:
        raise InputError(f"the schema is {schema!r}; expected one of {', '.join(SCHEMAS)}")
    there = [index for index, block in enumerate(blocks.blocks) if any(block.sizes)]
    blocks = replace(
        blocks, blocks=blocks.blocks[: max(there, default=0) + 1]
    )  # behind them are blocks that went whole
    heads = heads_of(blocks)
    written = dict(config)
    written |= {"num_hidden_layers": len(blocks.blocks), "head_dim": blocks.head_size}
    if heads:
        key_heads = max(block.key_heads for block in blocks.blocks)
        written |= {"num_attention_heads": heads, "num_key_value_heads": key_heads}
    if any(block.width for block in blocks.blocks):
        written["intermediate_size"] = max(block.width for block in blocks.blocks)
    written["per_layer_config"] = per_layer_config(blocks, written)
    written["allow_global_per_layer_attribute_access"] = True  # else transformers raises where a server asks for them
    written["block_configs"] = block_configs(blocks, schema)
    own = (config.get("architectures") or [None])[0]
    if schema == "deci":
        written |= {"architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas"}
    else:
        written |= {"architectures": ["AnyModel"], "base_architecture": own}
    return written


def heads_of(blocks: Blocks) -> int:
    """The query heads of every layer that has attention; 0 where none has.

    Raises InputError where they differ.
    """
    found = sorted({block.heads for block in blocks.blocks if block.heads})
    if len(found) > 1:
        raise InputError(
            f"layers have {', '.join(map(str, found))} query heads, and block configs count them once for all: plan "
            'with serve="vllm", which keeps them equal (key heads and widths may differ)'
        )
    return found[0] if found else 0
