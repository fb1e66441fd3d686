"""What a language model is worth and costs: perplexity, tokens per second, bytes of cache."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.hf.needed import quiet
from fairkern.hf.sequences import UNSEEN, Batch
from fairkern.model.nested import tensors_within
from fairkern.model.tensors import device_of

_RUNS = 3


@torch.no_grad()
def perplexity(model: nn.Module, batches: Iterable[Batch]) -> float:
    """exp of the mean negative log likelihood of every token that the labels show, given those before it.

    Logits in the model's dtype, their logarithms in float32, sums in float64. Cost: a forward pass over the batches.
    """
    device, told = device_of(model), Likelihood()
    for batch in batches:
        on = {name: tensor.to(device) for name, tensor in batch.items()}
        labels = on.pop("labels")
        told.add(model(**on).logits, labels)
    return told.perplexity


@dataclass
class Likelihood:
    """What logits say of the tokens that come, batch after batch."""

    total: float = 0.0
    count: int = 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """`logits` [samples, tokens, vocabulary], `labels` [samples, tokens] on the same device."""
        labels = labels[:, 1:]
        losses = nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), labels.flatten(), ignore_index=UNSEEN, reduction="none"
        )
        self.total += float(losses.double().sum())
        self.count += int((labels != UNSEEN).sum())

    @property
    def perplexity(self) -> float:
        mean = self.total / self.count
        return math.exp(mean) if mean < 700 else math.inf


def tokens_per_second(model: Any, prompt: Tensor, new: int = 32) -> float:
    """Of greedy generation with a cache behind one prompt [tokens], the fastest of three runs, after a short one."""
    ids = prompt[None].to(device_of(model))
    generate(model, ids, 2)
    seconds = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        generate(model, ids, new)
        if ids.is_cuda:
            torch.cuda.synchronize(ids.device)
        seconds.append(time.perf_counter() - started)
    return new / min(seconds)


@torch.no_grad()
def generate(model: Any, ids: Tensor, new: int, cache: str | None = None) -> Tensor:
    """Exactly `new` greedy tokens behind `ids` [samples, tokens], whatever the model's own settings are."""
    with quiet() as transformers:
        plain = transformers.GenerationConfig(
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            use_cache=True,
            cache_implementation=cache,
            pad_token_id=0,
        )
        made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)
    return made[:, ids.shape[1] :]


@torch.no_grad()
def cache_bytes_per_token(model: Any, ids: Tensor) -> float | None:
    """Bytes that a cache takes for one more token of one sequence: of `ids` [tokens] against all but the last of them.

    None where the model keeps none that grows.
    """
    ids = ids[None].to(device_of(model))
    sizes = []
    for part in (ids[:, :-1], ids):
        output = model(part, use_cache=True)
        kept = output.cache if hasattr(output, "cache") else getattr(output, "past_key_values", None)
        sizes.append(sum(tensor.nbytes for tensor in tensors_within(kept)))
    return float(sizes[1] - sizes[0]) or None
