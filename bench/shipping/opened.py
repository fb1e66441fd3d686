"""`python -m bench.shipping.opened OUT …`: folders opened by transformers alone, asked what was asked in memory.

Prints a line of JSON for each. fairkern is not imported.
"""

from __future__ import annotations

import json
import sys

import torch
import transformers

from bench.shipping.asked import TOKENS, answers


def opened(folder: str) -> dict[str, object]:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    expected = torch.load(f"{folder}.pt", weights_only=True)
    found = answers(model.eval())
    assert not any(name.startswith("fairkern") for name in sys.modules)
    return {
        "missing": sorted(map(str, info["missing_keys"])),
        "unexpected": sorted(map(str, info["unexpected_keys"])),
        "mismatched": sorted(map(str, info["mismatched_keys"])),
        "logits": float((found["logits"].double() - expected["logits"].double()).abs().max()),
        "dynamic": int((found["dynamic"] == expected["dynamic"]).all(0).cumprod(0).sum()),
        "static": int((found["static"] == expected["dynamic"]).all(0).cumprod(0).sum()),
        "tokens": TOKENS,
        "different_tokens": len(set(expected["dynamic"][0].tolist())),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokenizer": len(transformers.AutoTokenizer.from_pretrained(folder)),
    }


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in sys.argv[1:]:
        print(json.dumps(opened(name)), flush=True)
