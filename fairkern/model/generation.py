"""Generation as transformers has it: a model's own loop over tokens, with a cache of its own making."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_ABOUT_THE_CALL = ("output_", "return_", "use_", "label", "logits_to_keep")


def can_generate(model: nn.Module) -> bool:
    """Whether the model has the loop: `generate`, a configuration of it, and no word against it."""
    asked = getattr(model, "can_generate", None)
    configured = getattr(model, "generation_config", None) is not None
    return configured and callable(getattr(model, "generate", None)) and (asked is None or bool(asked()))


def generated(model: nn.Module, given: Mapping[str, Any]) -> list[Tensor]:
    """Logits of two tokens that `model.generate` makes from these arguments of `forward`: one from the prompt, one with
    the cache that this filled.

    The first token is the same whatever the logits are, so that two models that compute the same go the same way.
    Raises what `generate` raises.
    """
    settings = model.generation_config
    held: dict[str, Any] = {
        name: value
        for name, value in given.items()
        if value is not None and not name.startswith(_ABOUT_THE_CALL) and not name.endswith("labels")
    }
    ids = held.get("input_ids")
    if isinstance(ids, Tensor) and ids.ndim == 2:
        held.setdefault("attention_mask", torch.ones_like(ids))
    ends = settings.eos_token_id  # type: ignore[union-attr]
    ends = [end for end in (ends if isinstance(ends, (list, tuple)) else [ends]) if end is not None]
    if settings.pad_token_id is None and ends:  # type: ignore[union-attr]
        held["pad_token_id"] = ends[0]
    token = next(token for token in range(1, len(ends) + 2) if token not in ends)
    made = model.generate(  # type: ignore[operator]
        **held,
        max_new_tokens=2,
        min_new_tokens=2,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=True,
        logits_processor=[_Same(token)],
    )
    return list(made.logits)


class _Same:
    """Chooses one token, without a look at what the model says."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = torch.full(scores.shape, -torch.inf, dtype=scores.dtype, device=scores.device)
        chosen[:, self.token] = 0.0
        return chosen
