"""Small hand-written networks of kinds that the libraries do not hold: dense prediction, sound, video, text, pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.zoo.mixtures import Dense, Net, OneHot, Sorted


def _block(
    channels: int, out: int, kind: type[nn.Module] = nn.Conv2d, norm: type[nn.Module] = nn.BatchNorm2d
) -> nn.Module:
    return nn.Sequential(kind(channels, out, 3, padding=1, bias=False), norm(out), nn.ReLU())


class UNet(nn.Module):
    """Three levels with skips; `transposed` convolutions up, or interpolation and a 1 x 1 convolution."""

    def __init__(self, transposed: bool, width: int = 16) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList([_block(3, sizes[0]), _block(sizes[0], sizes[1]), _block(sizes[1], sizes[2])])
        self.rise = nn.ModuleList(
            [
                nn.ConvTranspose2d(a, b, 2, 2)
                if transposed
                else nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(a, b, 1))
                for a, b in ((sizes[2], sizes[1]), (sizes[1], sizes[0]))
            ]
        )
        self.merge = nn.ModuleList([_block(2 * sizes[1], sizes[1]), _block(2 * sizes[0], sizes[0])])
        self.out = nn.Conv2d(sizes[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for rise, merge, skip in zip(self.rise, self.merge, reversed(skips[:-1]), strict=True):
            x = merge(torch.cat([skip, rise(x)], 1))
        return self.out(x)


class DiffusionBlock(nn.Module):
    """GroupNorm residual blocks with an embedded time added to the channels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3, width, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(16, 48), nn.SiLU(), nn.Linear(48, width))
        self.norms = nn.ModuleList([nn.GroupNorm(8, width) for _ in range(4)])
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(4)])
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x, t = self.entry(x), self.time(t)[:, :, None, None]
        for i in (0, 2):
            h = self.convs[i](F.silu(self.norms[i](x))) + t
            x = x + self.convs[i + 1](F.silu(self.norms[i + 1](h)))
        return self.out(x)


def super_resolution(width: int = 24) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 5, padding=2),
        nn.Tanh(),
        nn.Conv2d(width, 4 * width, 3, padding=1),
        nn.PixelShuffle(2),
        nn.PReLU(width),
        nn.Conv2d(width, 4, 3, padding=1),
        nn.PixelShuffle(2),
    )


class Neck(nn.Module):
    """A backbone of three levels, a feature pyramid down and a path up again, and a head on every level."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        sizes = [16, 24, 40]
        self.stages = nn.ModuleList([_block(a, b) for a, b in zip([3, *sizes[:-1]], sizes, strict=True)])
        self.lateral = nn.ModuleList([nn.Conv2d(s, width, 1) for s in sizes])
        self.down = nn.ModuleList([_block(2 * width, width) for _ in sizes[1:]])
        self.stride = nn.ModuleList([nn.Conv2d(width, width, 3, 2, 1) for _ in sizes[1:]])
        self.up = nn.ModuleList([_block(2 * width, width) for _ in sizes[1:]])
        self.boxes = nn.ModuleList([nn.Conv2d(width, 4, 1) for _ in sizes])
        self.classes = nn.Conv2d(width, 5, 1)  # one head for all levels

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        levels = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = F.max_pool2d(stage(x), 2)
            levels.append(lateral(x))
        for i in (1, 0):
            upper = F.interpolate(levels[i + 1], scale_factor=2, mode="nearest")
            levels[i] = self.down[i](torch.cat([levels[i], upper], 1))
        for i in (0, 1):
            levels[i + 1] = self.up[i](torch.cat([levels[i + 1], self.stride[i](levels[i])], 1))
        return {
            "boxes": [head(level) for head, level in zip(self.boxes, levels, strict=True)],
            "classes": [self.classes(level) for level in levels],
        }


class AddedPyramid(nn.Module):
    """A feature pyramid that adds what comes from above: one width for all levels."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stages = nn.ModuleList([_block(3, 16), _block(16, 32)])
        self.lateral = nn.ModuleList([nn.Conv2d(16, width, 1), nn.Conv2d(32, width, 1)])
        self.smooth = nn.ModuleList([nn.Conv2d(width, 12, 3, padding=1) for _ in range(2)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = self.stages[0](x)
        high = self.lateral[1](self.stages[1](F.max_pool2d(low, 2)))
        low = self.lateral[0](low) + F.interpolate(high, size=low.shape[2:], mode="nearest")
        return self.smooth[0](low), self.smooth[1](high)


def sound(width: int = 24) -> nn.Module:
    """Raw audio: strided, dilated and depthwise 1-D convolutions."""
    return nn.Sequential(
        nn.Conv1d(1, width, 16, 8),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Conv1d(width, width, 3, padding=2, dilation=2, groups=width),
        nn.Conv1d(width, 2 * width, 1),
        nn.BatchNorm1d(2 * width),
        nn.GLU(1),
        nn.Conv1d(width, 2 * width, 3, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 5),
    )


class Video(nn.Module):
    """A residual 3-D network, its convolutions factored into space and time."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.entry = _block(3, width, nn.Conv3d, nn.BatchNorm3d)
        self.space = nn.Conv3d(width, 24, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(24, width, (3, 1, 1), padding=(1, 0, 0))
        self.norm = nn.BatchNorm3d(width)
        self.out = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(self.entry(x), (1, 2, 2))
        x = F.relu(x + self.norm(self.time(F.relu(self.space(x)))))
        return self.out(x.mean((2, 3, 4)))


class Encoder(nn.Module):
    """Tokens through PyTorch's own encoder layers."""

    def __init__(self, norm_first: bool, width: int = 32) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 48, batch_first=True, norm_first=norm_first)
        self.words, self.places = nn.Embedding(50, width), nn.Parameter(0.02 * torch.randn(20, width))
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(width, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.layers(self.words(ids) + self.places[: ids.shape[1]]).mean(1))


class Reader(nn.Module):
    """A text classifier on a recurrent network of two layers in both directions."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 24)
        self.read = kind(24, 20, 2, batch_first=True, bidirectional=True)  # type: ignore[call-arg]
        self.out = nn.Sequential(nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.read(self.words(ids))[0].amax(1))


class Siamese(nn.Module):
    """Two inputs through one encoder; their difference decides."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            _block(3, 16), nn.MaxPool2d(2), _block(16, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.compare = nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.compare((self.encode(a) - self.encode(b)).abs())


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder, transposed, and a word model whose output is its table."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, 24), nn.Linear(24, 12)
        self.words, self.mix = nn.Embedding(50, 16), nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 16))
        self.predict = nn.Linear(16, 50, bias=False)
        self.predict.weight = self.words.weight

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        code = self.second(F.relu(self.first(x)))
        back = F.relu(F.linear(code, self.second.weight.t()))
        return F.linear(back, self.first.weight.t()), self.predict(self.mix(self.words(ids)))


class Mixer(nn.Module):
    """MLPs over patches and over channels in turn."""

    def __init__(self, patches: int = 16, width: int = 24) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3, width, 8, 8)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(5)])
        self.over_patches = nn.ModuleList([self._mlp(patches, 12) for _ in range(2)])
        self.over_channels = nn.ModuleList([self._mlp(width, 40) for _ in range(2)])
        self.out = nn.Linear(width, 5)

    @staticmethod
    def _mlp(size: int, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x).flatten(2).transpose(1, 2)
        for i in range(2):
            x = x + self.over_patches[i](self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.over_channels[i](self.norms[2 * i + 1](x))
        return self.out(self.norms[4](x).mean(1))


class Spectral(nn.Module):
    """A global filter: channels pass a Fourier transform of space with a weight per frequency."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.entry, self.out = nn.Conv2d(3, width, 4, 4), nn.Conv2d(width, 5, 1)
        self.norm = nn.BatchNorm2d(width)
        self.filter = nn.Parameter(0.02 * torch.randn(width, 8, 5, 2))
        self.mlp = nn.Sequential(nn.Conv2d(width, 48, 1), nn.GELU(), nn.Conv2d(48, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.entry(x))
        spectrum = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.filter)
        x = x + torch.fft.irfft2(spectrum, s=x.shape[2:], norm="ortho")
        return self.out(x + self.mlp(x)).mean((2, 3))


def mixture(kind: type[nn.Module]) -> nn.Module:
    """Two layers of six experts of unequal size, two for a token."""
    return Net(kind, width=16, sizes=(24, 20, 28, 24, 32, 16))


def _image(size: int, channels: int = 3) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, channels, size, size)


def _ids() -> Tensor:
    return torch.randint(1, 50, (2, 11))


# name -> how to build it, example inputs
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "U-Net, transposed convolutions": (lambda: UNet(True), _image(32)),
    "U-Net, interpolation": (lambda: UNet(False), _image(32)),
    "diffusion blocks with group norm": (DiffusionBlock, lambda: (torch.randn(2, 3, 16, 16), torch.randn(2, 16))),
    "super-resolution by pixel shuffle": (super_resolution, _image(16, 1)),
    "detection neck, two paths": (Neck, _image(64)),
    "feature pyramid, added": (AddedPyramid, _image(32)),
    "sound, 1-D convolutions": (sound, lambda: torch.randn(2, 1, 400)),
    "video, 3-D convolutions": (Video, lambda: torch.randn(2, 3, 4, 16, 16)),
    "nn.TransformerEncoder": (lambda: Encoder(False), _ids),
    "nn.TransformerEncoder, norm first": (lambda: Encoder(True), _ids),
    "LSTM, two layers, both directions": (lambda: Reader(nn.LSTM), _ids),
    "GRU, two layers, both directions": (lambda: Reader(nn.GRU), _ids),
    "Siamese": (Siamese, lambda: (torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16))),
    "tied weights": (Tied, lambda: (torch.randn(2, 40), _ids())),
    "MLP-Mixer": (Mixer, _image(32)),
    "spectral filter": (Spectral, _image(32)),
    "experts in a list, looked up in a mask": (lambda: mixture(OneHot), lambda: torch.randn(8, 7, 5)),
    "experts in a list, sorted tokens": (lambda: mixture(Sorted), lambda: torch.randn(8, 7, 5)),
    "experts in a list, every one for every token": (lambda: mixture(Dense), lambda: torch.randn(8, 7, 5)),
}
