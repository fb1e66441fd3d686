"""Passages of the standard library's documentation, for a model that embeds sentences."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bench.quality.tasks.task import Batch, Task
from bench.quality.tasks.text import docstrings

CLASSES = 25  # those that say most, of the modules with enough passages
CALIBRATION = 96  # passages a class
TEST = 96  # passages of other modules
BATCH = 32
LENGTH = 24  # tokens of every passage: none is padded


@cache
def sentences(embed: nn.Module, tokenise: Any) -> Task:
    """How alike the embeddings of unseen passages are before and after: the mean cosine.

    The cosine to its own embedding is at its maximum before the cut, where its gradient is zero and first-order scores
    say nothing. So the loss is the embedding's part along a random direction, one for each passage: its gradient is
    zero nowhere, and its mean square is the curvature of the squared distance to the embedding before the cut.
    """

    first, last = (int(i) for i in tokenise("")["input_ids"])  # what every passage begins and ends with

    def tokens(texts: list[str]) -> Tensor:
        ids = torch.tensor(tokenise("\n".join(texts), add_special_tokens=False, verbose=False)["input_ids"])
        words = ids[: len(ids) // (LENGTH - 2) * (LENGTH - 2)].long().view(-1, LENGTH - 2)
        return nn.functional.pad(nn.functional.pad(words, (1, 0), value=first), (0, 1), value=last)

    passages = [tokens(list(dict.fromkeys(texts))) for texts in docstrings().values()]
    enough = [i for i, found in enumerate(passages) if len(found) >= CALIBRATION][:CLASSES]
    if len(enough) < CLASSES:
        raise RuntimeError(f"{len(enough)} modules have {CALIBRATION} passages of {LENGTH} tokens; expected {CLASSES}")
    seen = torch.stack([passages[i][:CALIBRATION] for i in enough], 1).flatten(0, 1)  # classes in turn
    labels = torch.arange(CLASSES).repeat(CALIBRATION)
    unseen = _inputs(torch.cat([found[:2] for i, found in enumerate(passages) if i not in enough])[:TEST])
    with torch.inference_mode():
        before = embed(**unseen).clone()
    directions = torch.randn((len(seen), before.shape[1]), generator=torch.Generator().manual_seed(0))
    calibration: list[Batch] = [
        (_inputs(ids), targets)
        for ids, *targets in zip(seen.split(BATCH), labels.split(BATCH), directions.split(BATCH), strict=True)
    ]

    def loss(embedding: Tensor, targets: list[Tensor]) -> Tensor:
        return (embedding * targets[1]).sum(1).mean()

    def cosine(model: nn.Module) -> float:
        with torch.inference_mode():
            return float((model.eval()(**unseen) * before).sum(1).mean())

    return Task("passages", "cosine", calibration, loss, cosine, class_of=lambda batch: batch[1][0])


def _inputs(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
