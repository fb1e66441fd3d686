"""Torch's fused paths for attention: when its modules take them, and nested tensors, which no other path takes.

Where such a path is taken another result may come out: places that are padded, rows without a key, masks of numbers
(there whatever is not zero hides its key). So a module in the place of one of torch's asks here what that would do,
with the number of heads that it had before it was cut.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def attention_is_fused(
    module: nn.MultiheadAttention,
    heads: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    masks: Iterable[Tensor | None],
) -> bool:
    """Whether `nn.MultiheadAttention` with this number of heads would take the fused path in the present state."""
    weight, bias = module.in_proj_weight, module.in_proj_bias
    given = [mask for mask in masks if mask is not None]
    return (
        torch.backends.mha.get_fastpath_enabled()
        and not any(mask.is_floating_point() for mask in given)
        and query.dim() == 3
        and query is key
        and key is value
        and weight is not None
        and bias is not None
        and query.dtype == weight.dtype == bias.dtype
        and not module.training
        and heads % 2 == 0
        and bool(module.batch_first)
        and module.bias_k is None
        and module.bias_v is None
        and not module.add_zero_attn
        and not (query.is_nested and bool(given))
        and not torch.is_autocast_enabled()
        and _runs_here([query, weight, bias, module.out_proj.weight, module.out_proj.bias])
    )


def layer_is_fused(
    layer: nn.TransformerEncoderLayer, heads: int, src: Tensor, src_mask: Tensor | None, padding: Tensor | None
) -> bool:
    """Whether `nn.TransformerEncoderLayer` with this number of heads would take the fused path in the present state."""
    attention, norms, linears = layer.self_attn, (layer.norm1, layer.norm2), (layer.linear1, layer.linear2)
    return (
        torch.backends.mha.get_fastpath_enabled()
        and src.dim() == 3
        and not layer.training
        and bool(attention.batch_first)
        and attention.in_proj_weight is not None
        and attention.in_proj_bias is not None
        and bool(layer.activation_relu_or_gelu)
        and layer.norm1.eps == layer.norm2.eps
        and not (src.is_nested and (src_mask is not None or padding is not None))
        and heads % 2 == 0
        and not torch.is_autocast_enabled()
        and not any(_hooked(module) for module in layer.modules())
        and _runs_here(
            [src, attention.in_proj_weight, attention.in_proj_bias]
            + [t for module in (attention.out_proj, *norms, *linears) for t in (module.weight, module.bias)]
        )
    )


def _hooked(module: nn.Module) -> bool:
    """Whether anybody but us has put hooks there."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(not str(getattr(hook, "__module__", "")).startswith("fairkern.") for hook in hooks)


def _runs_here(tensors: list[Tensor]) -> bool:
    kinds = {"cpu", "cuda", "xpu", torch.utils.backend_registration._privateuse1_backend_name}
    return (
        not torch.overrides.has_torch_function(tuple(tensors))
        and all(tensor.device.type in kinds for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    )


def padded(nested: Tensor) -> tuple[Tensor, Tensor]:
    """Samples of several lengths as one tensor [N, longest, …], zero behind their ends; where that is, [N, longest]."""
    filled = nested.to_padded_tensor(0.0)
    lengths = torch.tensor([len(sample) for sample in nested.unbind()], dtype=torch.int64, device=filled.device)
    return filled, torch.arange(filled.shape[1], device=filled.device)[None] >= lengths[:, None]


def unpadded(filled: Tensor, hidden: Tensor) -> Tensor:
    """Back from `padded`: a nested tensor."""
    lengths = hidden.logical_not().sum(1).tolist()
    return torch.nested.as_nested_tensor([sample[:length] for sample, length in zip(filled, lengths, strict=True)])
