"""Modules equal in function to some of torch's, for those whose own code admits one size only.

A model is traced and scored with them in place (`in_place`), and a pruned model keeps those that a plan names.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairkern.errors import InputError


class MultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose number of heads follows its weights: heads of `head_dim`, `embed_dim` in and out.

    Parameters, attributes and arguments are those of the original. It never takes torch's fused inference path,
    which assumes `embed_dim = num_heads · head_dim`, nor nested tensors: in an `nn.TransformerEncoder` what padding
    positions hold is then what it is in training, not zero.

    An existing module becomes one by its class (`module.__class__ = MultiheadAttention`); new ones are not built.
    """

    @property
    def _qkv_same_embed_dim(self) -> bool:  # asked by layers that look for a fused path
        return False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`. A mask per head, [batch · heads, L, S], has the heads that are left."""
        if query.is_nested or key.is_nested or value.is_nested:
            raise InputError("attention with pruned heads takes no nested tensors: give padded ones and a mask")
        if is_causal and attn_mask is None:
            raise InputError("is_causal=True needs attn_mask too, as in nn.MultiheadAttention")
        batched = query.dim() == 3
        q, k, v = self._projected(query, key, value)
        if not batched:
            q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
        elif not self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._mask(q, attn_mask, key_padding_mask, batched)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1)], dim=1)
        if self.add_zero_attn:
            k = torch.cat([k, torch.zeros_like(k[:, :1])], dim=1)
            v = torch.cat([v, torch.zeros_like(v[:, :1])], dim=1)
        if mask is not None and mask.shape[-1] < k.shape[1]:
            mask = F.pad(mask, (0, k.shape[1] - mask.shape[-1]))
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout, self.training)
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        bias = self.in_proj_bias
        if self.in_proj_weight is not None and query is key and key is value:
            return F.linear(query, self.in_proj_weight, bias).chunk(3, dim=-1)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))

    def _mask(self, q: Tensor, attn_mask: Tensor | None, padding: Tensor | None, batched: bool) -> Tensor | None:
        """What is added to the scores: [L, S], or [batch, heads or 1, L or 1, S]."""
        if padding is not None:
            padding = _added(padding if batched else padding.unsqueeze(0), q.dtype)[:, None, None, :]
        if attn_mask is None:
            return padding
        attn_mask = _added(attn_mask, q.dtype)
        if attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (len(q), -1))
        return attn_mask if padding is None else attn_mask + padding


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers: where a boolean one is true, minus infinity."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask


REPLACEMENTS: Mapping[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "MultiheadAttention": (nn.MultiheadAttention, MultiheadAttention),
}
"""Name in a plan → the class, the class in its place."""


def replaceable(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(path, name of the replacement) of every module of exactly a class that has one, or that is one."""
    for path, module in model.named_modules():
        for name, classes in REPLACEMENTS.items():
            if type(module) in classes:
                yield path, name


def replace_modules(model: nn.Module, paths: Mapping[str, str]) -> None:
    """Put the named replacements in place for good: only the class of each module changes."""
    for path, name in paths.items():
        model.get_submodule(path).__class__ = REPLACEMENTS[name][1]
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(inner, MultiheadAttention) for inner in module.modules()
        ):
            module.use_nested_tensor = False


@contextlib.contextmanager
def in_place(model: nn.Module) -> Iterator[None]:
    """Within, every module that has a replacement is one."""
    swapped: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for path, name in list(replaceable(model)):
            module = model.get_submodule(path)
            swapped.append((module, type(module)))
            module.__class__ = REPLACEMENTS[name][1]
        yield
    finally:
        for module, original in swapped:
            module.__class__ = original
