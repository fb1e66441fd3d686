"""What a Llama-like decoder computes: the definition, and how a family of transformers is found to be one.

A family's name says nothing of what it multiplies, adds or leaves out on the way. So a model of its class is built from
the folder's configuration, small, with random weights, and its logits are held against the definition.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fairkern.errors import InputError
from fairkern.hf.blocks import Block, Blocks, blocks_of, head_size_of
from fairkern.hf.folder import first_line
from fairkern.hf.needed import quiet

_POSITIONS = 48
_TOLERANCE = 1e-4  # of the largest logit; another activation or epsilon is a thousandth, all else a tenth
_MOST = {  # beyond them a model is not built small, or a file not loaded
    "num_hidden_layers": 512,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 13,
    "hidden_size": 1 << 20,
    "max_position_embeddings": 1 << 31,
}
_STATIC = ("default", "linear", "llama3")  # whose frequencies do not depend on the length


@dataclass(frozen=True)
class Variant:
    """How the gate is activated, what is added to a norm's weight, and whether embeddings are scaled by √hidden."""

    name: str
    activation: str
    norm_offset: float
    scaled_embedding: bool


VARIANTS = (Variant("llama", "silu", 0.0, False), Variant("gemma", "gelu", 1.0, True))


@dataclass(frozen=True)
class Family:
    """What is known of a folder's configuration.

    `factors` [head_size / 2] divide the frequencies `base^(-2i / head_size)` of the rotary embedding.
    """

    variant: Variant
    head_size: int
    layers: int
    tied: bool
    epsilon: float
    base: float
    factors: tuple[float, ...]
    context: int

    @property
    def frequencies(self) -> Tensor:
        """[head_size / 2], float32."""
        return _frequencies(self.base, self.head_size) / torch.tensor(self.factors, dtype=torch.float32, device="cpu")


def logits(tokens: Tensor, blocks: Blocks, weights: Mapping[str, Tensor], family: Family) -> Tensor:
    """The definition: tokens [n] → logits [n, vocabulary], in the dtype of the weights.

    Each layer adds attention of its normed input and then a gated MLP of its normed input; heads are rotated in halves,
    query head i reads key head i // (heads / key heads), and a layer without heads or width adds what its bias says.
    """
    variant = family.variant
    angles = torch.outer(torch.arange(len(tokens), dtype=torch.float32, device="cpu"), family.frequencies)
    x = weights[blocks.ends["embedding.weight"].name][tokens]
    if variant.scaled_embedding:
        x = x * math.sqrt(blocks.hidden)

    def piece(block: Block, place: str) -> Tensor | None:
        rows = block.tensors.get(place)
        return None if rows is None else weights[rows.name][rows.start : rows.stop]

    def norm(x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return x
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + family.epsilon) * (weight + variant.norm_offset)

    def linear(x: Tensor, block: Block, part: str) -> Tensor:
        weight, bias = piece(block, f"{part}.weight"), piece(block, f"{part}.bias")
        assert weight is not None
        return functional.linear(x, weight, bias)

    def rotated(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        cos, sin = (torch.cat([f(angles)] * 2, -1).to(x.dtype)[:, None] for f in (torch.cos, torch.sin))
        return x * cos + torch.cat([-second, first], -1) * sin

    def attention(x: Tensor, block: Block) -> Tensor:
        if not block.heads:
            return x + constant if (constant := piece(block, "o.bias")) is not None else x
        y = norm(x, piece(block, "attention_norm.weight"))
        q, k, v = (linear(y, block, part).unflatten(-1, (-1, blocks.head_size)) for part in "qkv")
        q, k = rotated(norm(q, piece(block, "q_norm.weight"))), rotated(norm(k, piece(block, "k_norm.weight")))
        k, v = (t.repeat_interleave(block.heads // block.key_heads, 1) for t in (k, v))
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + linear(out.transpose(0, 1).flatten(1), block, "o")

    def mlp(x: Tensor, block: Block) -> Tensor:
        if not block.width:
            return x + constant if (constant := piece(block, "down.bias")) is not None else x
        y = norm(x, piece(block, "mlp_norm.weight"))
        gate = linear(y, block, "gate")
        gate = functional.silu(gate) if variant.activation == "silu" else functional.gelu(gate, approximate="tanh")
        return x + linear(gate * linear(y, block, "up"), block, "down")

    for block in blocks.blocks:
        x = mlp(attention(x, block), block)
    output = blocks.ends["embedding.weight" if family.tied else "output.weight"]
    return functional.linear(norm(x, weights[blocks.ends["norm.weight"].name]), weights[output.name])


def family_of(config: Any) -> Family:
    """What a configuration of transformers says and its class does.

    Raises InputError where the class computes something else than the definition, or something that short inputs do not
    show (sliding windows, rotary embeddings that depend on the length).

    Cost: a model with the configuration's layers, 64 channels wide, is built and run once.
    """
    _refuse_unseen(config)
    small, shapes = _small(config)
    tied, size = bool(getattr(config, "tie_word_embeddings", False)), head_size_of(config)
    blocks = blocks_of(shapes, size, config.num_hidden_layers, tied=tied)
    weights = {name: value.detach() for name, value in small.state_dict().items()}
    tokens = torch.arange(_POSITIONS, device="cpu").mul(7).remainder(blocks.vocabulary)
    base, factors = _rotary(config, small, size)
    with torch.no_grad():
        expected = small(input_ids=tokens[None], use_cache=False).logits[0]
        away = []
        for variant in VARIANTS:
            family = Family(
                variant=variant,
                head_size=size,
                layers=config.num_hidden_layers,
                tied=tied,
                epsilon=float(config.rms_norm_eps),
                base=base,
                factors=factors,
                context=int(config.max_position_embeddings),
            )
            away.append(float((logits(tokens, blocks, weights, family) - expected).abs().max() / expected.abs().max()))
            if away[-1] <= _TOLERANCE:
                return family
    raise InputError(
        f"{type(small).__name__} has the weights of a Llama-like decoder and computes something else with them (logits "
        f"of a small model differ by {min(away):.0%} of the largest): scales, soft caps, layers without rotation or "
        "another activation cannot be said"
    )


def places_of(config: Any) -> set[str]:
    """Places of all tensors that layers of a configuration hold, and would load: "q.weight", "down.bias", …"""
    tied = bool(getattr(config, "tie_word_embeddings", False))
    return blocks_of(_small(config)[1], head_size_of(config), config.num_hidden_layers, tied=tied).places


def _refuse_unseen(config: Any) -> None:
    missing = [n for n in ("rms_norm_eps", "num_hidden_layers", "max_position_embeddings") if not hasattr(config, n)]
    if missing:
        raise InputError(f"the model type {config.model_type!r} has no {missing[0]}: it is no Llama-like decoder")
    for name, most in _MOST.items():
        value = getattr(config, name, None)
        if value is not None and (type(value) is not int or not 0 < value <= most):
            raise InputError(f"the configuration gives {name} as {value!r}; expected a whole number, 1 to {most}")
    if not 0 < float(config.rms_norm_eps) < 1:
        raise InputError(f"the configuration gives rms_norm_eps as {config.rms_norm_eps!r}; expected 0 to 1")
    context = config.max_position_embeddings
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    for name in ("sliding_window", "attention_chunk_size"):
        window = getattr(config, name, None)
        if window is not None and not isinstance(window, (int, float)):
            raise InputError(f"the configuration gives {name} as {window!r}; expected a whole number or nothing")
        if window is not None and window < context and kinds != {"full_attention"}:
            raise InputError(
                f"{name} is {window} and the context {context}: attention that does not reach back to the start cannot "
                "be said. Where that is enough, set max_position_embeddings to the window in config.json"
            )
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind not in _STATIC or not isinstance(rope.get("rope_theta"), (int, float)) or rope["rope_theta"] <= 0:
        raise InputError(
            f"the rotary embedding {kind!r} of the configuration cannot be said; expected one of {', '.join(_STATIC)}"
        )


def _small(config: Any) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    """A model of the configuration's class and the same layers, narrow, in float32, with random weights."""
    small = copy.deepcopy(config)
    size = head_size_of(config)
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    shared, fewer = heads // key_heads, min(key_heads, 2)
    hidden = shared * fewer * math.ceil(64 / (shared * fewer))
    given = {"num_key_value_heads": fewer, "num_attention_heads": shared * fewer, "head_dim": size}
    given |= {"hidden_size": hidden, "intermediate_size": 48, "vocab_size": 64, "pad_token_id": None}
    with quiet() as transformers, torch.random.fork_rng(devices=[]), torch.device("cpu"):
        try:
            for name, value in given.items():
                setattr(small, name, value)
            model = transformers.AutoModelForCausalLM.from_config(
                small, dtype=torch.float32, attn_implementation="eager"
            ).eval()
        except Exception as error:  # whatever its class makes of the numbers
            raise InputError(
                f"no small model of the type {config.model_type!r} can be built: {first_line(error)}"
            ) from error
    source = torch.Generator(device="cpu").manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            noise = torch.randn(value.shape, generator=source, dtype=torch.float32, device="cpu")
            value.copy_(noise * (1.5 / math.sqrt(value.shape[-1])) if value.ndim > 1 else 1 + noise * 0.3)
        model.get_input_embeddings().weight.mul_(0.02)  # so that epsilon shows
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return model, {n: s for n, s in shapes.items() if not (tied and n.startswith("lm_head."))}


def _rotary(config: Any, model: nn.Module, size: int) -> tuple[float, tuple[float, ...]]:
    """The base of the frequencies, and what those of the model are divided by."""
    found = [value for name, value in model.named_buffers() if name.endswith("rotary_emb.inv_freq")]
    if len(found) != 1 or found[0].shape != (size // 2,):
        raise InputError(f"{type(model).__name__} does not rotate whole heads of {size} by one set of frequencies")
    base = float(config.rope_parameters["rope_theta"])
    factors = _frequencies(base, size) / found[0].float()
    return base, tuple(float(f) for f in factors.round(decimals=6))


def _frequencies(base: float, size: int) -> Tensor:
    return 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size)
