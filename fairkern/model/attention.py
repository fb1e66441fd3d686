"""Attention by elementary operators, with as many heads as are left; and modules whose code calls torch's for it.

`F.multi_head_attention_forward` admits heads that fill the width, and shows nobody what it computes. A module whose own
code calls it (CLIP's attention pool) runs the same here, by calls that can be followed.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fairkern.model.in_graphs import proxies, whole_call, written_by
from fairkern.model.unscripted import Unscripted

_FUNCTION: Callable[..., Any] = F.multi_head_attention_forward


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    heads: tuple[int, int],
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout: float,
    need_weights: bool,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """[N, L, heads · size] from projected [N, L or S, heads · size], and if needed the weights of every head.

    `heads`: what the last dimension is split into, -1 for the one that is left open. `mask` is added to the scores.
    """
    if bias_k is not None and bias_v is not None:
        k = torch.cat([k, bias_k.expand(k.shape[0], -1, -1)], dim=1)
        v = torch.cat([v, bias_v.expand(v.shape[0], -1, -1)], dim=1)
    if add_zero_attn:
        k = torch.cat([k, torch.zeros_like(k[:, :1])], dim=1)
        v = torch.cat([v, torch.zeros_like(v[:, :1])], dim=1)
    if mask is not None and mask.shape[-1] < k.shape[1]:
        mask = F.pad(mask, (0, k.shape[1] - mask.shape[-1]))
    q, k, v = (t.unflatten(-1, heads).transpose(1, 2) for t in (q, k, v))
    weights = None
    if need_weights:
        scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        weights = F.dropout(weights, dropout, dropout > 0)
        mixed = weights @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
    return mixed.transpose(1, 2).flatten(2), weights


def masks(
    attn_mask: Tensor | None, padding: Tensor | None, batch: int, dtype: torch.dtype, *, batched: bool = True
) -> Tensor | None:
    """What is added to the scores: [L, S], or [batch, heads or 1, L or 1, S]."""
    if padding is not None:
        padding = added(padding if batched else padding.unsqueeze(0), dtype)[:, None, None, :]
    if attn_mask is None:
        return padding
    attn_mask = added(attn_mask, dtype)
    if attn_mask.dim() == 3:
        attn_mask = attn_mask.unflatten(0, (batch, -1))
    return attn_mask if padding is None else attn_mask + padding


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers: where a boolean one is true, minus infinity."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask


@whole_call
def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As `F.multi_head_attention_forward`, with `num_heads` heads of any size; `embed_dim_to_check` is not checked."""
    if static_k is not None or static_v is not None:
        raise NotImplementedError("attention with keys or values that are given projected (static_k, static_v)")
    batched = query.dim() == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    joint = in_proj_weight if not use_separate_proj_weight else None
    parts = (q_proj_weight, k_proj_weight, v_proj_weight) if joint is None else joint.chunk(3)
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    given = zip((query, key, value), parts, biases, strict=True)
    q, k, v = (F.linear(x, w, b).transpose(0, 1) for x, w, b in given if w is not None)
    causal = is_causal and key_padding_mask is None and not need_weights
    mask = None if causal else masks(attn_mask, key_padding_mask, q.shape[0], q.dtype, batched=batched)
    mixed, weights = attend(
        q,
        k,
        v,
        mask,
        heads=(num_heads, -1),
        bias_k=bias_k,
        bias_v=bias_v,
        add_zero_attn=add_zero_attn,
        dropout=dropout_p if training else 0.0,
        need_weights=need_weights,
        is_causal=causal,
    )
    out = F.linear(mixed, out_proj_weight, out_proj_bias).transpose(0, 1)
    if weights is not None and average_attn_weights:
        weights = weights.mean(dim=1)
    if not batched:
        return out.squeeze(1), None if weights is None else weights.squeeze(0)
    return out, weights


class _Plain(TorchFunctionMode):
    """Torch's attention function runs as ours."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not _FUNCTION:
            return func(*args, **kwargs)
        if written_by(args, kwargs) is not None:
            args, kwargs = (), _for_a_graph(args, kwargs)
        return multi_head_attention(*args, **kwargs)


def _for_a_graph(args: Any, kwargs: Any) -> dict[str, Any]:
    """The call as one of a graph: with as many heads as the views in it would be given, which run later."""
    given = inspect.signature(multi_head_attention).bind(*args, **kwargs).arguments
    proxy = next(proxies((args, kwargs)))
    for _ in range(3):  # queries, keys and values
        view = proxy.unflatten(-1, (given["num_heads"], -1)).node
        heads = view.args[2][0]
        proxy.tracer.graph.erase_node(view)
    return {**given, "num_heads": heads}


class _Made(type):
    """Classes made by `attending`: pickled as what makes them."""

    _attending: Any


class PlainAttention(Unscripted):
    """Marks the classes made by `attending`; `_attending` is the class that the module had."""

    _attending: ClassVar[Any]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(2)
        assert isinstance(reduced, tuple)
        return (_remade, (self._attending,), *reduced[2:])


def _remade(original: Any) -> nn.Module:
    made = attending(original)
    module: nn.Module = made.__new__(made)
    return module


@functools.cache
def attending(original: Any) -> Any:
    """The class with torch's attention function run as ours; the class itself where it is one."""
    if issubclass(original, PlainAttention):
        return original

    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _Plain():
            return original.forward(self, *args, **kwargs)

    names = {"forward": forward, "_attending": original, "__module__": original.__module__, "__doc__": original.__doc__}
    return _Made(original.__name__, (PlainAttention, original), {**names, "__qualname__": original.__qualname__})


copyreg.pickle(_Made, lambda made: (attending, (made._attending,)))


@functools.cache
def calls_attention(kind: Any) -> bool:
    """Whether the code of a class of modules names torch's attention function. Torch's own module has its own way."""
    if issubclass(kind, nn.MultiheadAttention):
        return False
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    codes = (getattr(value, "__code__", None) for held in own for value in vars(held).values())
    return any(code is not None and _FUNCTION.__name__ in code.co_names for code in codes)
