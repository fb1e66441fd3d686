"""Small models of the kinds that are deployed, cut, each once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal


class Views(nn.Module):
    """Attention and convolutions by fixed numbers, as exported code and notebooks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.qkv, self.out = nn.Conv2d(3, 24, 3, padding=1), nn.Linear(24, 96), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        y = self.conv(x).view(b, 3, 8, 64).softmax(-1).view(b, 24, 64).transpose(1, 2)
        q, k, v = self.qkv(y).view(b, 64, 3, 4, 8).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(b, 64, 32).mean(1))


class Divided(nn.Module):
    """Asks for its width and divides that by the number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.q, self.k, self.v, self.out = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (self.heads(part(y)) for part in (self.q, self.k, self.v))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def heads(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        return x.view(b, n, 4, c // 4).transpose(1, 2)


class Logits(nn.Module):
    """A language model's logits of token ids."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


def resnet() -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7)


def shufflenet() -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.ShuffleNetV2([1, 1, 1], [8, 16, 32, 48, 64], num_classes=7)


def vit() -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.VisionTransformer(16, 8, 1, 4, 32, 48, num_classes=7)


def swin() -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.SwinTransformer([4, 4], 16, [2], [4], [2, 2], num_classes=7)


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="sdpa",
    )  # fmt: skip
    return Logits(transformers.LlamaForCausalLM(config))


def images(size: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, 3, size, size)


class Kind(NamedTuple):
    """`sites`: whether the cut model is given sizes as it runs."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    sites: bool


KINDS = {
    "resnet": Kind(resnet, images(32), False),
    "shufflenet": Kind(shufflenet, images(64), False),
    "vit": Kind(vit, images(16), False),
    "swin": Kind(swin, images(16), True),
    "llama": Kind(llama, lambda: torch.randint(40, (2, 6)), False),
    "views": Kind(Views, images(8), True),
    "divided": Kind(Divided, lambda: torch.randn(2, 5, 24), True),
}


class Cut(NamedTuple):
    """`more`: other inputs, of another number of samples."""

    whole: nn.Module
    small: nn.Module
    plan: fk.Plan
    x: Tensor
    more: Tensor

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all parameters that are left."""
        return {name: tuple(tensor.shape) for name, tensor in self.small.named_parameters()}


@functools.cache
def cut(name: str) -> Cut:
    kind = KINDS[name]
    torch.manual_seed(0)
    whole, x = kind.make().eval(), kind.inputs()
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    for parameter in whole.parameters():
        if not parameter.any():  # torchvision's head of a ViT, which would hide everything
            nn.init.normal_(parameter, std=0.1)
    units = fk.trace(whole, x)
    plan = fk.Plan(**vars(build(units, random_removal(units, 0.5, seed=1))))
    assert bool(plan.sites) == kind.sites
    small = fk.apply(whole, plan)
    before, after = (sum(p.numel() for p in model.parameters()) for model in (whole, small))
    assert after < 0.8 * before
    more = torch.cat([kind.inputs(), kind.inputs()])[:3]
    with plan.masked(whole), torch.no_grad():
        assert close(small(more), whole(more))
        assert float(small(more).std()) > 1e-3
    return Cut(whole, small, plan, x, more)


def close(a: Any, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Equal up to rounding, in float32."""
    return bool(torch.allclose(torch.as_tensor(a), b, rtol=0, atol=tolerance * float(b.abs().max())))
