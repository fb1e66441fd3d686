"""Models that are rows of blocks, and some that only look like it; data for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """A residual block whose inner units can go."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Residual(nn.Module):
    """Units before the blocks (`enter`), in them, and behind (`head`)."""

    def __init__(self, blocks: int = 3, width: int = 8) -> None:
        super().__init__()
        self.enter, self.project = nn.Linear(5, 6), nn.Linear(6, width)
        self.blocks = nn.ModuleList(Block(width, 10 + k) for k in range(blocks))
        self.norm, self.head, self.out = nn.LayerNorm(width), nn.Linear(width, 7), nn.Linear(7, 3)

    def entered(self, x: Tensor) -> Tensor:
        return self.project(torch.relu(self.enter(x)))

    def left(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.head(self.norm(x))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entered(x)
        for block in self.blocks:
            x = block(x)
        return self.left(x)


class Skipping(Residual):
    """What the first block returns is read behind the last, as in a U-Net."""

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.blocks[0](self.entered(x))
        for block in self.blocks[1:]:
            x = block(x)
        return self.left(x + first)


class Again(Residual):
    """Every block is called twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.entered(x)
        for block in [*self.blocks, *self.blocks]:
            x = block(x)
        return self.left(x)


class Beside(Residual):
    """Units before the blocks act on the output beside what passes into the first."""

    def forward(self, x: Tensor) -> Tensor:
        x = entered = self.entered(x)
        for block in self.blocks:
            x = block(x)
        return self.left(x) + self.norm(entered)[:, :3]


class Told(nn.Module):
    """A block that is given something besides."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.inner = Block(width, inner)

    def forward(self, x: Tensor, besides: Tensor) -> Tensor:
        return self.inner(x) * besides


class Telling(Residual):
    """What blocks are given besides is made by units before them, or by other blocks."""

    def __init__(self, of_blocks: bool) -> None:
        super().__init__()
        self.of_blocks = of_blocks
        self.blocks = nn.ModuleList(Told(8, 10 + k) for k in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entered(x)
        besides = x.mean(1, keepdim=True)
        for block in self.blocks:
            x = block(x, besides)
            besides = x.mean(1, keepdim=True) if self.of_blocks else besides
        return self.left(x)


class Remembering(nn.Module):
    """A block that reads what another one has put into a common dictionary."""

    def __init__(self, width: int, inner: int, common: dict[str, Tensor], needs: bool) -> None:
        super().__init__()
        self.inner, self.common, self.needs = Block(width, inner), common, needs

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        x = x + (self.common["last"] if self.needs else self.common.get("last", torch.zeros(())))
        self.common["last"] = x.mean()
        return x


class Common(Residual):
    def __init__(self, needs: bool = False) -> None:
        super().__init__()
        self.common: dict[str, Tensor] = {}
        self.blocks = nn.ModuleList(Remembering(8, 10 + k, self.common, needs and k > 0) for k in range(3))

    def forward(self, x: Tensor) -> Tensor:
        self.common.clear()
        return super().forward(x)


class Noting(Block):
    """A block that puts what it returns into a common list."""

    def __init__(self, width: int, inner: int, noted: list[Tensor]) -> None:
        super().__init__(width, inner)
        self.noted = noted

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.noted.append(x)
        return x


class Counting(Residual):
    """Its output counts what every block returns, as the loss of a router does; or lists it besides."""

    def __init__(self, lists: bool) -> None:
        super().__init__()
        self.noted, self.lists = list[Tensor](), lists
        self.blocks = nn.ModuleList(Noting(8, 10 + k, self.noted) for k in range(3))

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        self.noted.clear()
        x = super().forward(x)
        return (x, *self.noted) if self.lists else x * (1 + 1e-3 * sum(y.square().mean() for y in self.noted))


class Stage(nn.Module):
    """Convolutions around a stream, whose channels can go with those of all blocks that share it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(x + self.last(torch.relu_(self.norm(self.first(x)))))


class Between(nn.Module):
    """A norm over all channels, which therefore stay, and another number of them."""

    def __init__(self, channels: int, made: int) -> None:
        super().__init__()
        self.norm, self.down = nn.GroupNorm(1, channels), nn.Conv2d(channels, made, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(x))


class Convolutional(nn.Module):
    """Two streams: the channels of the first stay, those of the second couple the four modules that share it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(Stage(4), Stage(4), Between(4, 5), Stage(5), Stage(5), nn.Conv2d(5, 4, 1))
        self.norm, self.out = nn.GroupNorm(1, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.body(self.stem(x))).mean((2, 3)))


def vectors(sizes: Sequence[int] = (6, 9, 4)) -> Batches:
    drawn = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 5, generator=drawn), torch.arange(n) % 3) for n in sizes]


def images(sizes: Sequence[int] = (5, 7, 4)) -> Batches:
    drawn = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 3, 8, 8, generator=drawn), torch.arange(n) % 3) for n in sizes]


def sentences(vocabulary: int, sizes: Sequence[tuple[int, int]] = ((3, 7), (2, 9), (4, 5))) -> list[dict[str, Any]]:
    """Token ids, the first sequence of each batch padded on the left; labels are the tokens."""
    drawn, found = torch.Generator().manual_seed(1), []
    for n, length in sizes:
        ids = torch.randint(2, vocabulary, (n, length), generator=drawn)
        mask = torch.ones_like(ids)
        mask[0, :2] = 0
        found.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return found


def made(kind: Any, *given: Any) -> Any:
    torch.manual_seed(0)
    model = kind(*given).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model
