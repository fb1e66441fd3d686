"""`python -m bench._large LAYERS`: trace a decoder of Llama 3 70B's shape on the meta device; seconds and peak memory.

A process of its own, so that the peak is that of this model alone.
"""

from __future__ import annotations

import json
import sys
import time

import torch

import fairkern as fk
from bench._status import status


def main(layers: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=layers,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        use_cache=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    ids = torch.zeros(1, 16, dtype=torch.int64)
    start = time.perf_counter()
    units = fk.trace(model, {"input_ids": ids}, verify=False)
    seconds = time.perf_counter() - start
    plan = units.plan(keep_params=0.5)
    found = {
        "seconds": seconds,
        "peak_bytes": status()["VmHWM"],
        "prunable": len(units.prunable),
        "units": plan.result["units"],
        "params": plan.result["params_before"],
        "params_at_half": plan.result["params_after"],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
