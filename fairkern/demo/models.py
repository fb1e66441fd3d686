"""Two small networks for 8 × 8 grey images: one of plain convolutions, one with residual streams.

Both are ordinary PyTorch modules that know nothing of pruning. `vgg()` and `resnet()` build them with seeded
weights and leave PyTorch's global generator as it was, so two calls give the same model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

CLASSES = 10


class VGG(nn.Module):
    """Stages of 3 × 3 convolutions with BatchNorm and ReLU, a pooling between stages, then two linear layers.

    Takes `[N, 1, 8, 8]`, gives logits `[N, 10]`.
    """

    def __init__(self, stages: Sequence[Sequence[int]] = ((32, 32), (64, 64), (128, 128)), hidden: int = 128) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels, size = 1, 8
        for s, widths in enumerate(stages, start=1):
            if s > 1:
                layers[f"pool{s - 1}"] = nn.MaxPool2d(2)
                size //= 2
            for i, width in enumerate(widths, start=1):
                layers[f"conv{s}_{i}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                layers[f"bn{s}_{i}"] = nn.BatchNorm2d(width)
                layers[f"relu{s}_{i}"] = nn.ReLU()
                channels = width
        self.features = nn.Sequential(layers)
        self.fc1 = nn.Linear(channels * size * size, hidden)
        self.fc2 = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).flatten(1)
        return self.fc2(torch.relu(self.fc1(x)))


class Block(nn.Module):
    """Two convolutions and a shortcut; a 1 × 1 convolution carries the shortcut where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A convolution, stages of residual blocks that halve the image, the mean over positions, a linear layer.

    Takes `[N, 1, 8, 8]`, gives logits `[N, 10]`.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128), blocks: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        channels = widths[0]
        for s, width in enumerate(widths, start=1):
            stage = nn.Sequential()
            for b in range(blocks):
                stage.append(Block(channels, width, stride=2 if s > 1 and b == 0 else 1))
                channels = width
            self.add_module(f"stage{s}", stage)
        self.stages = len(widths)
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        for s in range(1, self.stages + 1):
            x = self.get_submodule(f"stage{s}")(x)
        return self.fc(x.mean((2, 3)))


def vgg(seed: int = 0) -> VGG:
    """An untrained `VGG` with the weights of this seed."""
    with _seeded(seed):
        return VGG()


def resnet(seed: int = 0) -> ResNet:
    """An untrained `ResNet` with the weights of this seed."""
    with _seeded(seed):
        return ResNet()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """On the CPU, where the demo's data are, and its random numbers."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


BUILDERS = {"vgg": vgg, "resnet": resnet}
