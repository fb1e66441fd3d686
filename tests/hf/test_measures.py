"""Perplexity, speed and cache of language models, held against other ways to have them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from fairkern.hf.folder import open_folder
from fairkern.hf.measures import cache_bytes_per_token, generate, perplexity, tokens_per_second
from fairkern.hf.sequences import Layout, batches
from fairkern.hf.text import read_documents

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(made: Path) -> torch.nn.Module:
    return open_folder(made).load(None, torch.device("cpu"))[0]


def test_perplexity_is_that_of_token_by_token(model: torch.nn.Module) -> None:
    rows = torch.randint(3, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    labels = rows.clone()
    labels[1, :4] = -100
    surprise = []
    with torch.no_grad():
        for row, shown in zip(rows, labels, strict=True):
            for t in range(1, 9):
                if shown[t] != -100:
                    odds = model(input_ids=row[None, :t]).logits[0, -1].double().softmax(0)
                    surprise.append(-math.log(float(odds[row[t]])))
    expected = math.exp(sum(surprise) / len(surprise))
    together = [{"input_ids": rows, "labels": labels}]
    apart = [{"input_ids": rows[i : i + 1], "labels": labels[i : i + 1]} for i in range(3)]
    assert perplexity(model, together) == pytest.approx(expected, rel=1e-4)
    assert perplexity(model, apart) == pytest.approx(expected, rel=1e-4)


def test_the_side_of_padding_does_not_matter(made: Path) -> None:
    for family in ("llama", "gpt2"):
        if family == "gpt2":  # positions are added there, not turned
            from bench.shipping.families import stir

            sizes = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
            model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
            stir(model)
        else:
            model = open_folder(made).load(None, torch.device("cpu"))[0]
        tokenizer = open_folder(made).tokenizer()
        texts = [f"text number {i} " + "is longer " * (i % 5) for i in range(24)]
        documents = read_documents(texts, tokenizer)
        found = []
        for side, batch in (("left", 4), ("right", 4), ("right", 1)):
            data = batches(documents, tokenizer, Layout(32, 50, 0.4, batch, False, side), 320)
            found.append(perplexity(model, data.held_out))
        assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-5), family


def test_infinite_perplexity(model: torch.nn.Module) -> None:
    class Sure(torch.nn.Module):
        weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor) -> object:
            logits = torch.zeros(*input_ids.shape, 4)
            logits[..., 0] = 1e6
            return type("Out", (), {"logits": logits})()

    assert perplexity(Sure(), [{"input_ids": torch.ones(1, 3).long(), "labels": torch.ones(1, 3).long()}]) == math.inf


def test_bytes_of_the_cache(model: torch.nn.Module) -> None:
    # keys and values of 4 layers, 4 key heads of 6 float32 each
    assert cache_bytes_per_token(model, torch.arange(3, 13)) == 2 * 4 * 4 * 6 * 4


def test_generation_goes_by_no_settings_of_the_model(model: torch.nn.Module) -> None:
    model.generation_config.do_sample, model.generation_config.temperature = True, 3.0
    ids = torch.arange(3, 13)[None]
    first = generate(model, ids, 12)
    assert first.shape == (1, 12)
    assert torch.equal(first, generate(model, ids, 12))
    assert torch.equal(first, generate(model, ids, 12, "static"))
    expected = ids
    with torch.no_grad():
        for _ in range(12):
            expected = torch.cat([expected, model(input_ids=expected).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(first, expected[:, 10:])


def test_speed_is_measured(model: torch.nn.Module) -> None:
    assert 1 < tokens_per_second(model, torch.arange(3, 13), 4) < 1e6
