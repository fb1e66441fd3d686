"""Networks that benchmarks run on, without a library of models: residual networks and a VGG with ImageNet's shapes, a
small CNN.

Layers, shapes and parameter counts of residual networks are those of He et al., arXiv 1512.03385, with the stride of a
bottleneck on its 3 × 3 convolution. Weights are seeded, untrained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Basic(nn.Module):
    """Two 3 × 3 convolutions."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3, 1 × 1 convolutions; the last gives four times the width."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(x)))))


class Residual(nn.Module):
    """A branch and a shortcut, which is a 1 × 1 convolution where the shape changes."""

    def __init__(self, branch: type[Basic] | type[Bottleneck], channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = branch(channels, width, stride)
        out = branch.expansion * width
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


class ResNet(nn.Module):
    """A 7 × 7 convolution, a pooling, four stages of residual blocks, the mean over positions, a linear layer.

    Takes `[N, 3, H, W]`, gives logits `[N, classes]`.
    """

    def __init__(
        self, branch: type[Basic] | type[Bottleneck], blocks: Sequence[int], classes: int = 1000, width: int = 64
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        stages, channels = [], width
        for s, count in enumerate(blocks):
            for b in range(count):
                stages.append(Residual(branch, channels, width << s, stride=2 if s and not b else 1))
                channels = branch.expansion * (width << s)
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.pool(torch.relu(self.bn(self.conv(x)))))
        return self.fc(x.mean((2, 3)))


def resnet18(classes: int = 1000) -> ResNet:
    return seeded(lambda: ResNet(Basic, (2, 2, 2, 2), classes))


def resnet50(classes: int = 1000) -> ResNet:
    return seeded(lambda: ResNet(Bottleneck, (3, 4, 6, 3), classes))


def vgg11_bn(classes: int = 1000) -> nn.Sequential:
    """Configuration A of Simonyan and Zisserman, arXiv 1409.1556, with BatchNorm; the mean over positions and one layer
    in place of three linear ones. Takes `[N, 3, H, W]`, gives logits `[N, classes]`."""

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        channels = 3
        for widths in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    return seeded(build)


def cnn(classes: int) -> nn.Sequential:
    """Three convolutions and a linear layer. Takes `[N, 1, 8, 8]`, gives logits `[N, classes]`."""

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        for channels, width in ((1, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))

    return seeded(build)


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """What `build` returns, its weights drawn from this seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def images(
    count: int, classes: int, channels: int, size: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Random images `[count, channels, size, size]` that differ between classes, and labels in no order.

    Classes take turns before the shuffle, so their counts differ by one at most.
    """
    generator = torch.Generator(device).manual_seed(0)
    y = torch.randperm(count, generator=generator, device=device) % classes
    means = torch.randn(classes, channels, 1, 1, generator=generator, device=device)
    return torch.randn(count, channels, size, size, generator=generator, device=device) + means[y], y
