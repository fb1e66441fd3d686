"""A folder that pruning left as one GGUF file, which llama.cpp and what is built on it load.

Layers that are all equal become the family's own architecture, or `llama`; layers that differ become `deci`, which
counts heads, key heads and widths layer by layer.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairkern.artefacts.writing import replacing
from fairkern.errors import InputError
from fairkern.hf.blocks import Block, Blocks, Rows, blocks_of
from fairkern.hf.decoder import Family, family_of
from fairkern.hf.gguf_names import ENDS, TENSORS, Architecture, architecture_of
from fairkern.hf.gguf_vocabulary import Vocabulary, vocabulary_of
from fairkern.hf.weights import Weights, open_weights
from fairkern.surroundings import stage

TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
_IN_A_BLOCK = 32  # of q8_0, along a row
_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Exported:
    """What was written: llama.cpp's architecture, its numbers by layer, whether text goes in or token ids alone."""

    path: Path
    architecture: str
    type: str
    heads: tuple[int, ...]
    key_heads: tuple[int, ...]
    widths: tuple[int, ...]
    vocabulary: bool


@stage
def export_gguf(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    type: str = "f16",
    *,
    vocab: bool = True,
) -> Exported:
    """Write `folder`, a Llama-like model, as a GGUF file for llama.cpp.

    Args:
        folder: config.json, weights as safetensors (shards too) and a tokenizer: what `fk.hf.save`, `save_pretrained`
            or `fk.save_pruned` with the model's config.json beside it leave. Where layers differ, their sizes are those
            of the tensors.
        path: file to write; it appears whole, or stays as it was.
        type: of matrices: "f32", "f16", "bf16" or "q8_0" (8 bits, blocks of 32 along a row). Vectors are float32.
        vocab: False leaves the tokenizer out, so that token ids go in and logits come out; so does a folder without.

    Raises:
        InputError: the type; a folder without weights, configuration or a shard; quantised weights; a family, tensor,
            bias, rotary embedding or tokenizer that llama.cpp cannot be told of; rows that do not fill blocks of q8_0;
            a path that cannot be written, a full disk. Says which, and what to do. Nothing is written.
        ArtefactError: weights that are truncated or damaged.

    Cost: one pass over the weights, one tensor in memory at a time, and a small model of the family that is built to be
    held against what the file will say.

    Example:
        >>> fk.hf.export_gguf("pruned", "pruned.gguf", "q8_0")  # doctest: +SKIP
    """
    if type not in TYPES:
        raise InputError(f"the type is {type!r}; expected one of {', '.join(TYPES)}")
    if importlib.util.find_spec("gguf") is None:
        raise InputError('GGUF files take the package gguf, which is not installed: pip install "fairkern[gguf]"')
    with open_weights(folder) as weights:
        family = family_of(weights.config)
        blocks = blocks_of(weights.shapes, family.head_size, family.layers, tied=family.tied)
        weights.check_head_size(family.head_size)
        weights.check_absent(blocks)
        if family.tied:
            weights.check_tied(blocks.ends)
            ends = {place: rows for place, rows in blocks.ends.items() if place != "output.weight"}
            blocks = dataclasses.replace(blocks, ends=ends)
        architecture = architecture_of(blocks, family)
        if architecture.by_layer:
            blocks = _filled(blocks)
        if type == "q8_0":
            _check_rows(blocks)
        tokenizer = weights.tokenizer() if vocab else None
        text = None if tokenizer is None else vocabulary_of(weights.path, tokenizer, weights.config, blocks.vocabulary)
        try:
            with replacing(path) as temporary:
                _write(temporary, type, architecture, family, blocks, text, weights)
                weights.check_sums()
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    sizes = zip(*(block.sizes for block in blocks.blocks), strict=True)
    heads, key_heads, widths = (tuple(numbers) for numbers in sizes)
    return Exported(Path(path), architecture.name, type, heads, key_heads, widths, text is not None)


def _filled(blocks: Blocks) -> Blocks:
    """The same decoder as `deci` can say it.

    llama.cpp takes the size of heads from the first layer, leaves out attention that has no MLP behind it, and biases
    of parts that are not there. A part in such a place gets weights of zero, which add what its bias says. A layer that
    adds nothing is left out.
    """
    kept = [block for block in blocks.blocks if any(block.sizes) or block.constants] or [blocks.blocks[0]]
    filled = []
    for index, block in enumerate(kept):
        absent = {*("q", "k", "v", "o") * (not block.heads), *("gate", "up", "down") * (not block.width)}
        pieces = {
            place: rows
            for place, rows in block.tensors.items()
            if place.partition(".")[0] not in absent or place in block.constants
        }
        heads, key_heads = block.heads, block.key_heads
        if not heads and (index == 0 or "o.bias" in pieces):
            heads, key_heads = _IN_A_BLOCK // math.gcd(_IN_A_BLOCK, blocks.head_size), 1
        filled.append(Block(heads, key_heads, block.width or _IN_A_BLOCK, pieces))
    return dataclasses.replace(blocks, blocks=tuple(filled))


def _check_rows(blocks: Blocks) -> None:
    """Raises InputError where rows do not fill blocks of q8_0."""
    uneven = [piece for piece in _pieces(blocks, None) if len(piece.shape) == 2 and piece.shape[1] % _IN_A_BLOCK]
    if uneven:
        widths = sorted({piece.shape[1] for piece in uneven})
        said = ", ".join([*map(str, widths[:8]), *["…"] * (len(widths) > 8)])
        raise InputError(
            f"q8_0 packs weights by {_IN_A_BLOCK} along a row, and {len(uneven)} matrices have rows that {_IN_A_BLOCK} "
            f"does not divide (the first is {uneven[0].said} with {uneven[0].shape[1]}; widths: {said}): plan with "
            f'serve="gguf:q8_0" or in multiples of {_IN_A_BLOCK}, or write f16 or bf16'
        )


@dataclass(frozen=True)
class _Piece:
    """A tensor of the file: its name there, its shape, and what it is: rows of the folder's, or a number everywhere.

    `rotated`: so many heads, whose rows are put in pairs. `offset`: what is added.
    """

    name: str
    shape: tuple[int, ...]
    rows: Rows | None
    number: float = 0.0
    rotated: int = 0
    offset: float = 0.0

    @property
    def said(self) -> str:
        return self.rows.name if self.rows else self.name


def _pieces(blocks: Blocks, architecture: Architecture | None, offset: float = 0.0) -> Iterator[_Piece]:
    """All tensors but for the factors of the rotary embedding, in the file's order."""
    hidden, size = blocks.hidden, blocks.head_size
    for place, end in blocks.ends.items():
        part = place.partition(".")[0]
        dims = (hidden,) if part == "norm" else (blocks.vocabulary, hidden)
        yield _Piece(f"{ENDS[part]}.weight", dims, end, offset=offset if part == "norm" else 0.0)
    for index, block in enumerate(blocks.blocks):
        inner, keys, width = block.heads * size, block.key_heads * size, block.width
        attention: dict[str, tuple[int, ...]] = {"attention_norm": (hidden,)}
        attention |= {"q": (inner, hidden), "k": (keys, hidden), "v": (keys, hidden)}
        attention |= {"q_norm": (size,), "k_norm": (size,), "o": (hidden, inner)}
        mlp: dict[str, tuple[int, ...]] = {"mlp_norm": (hidden,)}
        mlp |= {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
        for part, shape in ((attention if block.heads else {}) | mlp).items():
            rotated = {"q": block.heads, "k": block.key_heads}.get(part, 0)
            rotated *= architecture is not None and architecture.interleaved
            is_norm = part.endswith("norm")
            for kind in ("weight", "bias"):
                rows = block.tensors.get(f"{part}.{kind}")
                if rows is None and (kind == "bias" or part in ("q_norm", "k_norm")):
                    continue
                yield _Piece(
                    f"blk.{index}.{TENSORS[part]}.{kind}",
                    shape if kind == "weight" else shape[:1],
                    rows,
                    number=1.0 if is_norm else 0.0,
                    rotated=rotated,
                    offset=offset if is_norm and rows else 0.0,
                )


def _write(
    path: Path,
    type_: str,
    architecture: Architecture,
    family: Family,
    blocks: Blocks,
    text: Vocabulary | None,
    weights: Weights,
) -> None:
    gguf = importlib.import_module("gguf")
    quantised = gguf.GGMLQuantizationType[TYPES[type_]]
    plain = gguf.GGMLQuantizationType.F32
    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        _describe(writer, gguf, type_, family, blocks, text, weights.path.resolve().name)
        pieces = list(_pieces(blocks, architecture, family.variant.norm_offset))
        factors = np.array(family.factors, dtype=np.float32)
        if len(set(family.factors)) > 1:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes, plain)
        for piece in pieces:
            kind = quantised if len(piece.shape) == 2 else plain
            in_a_block, size = gguf.GGML_QUANT_SIZES[kind]
            length = math.prod(piece.shape) // in_a_block * size
            writer.add_tensor_info(piece.name, piece.shape, np.dtype(np.float32), length, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if len(set(family.factors)) > 1:
            writer.write_tensor_data(factors)
        for piece in pieces:
            values = _values(piece, weights, type_)
            kind = quantised if len(piece.shape) == 2 else plain
            writer.write_tensor_data(values if kind == plain else gguf.quants.quantize(values, kind))
    finally:
        writer.close()


def _describe(
    writer: Any, gguf: Any, type_: str, family: Family, blocks: Blocks, text: Vocabulary | None, name: str
) -> None:
    """Everything in the file but tensors."""
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[type_]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(len(blocks.blocks))
    writer.add_context_length(family.context)
    writer.add_embedding_length(blocks.hidden)
    for add, numbers in zip(
        (writer.add_head_count, writer.add_head_count_kv, writer.add_feed_forward_length),
        zip(*(block.sizes for block in blocks.blocks), strict=True),
        strict=True,
    ):
        add(numbers[0] if blocks.equal else list(numbers))
    writer.add_layer_norm_rms_eps(family.epsilon)
    writer.add_rope_freq_base(family.base)
    writer.add_rope_dimension_count(blocks.head_size)
    writer.add_key_length(blocks.head_size)
    writer.add_value_length(blocks.head_size)
    if set(family.factors) != {1.0} and len(set(family.factors)) == 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(family.factors[0])
    writer.add_vocab_size(blocks.vocabulary)
    if text is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        text.add_to(writer)


def _values(piece: _Piece, weights: Weights, type_: str) -> np.ndarray[Any, Any]:
    """A tensor's values in float32, as the file orders them."""
    if piece.rows is None:
        return np.full(piece.shape, piece.number, dtype=np.float32)
    values = weights.read(piece.rows).float()
    if piece.rotated:  # rows i and i + size / 2 of a head are rotated together
        values = values.unflatten(0, (piece.rotated, 2, -1)).transpose(1, 2).flatten(0, 2)
    values = values + piece.offset if piece.offset else values
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not math.isfinite(largest):
        raise InputError(f"{piece.said} holds numbers that are not finite: the model was broken before it was saved")
    if type_ == "f16" and values.ndim == 2 and largest > _LARGEST:
        raise InputError(f"{piece.said} holds {largest:.4g}, beyond what f16 can (65504): write bf16 or f32")
    return values.contiguous().numpy()
