"""Modules equal in function to some of torch's, for those whose own code admits one size only.

A model is traced and scored with them in place (`in_place`), and a pruned model keeps those that a plan names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairkern.errors import InputError
from fairkern.model.attention import added, attend, attending, calls_attention, masks
from fairkern.model.fast_path import attention_is_fused, layer_is_fused, padded, unpadded
from fairkern.model.in_graphs import whole_module
from fairkern.model.nothing import Nothing
from fairkern.model.own_modes import entered, left_out
from fairkern.model.unscripted import Unscripted


class MultiheadAttention(Unscripted, nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose number of heads follows its weights: heads of `head_dim`, `embed_dim` in and out.

    Parameters, attributes and arguments are those of the original, and in every state (gradients, fast path, masks,
    nested tensors) it gives what the original would give there. It does not run torch's fused inference path, which
    assumes `embed_dim = num_heads · head_dim`.

    An existing module becomes one by its class (`module.__class__ = MultiheadAttention`); new ones are not built.
    """

    _whole_heads: int

    @property
    def _qkv_same_embed_dim(self) -> bool:  # asked by layers that look for a fused path
        return False

    @property
    def whole_heads(self) -> int:
        """How many heads there were before any was cut."""
        return self.__dict__.get("_whole_heads", self.num_heads)

    @whole_module
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
        if entered():
            with left_out():
                return self.forward(
                    query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
                )
        fused = attention_is_fused(self, self.whole_heads, query, key, value, (attn_mask, key_padding_mask))
        if query.is_nested or key.is_nested or value.is_nested:
            if not fused:
                raise InputError(
                    "attention takes nested tensors where torch's fused path does: in eval mode, without gradients and "
                    "masks, the same tensor as query, key and value, batch first; elsewhere give padded ones and a mask"
                )
            filled, hidden = padded(query)
            mask = self._mask(filled, None, hidden, batched=True)
            out, weights = self._attend(filled, filled, filled, mask, need_weights=need_weights)
            weights = None if weights is None else weights.masked_fill(hidden[:, None, :, None], 0.0)
            out = unpadded(out, hidden)
        else:
            if is_causal and attn_mask is None and not fused:
                raise InputError("is_causal=True needs attn_mask too, as in nn.MultiheadAttention")
            batched = query.dim() == 3
            causal = is_causal and key_padding_mask is None and not need_weights and not fused
            mask = None if causal else self._mask(query, attn_mask, key_padding_mask, batched)
            # a row without a key is not a number there, and in scaled_dot_product_attention zero
            listed = need_weights or (fused and mask is not None)
            out, weights = self._attend(query, key, value, mask, need_weights=listed, is_causal=causal)
        if not need_weights or weights is None:
            return out, None
        return out, weights.mean(dim=-3) if average_attn_weights else weights

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        need_weights: bool,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs, and if needed the weights of every head; `mask` is what `_mask` gives."""
        batched = query.dim() == 3
        q, k, v = self._projected(query, key, value)
        if not batched:
            q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
        elif not self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        mixed, weights = attend(
            q,
            k,
            v,
            mask,
            heads=(-1, self.head_dim),
            bias_k=self.bias_k,
            bias_v=self.bias_v,
            add_zero_attn=self.add_zero_attn,
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
            is_causal=is_causal,
        )
        out = self.out_proj(mixed)
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

    def _mask(self, query: Tensor, attn_mask: Tensor | None, padding: Tensor | None, batched: bool) -> Tensor | None:
        """What is added to the scores: [L, S], or [batch, heads or 1, L or 1, S]."""
        batch = 1 if not batched else query.shape[0 if self.batch_first else 1]
        return masks(attn_mask, padding, batch, query.dtype, batched=batched)


class TransformerEncoderLayer(Unscripted, nn.TransformerEncoderLayer):
    """`nn.TransformerEncoderLayer` around an attention that runs as ours: what the original gives in every state.

    Where the original would take its fused path, masks of any kind become masks of keys that are hidden, nested tensors
    are taken, and `gelu` is the exact one, as there.
    """

    @whole_module
    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """As `nn.TransformerEncoderLayer.forward`."""
        if entered():
            with left_out():
                return self.forward(src, src_mask, src_key_padding_mask, is_causal)
        attention = self.self_attn
        if any(
            isinstance(module, Nothing) for module in self.children()
        ):  # as where there are hooks, by which it is masked
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        if not isinstance(attention, MultiheadAttention) or not layer_is_fused(
            self, attention.whole_heads, src, src_mask, src_key_padding_mask
        ):
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        x, behind = padded(src) if src.is_nested else (src, None)
        mask = attention._mask(x, src_mask, src_key_padding_mask if behind is None else behind, batched=True)
        if mask is not None:
            mask = added(mask != 0, x.dtype)
        if self.norm_first:
            x = x + self._attended(self.norm1(x), mask)
            x = x + self._fed_forward(self.norm2(x))
        else:
            x = self.norm1(x + self._attended(x, mask))
            x = self.norm2(x + self._fed_forward(x))
        kind = x.device.type
        if torch.is_autocast_enabled(
            kind
        ):  # of a kind that the fused path does not ask for: what it multiplies last is cast
            x = x.to(torch.get_autocast_dtype(kind))
        return x if behind is None else unpadded(x, behind)

    def _attended(self, x: Tensor, mask: Tensor | None) -> Tensor:
        attention = self.self_attn
        assert isinstance(attention, MultiheadAttention)
        return attention._attend(x, x, x, mask, need_weights=mask is not None)[0]

    def _fed_forward(self, x: Tensor) -> Tensor:
        x = self.linear1(x)
        return self.linear2(F.gelu(x) if self.activation_relu_or_gelu == 2 else F.relu(x))


class TransformerEncoder(Unscripted, nn.TransformerEncoder):
    """`nn.TransformerEncoder` inside a module whose code runs under a mode of ours, which it is not to see."""

    @whole_module
    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """As `nn.TransformerEncoder.forward`."""
        if entered():
            with left_out():
                return super().forward(src, mask, src_key_padding_mask, is_causal)
        return super().forward(src, mask, src_key_padding_mask, is_causal)


_BY_CLASS: Mapping[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "MultiheadAttention": (nn.MultiheadAttention, MultiheadAttention),
}
"""Name in a plan → the class, the class in its place."""

_ATTENDING = "multi_head_attention_forward"
"""Name in a plan of a module whose own code calls torch's attention function."""


def replaceable(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(path, name of the replacement) of every module of exactly a class that has one, or that is one."""
    for path, module in model.named_modules():
        for name in (*_BY_CLASS, _ATTENDING):
            if misfit(module, name) is None:
                yield path, name


def misfit(module: nn.Module | None, name: str) -> str | None:
    """Why this module cannot run as the replacement of this name; None where it can, or does."""
    kind: Any = type(module)
    if name == _ATTENDING:
        fits = module is not None and calls_attention(kind)
        return None if fits else f"a module that calls torch's {name}"
    if name not in _BY_CLASS:
        return f"a {name}, unknown here"
    original = _BY_CLASS[name][0]
    return None if kind in _BY_CLASS[name] else f"{original.__module__}.{original.__name__}"


def _replace(module: nn.Module, name: str) -> None:
    kind: Any = type(module)
    module.__class__ = attending(kind) if name == _ATTENDING else _BY_CLASS[name][1]


def replace_modules(model: nn.Module, paths: Mapping[str, str]) -> None:
    """Put the named replacements in place for good: only the class of each module changes.

    A layer that may run its attention as one fused call gets the class that knows how many heads there were. So this
    goes before attributes are given what a plan leaves.
    """
    for path, name in paths.items():
        module = model.get_submodule(path)
        _replace(module, name)
        if isinstance(module, MultiheadAttention):
            module._whole_heads = module.whole_heads
    for module in model.modules() if paths else ():
        if type(module) is nn.TransformerEncoderLayer and isinstance(module.self_attn, MultiheadAttention):
            module.__class__ = TransformerEncoderLayer


def leave_modes_out(model: nn.Module) -> None:
    """Let what may take one of torch's fused paths run without the modes of ours that `model` runs under."""
    for module in model.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = MultiheadAttention
            module._whole_heads = module.num_heads
    for module in model.modules():
        if type(module) is nn.TransformerEncoderLayer:
            module.__class__ = TransformerEncoderLayer
        elif type(module) is nn.TransformerEncoder:
            module.__class__ = TransformerEncoder


@contextlib.contextmanager
def in_place(model: nn.Module) -> Iterator[None]:
    """Within, every module that has a replacement is one."""
    swapped: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for path, name in list(replaceable(model)):
            module = model.get_submodule(path)
            swapped.append((module, type(module)))
            _replace(module, name)
        yield
    finally:
        for module, original in swapped:
            module.__class__ = original
