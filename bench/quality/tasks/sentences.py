"""Sentences of the standard library's documentation, for a model that embeds sentences."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bench.quality.tasks.task import Batch, Task
from bench.quality.tasks.text import docstrings

CLASSES = 10  # those that say most, of the modules with enough sentences
CALIBRATION = 40  # sentences a class
TEST = 96  # sentences of other modules
BATCH = 32
LENGTH = 24  # tokens at most
TEMPERATURE = 0.1


@cache
def sentences(embed: nn.Module, tokenise: Any) -> Task:
    """How alike the embeddings of unseen sentences are before and after: the mean cosine.

    The cosine to its own embedding is at its maximum before the cut, where its gradient is zero and first-order scores
    say nothing. So the loss is the cross-entropy of telling the module of a sentence by the nearest class mean.
    """

    def tokens(texts: list[str]) -> dict[str, Tensor]:
        made = tokenise(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}

    firsts = [_firsts(texts) for texts in docstrings().values()]
    enough = [texts for texts in firsts if len(texts) >= CALIBRATION][:CLASSES]
    if len(enough) < CLASSES:
        raise RuntimeError(f"{len(enough)} modules have {CALIBRATION} sentences; expected {CLASSES}")
    chosen = [texts[:CALIBRATION] for texts in enough]
    seen = [text for row in zip(*chosen, strict=True) for text in row]  # classes in turn
    labels = torch.arange(CLASSES).repeat(CALIBRATION)
    calibration: list[Batch] = [
        (tokens(seen[start : start + BATCH]), labels[start : start + BATCH]) for start in range(0, len(seen), BATCH)
    ]
    unseen = tokens([text for texts in firsts if texts not in enough for text in texts[:3]][:TEST])
    with torch.inference_mode():
        embedded = torch.cat([embed(**inputs) for inputs, _ in calibration])
        before = embed(**unseen).clone()
    means = torch.stack([embedded[labels == label].mean(0) for label in range(CLASSES)]).clone()

    def loss(embedding: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(embedding @ means.T / TEMPERATURE, label)

    def cosine(model: nn.Module) -> float:
        with torch.inference_mode():
            return float((model.eval()(**unseen) * before).sum(1).mean())

    return Task("sentences", "cosine", calibration, loss, cosine)


def _firsts(texts: list[str]) -> list[str]:
    """The first sentence of each documentation string, those of four words or more, once each."""
    firsts = [" ".join(text.split("\n\n")[0].split()) for text in texts]
    return list(dict.fromkeys(first for first in firsts if first.count(" ") >= 3))
