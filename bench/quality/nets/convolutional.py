"""VGG, ResNet, DenseNet, MobileNet and ConvNeXt for grey images of 16 × 16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class VGG(nn.Module):
    """Plain convolutions, a pooling between stages, two linear layers."""

    def __init__(self, classes: int, widths: Sequence[int] = (24, 48, 96), hidden: int = 96) -> None:
        super().__init__()
        layers, channels = [], 1
        for width in widths:
            layers += [*_conv(channels, width), nn.ReLU(), *_conv(width, width), nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.fc1 = nn.Linear(channels * 4, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(self.features(x))))


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(inputs, outputs, 3, stride), nn.ReLU(), *_conv(outputs, outputs))
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if plain else nn.Sequential(*_conv(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of two residual blocks."""

    def __init__(self, classes: int, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(1, widths[0]), nn.ReLU())
        blocks, channels = [], widths[0]
        for s, width in enumerate(widths):
            blocks += [Residual(channels, width, 2 if s else 1), Residual(width, width, 1)]
            channels = width
        self.blocks = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)))


class DenseLayer(nn.Module):
    """Norm, ReLU, a 1 × 1 and a 3 × 3 convolution; the result joins what came in."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """Dense blocks and transitions that halve channels and image."""

    def __init__(self, classes: int, growth: int = 12, layers: Sequence[int] = (3, 4, 4)) -> None:
        super().__init__()
        channels = 2 * growth
        parts: list[nn.Module] = [nn.Conv2d(1, channels, 3, 2, padding=1, bias=False)]
        for b, count in enumerate(layers):
            for _ in range(count):
                parts.append(DenseLayer(channels, growth))
                channels += growth
            parts += [nn.BatchNorm2d(channels), nn.ReLU()]
            if b < len(layers) - 1:
                parts += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
        self.features = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class Inverted(nn.Module):
    """Expand, filter every channel alone, project; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        hidden = expand * inputs
        self.body = nn.Sequential(
            *_conv(inputs, hidden, 1), nn.ReLU6(), *_conv(hidden, hidden, 3, stride, hidden), nn.ReLU6(),
            *_conv(hidden, outputs, 1),
        )  # fmt: skip
        self.plain = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.plain else self.body(x)


class MobileNet(nn.Module):
    """Inverted residuals with depthwise convolutions."""

    def __init__(self, classes: int, widths: Sequence[int] = (16, 24, 40), head: int = 96) -> None:
        super().__init__()
        parts, channels = [*_conv(1, widths[0], 3, 2), nn.ReLU6()], widths[0]
        for s, width in enumerate(widths):
            parts += [Inverted(channels, width, 2 if s else 1), Inverted(width, width, 1)]
            channels = width
        ends = [*_conv(channels, head, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.features = nn.Sequential(*parts, *ends)
        self.fc = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class ConvNeXtBlock(nn.Module):
    """A wide depthwise filter, a norm over channels, two linear layers, a learnt scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.filter(x).permute(0, 2, 3, 1))
        y = self.scale * self.fc2(nn.functional.gelu(self.fc1(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Two stages of ConvNeXt blocks on patches of 2 × 2."""

    def __init__(self, classes: int, widths: Sequence[int] = (32, 64)) -> None:
        super().__init__()
        parts, channels = [], 1
        for width in widths:
            parts += [nn.Conv2d(channels, width, 2, 2), ConvNeXtBlock(width), ConvNeXtBlock(width)]
            channels = width
        self.features = nn.Sequential(*parts)
        self.norm = nn.LayerNorm(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.features(x).mean((2, 3))))
