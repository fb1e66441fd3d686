"""Small models in which half of the units are dead, so that one cut of each is known to be right.

Every number that goes into or out of a dead unit is zero. Whoever removes half by magnitude, by gradients or by
second-order saliency finds them, and a cut that took them, and nothing else, leaves the output as it was and a known
number of parameters. So a tool is judged without asking what it calls a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Dead = Iterable[tuple[str, int, Iterable[int]]]  # a parameter or buffer, a dimension, positions along it


@dataclass(frozen=True)
class Case:
    """A model whose dead units are known. `left`: parameters once they are gone, of `whole`."""

    model: nn.Module
    example: Tensor
    whole: int
    left: int
    stay: tuple[str, ...]  # layers whose outputs are the answer, or a normalised stream: tools are told to leave them
    heads: Mapping[str, int]  # for tools that are told: layers, and how many heads they make


def planted(model: nn.Module, example: Tensor, dead: Dead, *stay: str, heads: Mapping[str, int] | None = None) -> Case:
    """All weights drawn anew, large enough to matter, and what belongs to dead units zero."""
    generator = torch.Generator().manual_seed(0)
    named = dict(model.named_parameters())
    going = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in named.items()}
    with torch.no_grad():
        for p in named.values():
            sign = (torch.rand(p.shape, generator=generator) < 0.5).float().mul(2).sub(1)
            p.copy_((torch.rand(p.shape, generator=generator) + 0.5) * sign / max(1, p[0].numel()) ** 0.5)
        for name, dimension, positions in dead:
            going[name].index_fill_(dimension, torch.tensor(list(positions)), True)
        for name, p in named.items():
            p.masked_fill_(going[name], 0.0)
    measured(model, example)
    whole, left = (sum(int(count) for count in counts) for counts in
                   ((p.numel() for p in named.values()), ((~mask).sum() for mask in going.values())))  # fmt: skip
    return Case(model.eval(), example, whole, left, stay, heads or {})


def measured(model: nn.Module, example: Tensor) -> None:
    """BatchNorm with the statistics of the example, so that measuring them again changes nothing."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = None  # the average of all batches, of which there is one
    with torch.no_grad():
        model.train()(example)
    for layer in norms:
        layer.momentum = 0.1


class Convolutional(nn.Module):
    """Some layers in a row, and a classifier. (nncf cannot run a model that is itself an `nn.Sequential`.)"""

    def __init__(self, *layers: nn.Module, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


IMAGE = (2, 3, 16, 16)
HALF = range(8, 16)


def _images() -> Tensor:
    return torch.randn(IMAGE, generator=torch.Generator().manual_seed(1))


def chain() -> Case:
    """Convolution, BatchNorm, ReLU, twice."""
    first, second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    model = Convolutional(first, nn.BatchNorm2d(16), nn.ReLU(), second, nn.BatchNorm2d(16), nn.ReLU(), width=16)
    ends = [(f"layers.{layer}.{name}", 0, HALF) for layer in (0, 1, 3, 4) for name in ("weight", "bias")]
    return planted(model, _images(), [*ends, ("layers.3.weight", 1, HALF), ("layers.8.weight", 1, HALF)], "layers.8")


def depthwise() -> Case:
    """1 × 1, depthwise 3 × 3, 1 × 1."""
    layers = [
        nn.Conv2d(3, 16, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 1),
    ]
    model = Convolutional(*layers, width=8)
    ends = [(f"layers.{layer}.{name}", 0, HALF) for layer in (0, 2) for name in ("weight", "bias")]
    ends += [(f"layers.4.{name}", 0, range(4, 8)) for name in ("weight", "bias")]
    return planted(
        model, _images(), [*ends, ("layers.4.weight", 1, HALF), ("layers.7.weight", 1, range(4, 8))], "layers.7"
    )


class Residual(nn.Module):
    """A stem and two blocks that add to its stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1))
            for _ in range(2)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))


def residual() -> Case:
    dead = [("stem.weight", 0, HALF), ("stem.bias", 0, HALF), ("head.weight", 1, HALF)]
    for block in ("blocks.0", "blocks.1"):
        dead += [(f"{block}.{layer}.{name}", 0, HALF) for layer in (0, 1, 3) for name in ("weight", "bias")]
        dead += [(f"{block}.0.weight", 1, HALF), (f"{block}.3.weight", 1, HALF)]
    return planted(Residual(), _images(), dead, "head")


class Concatenated(nn.Module):
    """Two convolutions side by side, read by one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 1)
        self.both, self.head = nn.Conv2d(32, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(torch.cat([self.left(x), self.right(x)], dim=1))
        return self.head(torch.relu(self.both(x)).mean((2, 3)))


def concatenation() -> Case:
    dead = [(f"{layer}.{name}", 0, HALF) for layer in ("left", "right", "both") for name in ("weight", "bias")]
    dead += [("both.weight", 1, [*HALF, *range(24, 32)]), ("head.weight", 1, HALF)]
    return planted(Concatenated(), _images(), dead, "head")


class Shuffled(nn.Module):
    """Channels of a convolution in turns, as ShuffleNet has them, and a consumer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def shuffle() -> Case:
    outputs = [*range(4, 8), *range(12, 16)]  # of either half, the second half
    inputs = [2 * (k % 8) + k // 8 for k in outputs]
    dead = [("first.weight", 0, outputs), ("first.bias", 0, outputs), ("second.weight", 1, inputs)]
    dead += [("second.weight", 0, HALF), ("second.bias", 0, HALF), ("head.weight", 1, HALF)]
    return planted(Shuffled(), _images(), dead, "head")


class Recurrent(nn.Module):
    """An LSTM whose last output is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def recurrent() -> Case:
    gates = [16 * gate + k for gate in range(4) for k in HALF]
    dead = [(f"lstm.{name}_l0", 0, gates) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    return planted(Recurrent(), _tokens(8), [*dead, ("lstm.weight_hh_l0", 1, HALF), ("head.weight", 1, HALF)], "head")


def _tokens(width: int) -> Tensor:
    return torch.randn(2, 6, width, generator=torch.Generator().manual_seed(1))


class Attention(nn.Module):
    """Pre-norm attention as models of transformers write it: q, k, v apart, as many heads as the width has room for."""

    def __init__(self, heads: int, keys: int) -> None:
        super().__init__()
        self.size = 8
        self.embed, self.norm = nn.Linear(12, 32), nn.LayerNorm(32)
        self.q, self.o = nn.Linear(32, heads * 8), nn.Linear(heads * 8, 32)
        self.k, self.v = nn.Linear(32, keys * 8), nn.Linear(32, keys * 8)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        q, k, v = (f(y).view(*y.shape[:2], -1, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        if k.shape[1] != q.shape[1]:
            n, keys, t, size = k.shape
            k, v = (
                part[:, :, None].expand(n, keys, q.shape[1] // keys, t, size).reshape(n, -1, t, size) for part in (k, v)
            )
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.o(y)).mean(1))


def heads() -> Case:
    dead = [(f"{layer}.{name}", 0, range(16, 32)) for layer in "qkv" for name in ("weight", "bias")]
    dead = [*dead, ("o.weight", 1, range(16, 32))]
    return planted(Attention(4, 4), _tokens(12), dead, "head", "embed", "o", heads=dict.fromkeys("qkv", 4))


def grouped_queries() -> Case:
    """Four query heads to two key heads: one key head and its two queries are dead."""
    dead = [(f"{layer}.{name}", 0, range(8, 16)) for layer in "kv" for name in ("weight", "bias")]
    dead += [("q.weight", 0, range(16, 32)), ("q.bias", 0, range(16, 32)), ("o.weight", 1, range(16, 32))]
    return planted(Attention(4, 2), _tokens(12), dead, "head", "embed", "o", heads={"q": 4, "k": 2, "v": 2})


def queries_alone() -> Case:
    """Four query heads to two key heads, which stay: of the queries of either, one is dead."""
    gone = [*range(8, 16), *range(24, 32)]
    dead = [("q.weight", 0, gone), ("q.bias", 0, gone), ("o.weight", 1, gone)]
    return planted(Attention(4, 2), _tokens(12), dead, "head", "embed", "o", heads={"q": 4, "k": 2, "v": 2})


class Fused(nn.Module):
    """Attention of vision transformers as timm writes it: one matrix for q, k and v, and the number of heads kept."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 4, 8
        self.embed, self.norm = nn.Linear(12, 32), nn.LayerNorm(32)
        self.qkv, self.proj, self.head = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1)
        return self.head((x + self.proj(y)).mean(1))


def fused_qkv() -> Case:
    gone = [32 * part + k for part in range(3) for k in range(16, 32)]
    dead = [("qkv.weight", 0, gone), ("qkv.bias", 0, gone), ("proj.weight", 1, range(16, 32))]
    return planted(Fused(), _tokens(12), dead, "head", "embed", "proj", heads={"qkv": 4})


class OneModule(nn.Module):
    """Attention as torchvision's vision transformers have it: `nn.MultiheadAttention`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(12, 32), nn.LayerNorm(32)
        self.attention, self.head = nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        return self.head((x + self.attention(y, y, y, need_weights=False)[0]).mean(1))


def one_module() -> Case:
    gone = [32 * part + k for part in range(3) for k in range(16, 32)]
    dead = [("attention.in_proj_weight", 0, gone), ("attention.in_proj_bias", 0, gone)]
    return planted(
        OneModule(),
        _tokens(12),
        [*dead, ("attention.out_proj.weight", 1, range(16, 32))],
        "head",
        "embed",
        heads={"attention": 4},
    )


class Gated(nn.Module):
    """A gated MLP behind a norm, added to its stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(12, 16), nn.LayerNorm(16)
        self.gate, self.up = nn.Linear(16, 32, bias=False), nn.Linear(16, 32, bias=False)
        self.down, self.head = nn.Linear(32, 16, bias=False), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        return self.head((x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))).mean(1))


def gated() -> Case:
    gone = range(16, 32)
    dead = [("gate.weight", 0, gone), ("up.weight", 0, gone), ("down.weight", 1, gone)]
    return planted(Gated(), _tokens(12), dead, "head", "embed", "down")


class Experts(nn.Module):
    """A mixture whose experts lie in two stacks, as transformers 5 holds them; a router weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.router = nn.Linear(12, 16), nn.LayerNorm(16), nn.Linear(16, 4, bias=False)
        self.gate_up, self.down = nn.Parameter(torch.zeros(4, 64, 16)), nn.Parameter(torch.zeros(4, 16, 32))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x).flatten(0, 1)
        probability = self.router(y).softmax(-1)
        gate, up = torch.bmm(y.expand(4, *y.shape), self.gate_up.transpose(1, 2)).chunk(2, dim=-1)
        found = torch.bmm(nn.functional.silu(gate) * up, self.down.transpose(1, 2))
        return self.head((x + (found * probability.T[..., None]).sum(0).view_as(x)).mean(1))


def experts() -> Case:
    dead = [("gate_up", 1, [*range(16, 32), *range(48, 64)]), ("down", 2, range(16, 32))]
    return planted(Experts(), _tokens(12), dead, "head", "embed", "router")


CASES: Mapping[str, Callable[[], Case]] = {
    made.__name__: made
    for made in (
        chain, depthwise, residual, concatenation, shuffle, recurrent,
        heads, grouped_queries, queries_alone, fused_qkv, one_module, gated, experts,
    )
}  # fmt: skip
