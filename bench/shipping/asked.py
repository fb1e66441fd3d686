"""What is asked of a language model in memory and of the one that its folder gives: logits and greedy tokens."""

from __future__ import annotations

from typing import Any

import torch

TOKENS = 64
_PROMPT = (2, 24)


@torch.no_grad()
def answers(model: Any) -> dict[str, torch.Tensor]:
    """Logits of a fixed prompt in the model's dtype, and what it goes on with, with a dynamic and a static cache."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, model.get_input_embeddings().weight.shape[0], _PROMPT, generator=generator)
    made = {"logits": model(input_ids=ids).logits}
    for cache in ("dynamic", "static"):
        made[cache] = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            use_cache=True,
            cache_implementation=cache,
            pad_token_id=0,
        )[:, ids.shape[1] :]
    return made
