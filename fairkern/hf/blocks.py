"""What a folder of transformers holds, block by block, read from names and shapes: Llama-like decoders.

Layers may differ: heads, key heads and widths are those of the tensors, whatever the configuration says. A part that is
not there, or has no heads or no width, adds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from fairkern.errors import InputError

Shape = tuple[int, ...]


class Rows(NamedTuple):
    """Some rows of a tensor of the folder; all of them where `stop` is None."""

    name: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Block:
    """One layer. `tensors` are its pieces by place: "q.weight", "down.bias", "attention_norm.weight", …

    `heads` or `width` of 0 is a layer without that part; a bias may still be there, which is then a constant.
    """

    heads: int
    key_heads: int
    width: int
    tensors: Mapping[str, Rows]

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.heads, self.key_heads, self.width

    @property
    def constants(self) -> set[str]:
        """Biases of parts without heads or width: all that those add."""
        absent = {"o.bias": not self.heads, "down.bias": not self.width}
        return {place for place in self.tensors if absent.get(place)}


@dataclass(frozen=True)
class Blocks:
    """A decoder: embedding [vocabulary, hidden], blocks, a norm, and an output unless that is the embedding."""

    hidden: int
    vocabulary: int
    head_size: int
    blocks: tuple[Block, ...]
    ends: Mapping[str, Rows]  # "embedding.weight", "norm.weight", "output.weight"

    @property
    def equal(self) -> bool:
        """Whether all layers have the same heads and widths, and both parts."""
        first = self.blocks[0].sizes
        return all(first) and all(block.sizes == first for block in self.blocks)

    @property
    def places(self) -> set[str]:
        return {place for block in self.blocks for place in block.tensors}


_PLACES = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.qkv_proj": "qkv",
    "self_attn.o_proj": "o",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.gate_up_proj": "gate_up",
    "mlp.down_proj": "down",
}
_ENDS = {"embed_tokens": "embedding", "norm": "norm", "lm_head": "output"}
_IN_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.(.+)\.(weight|bias)")
_AT_END = re.compile(r"(?:model\.)?(embed_tokens|norm|lm_head)\.(weight|bias)")
_COMPUTED = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")  # that older versions wrote
_EXPERTS = re.compile(r"\bexperts?\b|\brouter\b|\bblock_sparse_moe\b|\bshared_expert|mlp\.gate\.weight")


def blocks_of(shapes: Mapping[str, Shape], head_size: int, layers: int, *, tied: bool) -> Blocks:
    """Reads a decoder from the shapes of a folder's tensors.

    Args:
        shapes: of every tensor by its name, as on the hub.
        head_size: of a head, which no shape tells.
        layers: how many the configuration counts; a layer of which no tensor is there passes on what it is given.
        tied: whether the output is the embedding.

    Raises InputError for what has no place in such a decoder, is missing, or has shapes that do not fit.
    """
    found: dict[int, dict[str, Rows]] = {index: {} for index in range(layers)}
    ends: dict[str, Rows] = {}
    for name in shapes:
        if _COMPUTED.search(name):
            continue
        if inside := _IN_LAYER.fullmatch(name):
            index, part, kind = int(inside[1]), inside[2], inside[3]
            if part not in _PLACES:
                _no_place(name)
            if index not in found:
                raise InputError(f"{name} is of layer {index}, where the configuration counts {layers} layers")
            found[index][f"{_PLACES[part]}.{kind}"] = Rows(name)
        elif end := _AT_END.fullmatch(name):
            ends[f"{_ENDS[end[1]]}.{end[2]}"] = Rows(name)
        else:
            _no_place(name)
    for place in ("embedding.weight", "norm.weight", *([] if tied else ["output.weight"])):
        if place not in ends:
            raise InputError(f"the folder holds no {place.partition('.')[0]}: it is of no causal language model")
    extra = sorted(ends.keys() - {"embedding.weight", "norm.weight", "output.weight"})
    if extra:
        _no_place(ends[extra[0]].name)
    vocabulary, hidden = _dims(ends["embedding.weight"], shapes, 2)
    if "output.weight" in ends:
        _expect(ends["output.weight"], shapes, (vocabulary, hidden))
    _expect(ends["norm.weight"], shapes, (hidden,))
    blocks = tuple(_block(found[index], shapes, hidden, head_size) for index in sorted(found))
    return Blocks(hidden, vocabulary, head_size, blocks, ends)


def _block(tensors: dict[str, Rows], shapes: Mapping[str, Shape], hidden: int, size: int) -> Block:
    inner = shapes[tensors["o.weight"].name][-1] if "o.weight" in tensors else 0
    tensors = _unfused(tensors, shapes, inner)
    heads = _whole(tensors, shapes, "o.weight", inner, size) if inner else 0
    keys = rows_of(tensors["k.weight"], shapes) if "k.weight" in tensors else 0
    key_heads = _whole(tensors, shapes, "k.weight", keys, size) if heads and keys else 0
    width = shapes[tensors["down.weight"].name][-1] if "down.weight" in tensors else 0
    expected = {"q": (heads * size, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, heads * size)}
    expected |= {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    norms = {"attention_norm": (hidden,), "mlp_norm": (hidden,), "q_norm": (size,), "k_norm": (size,)}
    needed = ["attention_norm", "q", "k", "v", "o"] * bool(heads) + ["mlp_norm", "gate", "up", "down"] * bool(width)
    for part in needed:
        if f"{part}.weight" not in tensors:
            beside = next(iter(tensors.values())).name
            raise InputError(f"a layer lacks the weight {part!r} (it has {beside!r}): not a decoder that can be read")
    for place, rows in tensors.items():
        part, _, kind = place.partition(".")
        shape = norms.get(part) or (expected[part] if kind == "weight" else expected[part][:1])
        _expect(rows, shapes, shape)
    if heads and heads % key_heads:
        raise InputError(f"{tensors['q.weight'].name}: {heads} heads do not share {key_heads} key heads evenly")
    return Block(heads, key_heads, width, tensors)


def _unfused(tensors: dict[str, Rows], shapes: Mapping[str, Shape], inner: int) -> dict[str, Rows]:
    """Fused queries, keys and values, and fused gates, as rows of their own."""
    split = dict(tensors)
    for kind in ("weight", "bias"):
        if fused := split.pop(f"qkv.{kind}", None):
            rest = shapes[fused.name][0] - inner
            cuts = [0, inner, inner + rest // 2, inner + rest // 2 * 2]
            split |= {f"{p}.{kind}": Rows(fused.name, cuts[i], cuts[i + 1]) for i, p in enumerate("qkv")}
        if fused := split.pop(f"gate_up.{kind}", None):
            half = shapes[fused.name][0] // 2
            split |= {f"gate.{kind}": Rows(fused.name, 0, half), f"up.{kind}": Rows(fused.name, half, 2 * half)}
    return split


def rows_of(rows: Rows, shapes: Mapping[str, Shape]) -> int:
    return (shapes[rows.name][0] if rows.stop is None else rows.stop) - rows.start


def _whole(tensors: Mapping[str, Rows], shapes: Mapping[str, Shape], place: str, length: int, size: int) -> int:
    heads, rest = divmod(length, size)
    if rest or not heads:
        raise InputError(
            f"{tensors[place].name} of the shape {shapes[tensors[place].name]} is not of whole heads of {size}: "
            "config.json is of another model, or heads were cut within"
        )
    return heads


def _dims(rows: Rows, shapes: Mapping[str, Shape], count: int) -> Shape:
    shape = shapes[rows.name]
    if len(shape) != count:
        raise InputError(f"{rows.name} has the shape {shape}; expected {count} dimensions")
    return shape


def _expect(rows: Rows, shapes: Mapping[str, Shape], expected: Shape) -> None:
    found = (rows_of(rows, shapes), *shapes[rows.name][1:]) if shapes[rows.name] else ()
    if found != expected:
        raise InputError(f"{rows.name} has the shape {found}, where the tensors beside it leave {expected}")


def _no_place(name: str) -> NoReturn:
    what = "experts have" if _EXPERTS.search(name) else f"{name!r} has"
    raise InputError(
        f"{what} no place in a Llama-like decoder (embedding, layers of attention and gated MLP, norm, output)"
        + (f": {name!r}" if _EXPERTS.search(name) else "")
    )


def head_size_of(config: Any) -> int:
    """Of a configuration of transformers. Raises InputError where it names none."""
    size = getattr(config, "head_dim", None)
    if size is None:
        try:
            size = config.hidden_size // config.num_attention_heads
        except (AttributeError, TypeError, ZeroDivisionError):
            size = None
    if type(size) is not int:
        raise InputError("the configuration has neither head_dim nor hidden_size and num_attention_heads")
    return size
