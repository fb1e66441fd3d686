"""`prune` with its report against the stages that it is made of, called one after the other, on a language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fairkern as fk
from bench._compare import compare

LIMIT = 1.15
SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def test_prune_against_its_parts(benchmark: Any, record: Callable[..., None]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    rows = torch.randint(0, 512, (128, 128), generator=torch.Generator().manual_seed(0))
    loader = [{"input_ids": ids, "labels": ids} for ids in rows.split(4)]

    def ours() -> object:
        return fk.prune(model, loader, keep_params=0.7, compensate="sequential", progress=False)

    def parts() -> object:
        units = fk.trace(model, {name: tensor[:2] for name, tensor in loader[0].items()})
        scores = fk.score(model, loader, units=units, gram=True, class_of=False, progress=False)
        plan = scores.plan(keep_params=0.7)
        return fk.apply(model, plan, compensate="sequential", scores=scores, loader=loader)

    comparison = compare(ours, parts, rounds=3, warmup=1)
    bound = comparison.bound("relative_cost", LIMIT, at_least=False)
    record(
        benchmark,
        comparison,
        op="prune",
        shape="Llama 4 × 128, 128 sequences of 128",
        rival="trace, score, plan and apply, without a report",
        **bound,
    )
    benchmark.pedantic(ours, rounds=1)
    assert bound["met"]
