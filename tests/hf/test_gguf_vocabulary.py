"""Tokenizers in GGUF files, and what llama.cpp makes of text by them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fairkern as fk
from fairkern.hf import gguf_vocabulary as known
from tests.hf.decoders import SIZES

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
gguf = pytest.importorskip("gguf")

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it?\n\n  def f(x):\n    return x+1",
    "Ünïcode tèxt — naïve café 你好 мир!",
    "numbers 1 22 333 4444 and hello hello hello world world",
] * 20
TEXTS = (
    "Hello world, it's 12345!",
    "two  spaces\n\nnew café 你好",
    "isn't THE dog's f(x)=2222\t tab",
    "a",
    "<|end|>The<|end|>",
    "🙂 ok <user> hi",
)


def byte_level(*splits: Any, ignore_merges: bool = False, normalizer: Any = None, use_regex: bool = False) -> Any:
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        made.normalizer = normalizer
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    made.pre_tokenizer = pre_tokenizers.Sequence([*splits, last]) if splits else last
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin|>", "<|end|>"],
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    made.add_tokens(["<user>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|begin|>", eos_token="<|end|>")


def split(expression: str) -> Any:
    return pre_tokenizers.Split(Regex(expression), "isolated")


def with_start(tokenizer: Any) -> Any:
    start, number = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, number)]
    )
    return tokenizer


def converted(prefix: bool) -> Any:
    """As transformers converts one of SentencePiece."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    space = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*special, *(f"<0x{i:02X}>" for i in range(256))], show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    content = json.loads(made.to_str())
    content["added_tokens"] = content["added_tokens"][: len(special)]  # bytes are pieces
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(content)), bos_token="<s>", eos_token="</s>"
    )


def sentencepiece(folder: Path) -> Any:
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    (folder / "corpus.txt").write_text("\n".join(CORPUS))
    trainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.99,
        minloglevel=2,
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    )
    transformers.LlamaConfig().save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def folder_of(tokenizer: Any, folder: Path, **given: Any) -> Path:
    """A folder with a model of one layer, seven rows longer than the tokenizer."""
    sizes = {**SIZES, "num_hidden_layers": 1, "vocab_size": len(tokenizer) + 7}
    config = transformers.LlamaConfig(**{**sizes, "bos_token_id": None, "eos_token_id": None, **given})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


BYTE_LEVEL: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: byte_level(use_regex=True),
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "llama-bpe": lambda: with_start(byte_level(split(known._LLAMA3), ignore_merges=True)),
    "smaug-bpe": lambda: byte_level(split(known._LLAMA3)),
    "qwen2": lambda: byte_level(split(known._QWEN2), normalizer=normalizers.NFC()),
    "qwen35": lambda: byte_level(split(known._QWEN35)),
    "tekken": lambda: with_start(byte_level(split(known._TEKKEN), ignore_merges=True)),
    "gpt-4o": lambda: byte_level(split(known._GPT4O)),
}


def same_tokens(path: Path, tokenizer: Any) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in TEXTS:
        assert model.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text)["input_ids"], text
    assert model.token_eos() == tokenizer.eos_token_id
    model.close()


def fields(path: Path) -> dict[str, Any]:
    found = gguf.GGUFReader(path).fields
    return {name.removeprefix("tokenizer."): f.contents() for name, f in found.items() if name.startswith("tokenizer.")}


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level(name: str, tmp_path: Path) -> None:
    tokenizer = BYTE_LEVEL[name]()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    done = fk.hf.export_gguf(folder_of(tokenizer, tmp_path / "folder"), tmp_path / "model.gguf")
    found = fields(tmp_path / "model.gguf")
    assert done.vocabulary
    assert (found["ggml.model"], found["ggml.pre"]) == ("gpt2", name)
    assert found["chat_template"] == tokenizer.chat_template
    assert found["ggml.tokens"][-8:] == ["<user>", *(f"[PAD{len(tokenizer) + i}]" for i in range(7))]
    assert found["ggml.token_type"][:3] == [3, 3, 1]  # control, control, normal
    assert found["ggml.token_type"][-8:] == [4] + [5] * 7  # a user's, unused
    assert (found["ggml.bos_token_id"], found["ggml.eos_token_id"]) == (0, 1)
    assert found["ggml.add_bos_token"] == (name in ("llama-bpe", "tekken"))
    same_tokens(tmp_path / "model.gguf", tokenizer)


@pytest.mark.parametrize("prefix", [True, False])
def test_converted_sentencepiece(prefix: bool, tmp_path: Path) -> None:
    tokenizer = converted(prefix)
    fk.hf.export_gguf(folder_of(tokenizer, tmp_path / "folder"), tmp_path / "model.gguf")
    found = fields(tmp_path / "model.gguf")
    assert (found["ggml.model"], found["ggml.add_space_prefix"]) == ("llama", prefix)
    assert found["ggml.token_type"][:4] == [2, 3, 3, 6]  # unknown, control, control, a byte
    same_tokens(tmp_path / "model.gguf", tokenizer)


@pytest.mark.parametrize("own_file", [True, False])
def test_sentencepiece(own_file: bool, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    tokenizer = sentencepiece(tmp_path / "own")
    folder = folder_of(tokenizer, tmp_path / "folder")
    if own_file:
        (tmp_path / "own" / "tokenizer.model").rename(folder / "tokenizer.model")
    else:
        (folder / "tokenizer.model").unlink(missing_ok=True)
    fk.hf.export_gguf(folder, tmp_path / "model.gguf")
    same_tokens(tmp_path / "model.gguf", tokenizer)


def test_a_damaged_tokenizer_model(tmp_path: Path) -> None:
    folder = folder_of(converted(True), tmp_path / "folder")
    (folder / "tokenizer.model").write_bytes(b"not one")
    pytest.importorskip("sentencepiece")
    refused(folder, "damaged or not a SentencePiece model")


def refused(folder: Path, what: str) -> None:
    with pytest.raises(fk.InputError, match=what) as raised:
        fk.hf.export_gguf(folder, folder.parent / "model.gguf")
    assert "\n" not in str(raised.value)
    assert not (folder.parent / "model.gguf").exists()
    assert not fk.hf.export_gguf(folder, folder.parent / "bare.gguf", vocab=False).vocabulary


def test_text_that_is_split_in_another_way(tmp_path: Path) -> None:
    refused(folder_of(byte_level(split(r"\w+|\W+")), tmp_path / "folder"), r"splits text by .*no name of llama.cpp")


def test_text_that_is_normalised_in_another_way(tmp_path: Path) -> None:
    tokenizer = byte_level(use_regex=True, normalizer=normalizers.Lowercase())
    refused(folder_of(tokenizer, tmp_path / "folder"), "normalises text by Lowercase")


def test_words(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="b")
    refused(folder_of(tokenizer, tmp_path / "folder"), "is WordLevel, which llama.cpp has not")


def test_no_token_ends_a_text(tmp_path: Path) -> None:
    tokenizer = byte_level(use_regex=True)
    tokenizer.eos_token = None
    refused(
        folder_of(tokenizer, tmp_path / "one"), "names a token that ends a text, and llama.cpp would take number 11"
    )
    folder = folder_of(tokenizer, tmp_path / "two", eos_token_id=[7, 9])
    fk.hf.export_gguf(folder, tmp_path / "two.gguf")
    found = fields(tmp_path / "two.gguf")
    assert (found["ggml.eos_token_id"], found["ggml.eot_token_id"]) == (7, 9)


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    tokenizer = byte_level(use_regex=True)
    folder = folder_of(tokenizer, tmp_path / "folder", vocab_size=len(tokenizer) - 1)
    refused(folder, f"has the token {len(tokenizer) - 1}, the embedding {len(tokenizer) - 1} rows")
