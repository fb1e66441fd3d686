"""Small networks and loaders for the tests of scoring."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 3
loss = nn.CrossEntropyLoss()
summed = nn.CrossEntropyLoss(reduction="sum")


class Plain(nn.Module):
    """conv – BatchNorm – ReLU – conv – ReLU – flatten – linear – ReLU – linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3)
        self.fc1 = nn.Linear(5 * 16, 7)
        self.fc2 = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv1(x)))
        x = torch.relu(self.conv2(x)).flatten(1)
        return self.fc2(torch.relu(self.fc1(x)))


class Branches(nn.Module):
    """A residual stream, a concatenation, whole groups, one activation with two consumers, in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 4, 1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=6)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = torch.cat([self.relu(x + self.left(x)), self.right(x)], 1)
        return self.head(self.relu(self.grouped(x)).mean((2, 3)))


def build(kind: type[nn.Module], dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = kind().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model


def samples(n: int = 30, dtype: torch.dtype = torch.float64, seed: int = 1, size: int = 6) -> tuple[Tensor, Tensor]:
    """Images that differ between classes, and labels in no order, unequal counts."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (n,), generator=generator)
    x = torch.randn(n, 2, size, size, generator=generator, dtype=torch.float64)
    return (x + y[:, None, None, None] * 0.5).to(dtype), y


def loader(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))
