"""`python -m bench._memory STAGE SIZE`: one stage on a Llama in a process of its own; seconds, and memory beyond what
the process held before it."""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import fairkern as fk
from bench._status import status


class Size(NamedTuple):
    """A shape, and the data that it is scored on."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    sequences: int
    tokens: int


SIZES = {
    "139M": Size(768, 2240, 12, 12, 32000, 48, 128),
    "tiny": Size(32, 48, 2, 4, 64, 4, 16),
}


def build(size: Size) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        vocab_size=size.vocabulary,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval()


def batches(size: Size) -> list[dict[str, torch.Tensor]]:
    """A sequence each."""
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(0, size.vocabulary, (size.sequences, size.tokens), generator=drawn)
    return [{"input_ids": x, "labels": x} for x in ids.split(1)]


def train(model: nn.Module, data: Any, units: fk.UnitMap, folder: str) -> dict[str, float]:
    """Forward + backward, weight gradients included."""
    model.train()
    for batch in data:
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
    return {}


def scored(**options: Any) -> Callable[..., dict[str, float]]:
    def run(model: nn.Module, data: Any, units: fk.UnitMap, folder: str) -> dict[str, float]:
        how = {name: f"{folder}/moments" if value is str else value for name, value in options.items()}
        scores = fk.score(model, data, units=units, class_of=False, progress=False, **how)
        seconds, bytes_ = scores.provenance["seconds"], scores.provenance["predicted_bytes"]
        passes = scores.provenance["passes"]
        return {"elimination_s": seconds["residual"], "passes": passes, "moments_bytes": bytes_["moments"]}

    return run


def trace(model: nn.Module, data: Any, units: fk.UnitMap, folder: str) -> dict[str, float]:
    """With its proof."""
    fk.trace(model, {"input_ids": data[0]["input_ids"]})
    return {}


STAGES: dict[str, Callable[..., dict[str, float]]] = {
    "train": train,
    "trace": trace,
    "score": scored(),
    "moments": scored(gram=True, keep_moments=False),
    "moments kept": scored(gram=True),
    "moments in files": scored(gram=True, keep_moments=str),
}


def main(stage: str, name: str) -> None:
    warm = SIZES["tiny"]
    small, data = build(warm), batches(warm)
    units = fk.trace(small, {"input_ids": data[0]["input_ids"]})
    train(small, data, units, "")  # libraries take what they take once
    scored(gram=True)(small, data, units, "")
    model, data = build(SIZES[name]), batches(SIZES[name])
    if stage.startswith(("score", "moments")):  # a proof is a stage of its own
        units = fk.trace(model, {"input_ids": data[0]["input_ids"][:, :8]}, verify=False)
    weights = sum(p.nbytes for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        give_back()
        before = status()["VmRSS"]
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        start = time.perf_counter()
        found = STAGES[stage](model, data, units, folder)
        seconds = time.perf_counter() - start
        added = status()["VmHWM"] - before
    print(json.dumps({"seconds": seconds, "added_bytes": added, "weights_bytes": weights, **found}))


def give_back() -> None:
    """What is free within the process goes back to the system, so that it counts when it is taken again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
