"""A tokenizer of transformers as llama.cpp's: tokens, merges, how text is split, special tokens, chat template.

Of byte-level BPE llama.cpp knows a list of ways to split text, by names; the name is found here by the expressions of
the tokenizer itself. SentencePiece's is read from tokenizer.model, or from a converted one whose merges are in the
order of their tokens. Anything else is refused: a file whose text is cut up in another way would load, and answer
worse.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from fairkern.errors import InputError

WITHOUT = "or write a file without a vocabulary (vocab=False, --no-vocab): token ids in, logits out"

_GPT2 = "byte level"  # the expression that the byte-level splitter itself has
_DIGITS = "digits"
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_END}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_END}"
_QWEN35 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_END}"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_TEKKEN = rf"{_UPPER}|{_LOWER}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_END}"
_GPT4O = rf"{_UPPER}{_CONTRACTION}?|{_LOWER}{_CONTRACTION}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_END}"

_SPLITS: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGITS, _GPT2), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    ((_TEKKEN,), True): "tekken",
    ((_GPT4O,), False): "gpt-4o",
}
"""llama.cpp's names, by the expressions that split text one after the other and whether whole words skip merging."""


class Kind(IntEnum):
    """Of a token, as the file has it."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER = 4
    UNUSED = 5
    BYTE = 6


Pieces = dict[int, tuple[str, Kind]]
"""Tokens by their numbers."""


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of text. `model` "gpt2" (byte-level BPE) or "llama" (SentencePiece)."""

    model: str
    split: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] | None = None
    special: Mapping[str, int] = field(default_factory=dict)
    adds: Mapping[str, bool] = field(default_factory=dict)
    chat_template: str | None = None

    def add_to(self, writer: Any) -> None:
        """Says it to a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(self.tokens)
        writer.add_token_types([int(kind) for kind in self.kinds])
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        for name, index in self.special.items():
            getattr(writer, f"add_{name}_token_id")(index)
        writer.add_add_bos_token(self.adds["bos"])
        writer.add_add_eos_token(self.adds["eos"])
        if "prefix" in self.adds:
            writer.add_add_space_prefix(self.adds["prefix"])
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def vocabulary_of(folder: Path, tokenizer: Any, config: Any, length: int) -> Vocabulary:
    """Of a loaded tokenizer of transformers, filled up to `length` tokens, the rows of the embedding.

    Raises InputError for what llama.cpp would cut up in another way, or cannot load.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"the tokenizer of {folder} is not one of the tokenizers package: convert it, {WITHOUT}")
    content = json.loads(backend.to_str())
    kind = content["model"].get("type")
    if kind == "BPE" and not content["model"].get("byte_fallback"):
        model, split, pieces, scores = "gpt2", _split(content), _pieces(content), None
        if not content["model"]["merges"]:
            raise InputError(f"the tokenizer of {folder} has no merges, which llama.cpp does not load: {WITHOUT}")
    elif kind in ("BPE", "Unigram") and ((folder / "tokenizer.model").is_file() or kind == "BPE"):
        model, split = "llama", "default"
        pieces, scores = _sentencepiece(folder / "tokenizer.model", content) or _ranked(folder, content)
    else:
        raise InputError(f"the tokenizer of {folder} is {kind}, which llama.cpp has not: expected BPE, {WITHOUT}")
    _add(pieces, content["added_tokens"])
    tokens, kinds = _filled(folder, pieces, length)
    special = _special(tokenizer, config, length)
    if "eos" not in special:
        default = {"gpt2": 11, "llama": 2}[model]
        raise InputError(
            f"neither the tokenizer of {folder} nor config.json names a token that ends a text, and llama.cpp would "
            f"take number {default} for it: set eos_token_id in config.json, {WITHOUT}"
        )
    special = {"bos": special["eos"], **special}  # else it would be such a number too
    template = tokenizer.chat_template
    return Vocabulary(
        model=model,
        split=split,
        tokens=tokens,
        kinds=kinds,
        merges=_merges(content) if model == "gpt2" else [],
        scores=None if scores is None else [scores.get(index, -1000.0) for index in range(length)],
        special=special,
        adds=_adds(tokenizer, model),
        chat_template=template.get("default") if isinstance(template, dict) else template,
    )


def _split(content: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits text."""
    expressions = tuple(_expressions(content.get("pre_tokenizer")))
    normalizer = (content.get("normalizer") or {}).get("type", "NFC")
    name = _SPLITS.get((expressions, bool(content["model"].get("ignore_merges"))))
    if name is None or normalizer != "NFC":
        what = f"normalises text by {normalizer}" if normalizer != "NFC" else f"splits text by {list(expressions)}"
        raise InputError(
            f"the tokenizer {what}, for which no name of llama.cpp is known here (known: "
            f"{', '.join(sorted(set(_SPLITS.values())))}): convert the model that was pruned by llama.cpp's own script "
            f"and take the vocabulary from there, {WITHOUT}"
        )
    return name


def _expressions(splitter: Mapping[str, Any] | None) -> list[str]:
    if splitter is None:
        return ["nothing"]
    kind = splitter["type"]
    if kind == "Sequence":
        return [name for part in splitter["pretokenizers"] for name in _expressions(part)]
    if kind == "ByteLevel":
        prefix = ["a space in front"] if splitter["add_prefix_space"] else []
        return prefix + ([_GPT2] if splitter.get("use_regex", True) else [])
    if kind == "Digits":
        return [_DIGITS if splitter["individual_digits"] else "numbers"]
    if kind == "Split" and splitter["behavior"] == "Isolated" and not splitter.get("invert"):
        return [splitter["pattern"].get("Regex", str(splitter["pattern"]))]
    return [kind]


def _pieces(content: Mapping[str, Any]) -> Pieces:
    return {index: (token, Kind.NORMAL) for token, index in content["model"]["vocab"].items()}


def _merges(content: Mapping[str, Any]) -> list[str]:
    """Pairs with one space between them; a space within a piece is written as byte-level BPE writes it."""
    pairs = (merge if isinstance(merge, list) else merge.split(" ", 1) for merge in content["model"]["merges"])
    return [" ".join(piece.replace(" ", "Ġ") for piece in pair) for pair in pairs]


def _sentencepiece(path: Path, content: Mapping[str, Any]) -> tuple[Pieces, dict[int, float]] | None:
    """Pieces and their scores, from SentencePiece's own file; None where there is none."""
    if not path.is_file():
        return None
    if importlib.util.find_spec("sentencepiece") is None:
        raise InputError(f"{path} takes the package sentencepiece to be read: pip install sentencepiece")
    model = importlib.import_module("sentencepiece").SentencePieceProcessor()
    try:
        model.LoadFromFile(str(path))
    except (RuntimeError, OSError) as error:
        raise InputError(f"{path} is damaged or not a SentencePiece model ({error}): copy it again") from None
    kinds = (
        (model.IsUnknown, Kind.UNKNOWN),
        (model.IsControl, Kind.CONTROL),
        (model.IsUnused, Kind.UNUSED),
        (model.IsByte, Kind.BYTE),
    )
    pieces, scores = {}, {}
    for index in range(model.vocab_size()):
        kind = next((kind for asked, kind in kinds if asked(index)), Kind.NORMAL)
        pieces[index], scores[index] = (model.IdToPiece(index), kind), float(model.GetScore(index))
    known = content["model"].get("vocab")
    other = known if isinstance(known, dict) else {}
    for index, (piece, kind) in pieces.items():
        if other and kind == Kind.NORMAL and other.get(piece) != index:
            raise InputError(f"{path} and the tokenizer beside it disagree on the token {index} ({piece!r})")
    return pieces, scores


def _ranked(folder: Path, content: Mapping[str, Any]) -> tuple[Pieces, dict[int, float]]:
    """Of a converted SentencePiece tokenizer. Its merges are told by scores, which takes them in the tokens' order."""
    vocab = content["model"]["vocab"]
    made: dict[int, int] = {}
    for rank, merge in enumerate(content["model"]["merges"]):
        left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
        made.setdefault(vocab[left + right], rank)
    ranks = [made[index] for index in sorted(made)]
    if ranks != sorted(ranks):
        raise InputError(
            f"the merges of the tokenizer of {folder} are not in the order of their tokens, and there is no "
            f"tokenizer.model with their scores: copy it there, {WITHOUT}"
        )
    unknown = content["model"].get("unk_token")
    pieces = {}
    for piece, index in vocab.items():
        byte = len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
        pieces[index] = (piece, Kind.BYTE if byte else Kind.UNKNOWN if piece == unknown else Kind.NORMAL)
    return pieces, {index: -float(index) for index in vocab.values()}


def _add(pieces: Pieces, added: list[Mapping[str, Any]]) -> None:
    """Tokens that were added, special ones as control; an unknown one stays what it is."""
    for token in added:
        if pieces.get(token["id"], ("", None))[1] != Kind.UNKNOWN:
            pieces[token["id"]] = (token["content"], Kind.CONTROL if token["special"] else Kind.USER)


def _filled(folder: Path, pieces: Mapping[int, tuple[str, Kind]], length: int) -> tuple[list[str], list[int]]:
    beyond = [index for index in pieces if index >= length]
    if beyond:
        raise InputError(f"the tokenizer of {folder} has the token {max(beyond)}, the embedding {length} rows")
    filled = [pieces.get(index, (f"[PAD{index}]", Kind.UNUSED)) for index in range(length)]
    tokens = [token for token, _ in filled]
    if len(set(tokens)) != length or "" in tokens:  # llama.cpp aborts on it
        twice = next((t for i, t in enumerate(tokens) if not t or t in tokens[:i]), "")
        raise InputError(f"the tokenizer of {folder} has the token {twice!r} twice, or an empty one: {WITHOUT}")
    return tokens, [int(kind) for _, kind in filled]


def _special(tokenizer: Any, config: Any, length: int) -> dict[str, int]:
    """Numbers of special tokens; further ones that end a text as the end of a turn and of a message."""
    found: dict[str, int] = {}
    for name in ("bos", "eos", "unk", "pad"):
        for source in (tokenizer, config):
            value = getattr(source, f"{name}_token_id", None)
            first = value[0] if isinstance(value, (list, tuple)) and value else value
            if type(first) is int and 0 <= first < length:
                found.setdefault(name, first)
    ends = getattr(config, "eos_token_id", None)
    others = [end for end in ends if end != found.get("eos")] if isinstance(ends, (list, tuple)) else []
    return found | dict(zip(("eot", "eom"), others, strict=False))


def _adds(tokenizer: Any, model: str) -> dict[str, bool]:
    """What the tokenizer puts around a text, asked of it."""
    around, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    adds = {
        "bos": len(around) > len(bare) and around[0] == tokenizer.bos_token_id,
        "eos": len(around) > len(bare) and around[-1] == tokenizer.eos_token_id,
    }
    if model == "llama":
        adds["prefix"] = "".join(tokenizer.convert_ids_to_tokens(bare)).startswith("▁")
    return adds
