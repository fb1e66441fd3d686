"""What a random model is put together from: small modules by name, each from one kind of tensor to another.

A piece is a function of a `Draw` and the shapes of what its module will read. It returns the module, or None where
these shapes do not suit it. To add one, write it in the file of its kind:

    @piece(Kind.IMAGE)
    def scaled(d, x):
        return built(lambda m, x: x * m.gain.view(1, -1, 1, 1), gain=nn.Parameter(torch.randn(x[1])))
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

_Any = TypeVar("_Any")
Shape = tuple[int, ...]


class Kind(enum.Enum):
    """What a tensor is, by its dimensions."""

    IMAGE = "b c h w"
    VOLUME = "b c d h w"
    WAVE = "b c n"
    TOKENS = "b n c"
    VECTOR = "b c"
    MASK = "b n, bool"  # at least the first place of every sample
    PIXELS = "image, as given"
    CLIP = "volume, as given"
    SOUND = "wave, as given"
    WORDS = "b n, integers"
    FRAMES = "tokens, as given"
    FACTS = "vector, as given"
    ANSWER = "what the model returns"


class Draw:
    """Random decisions of one piece, from an own generator."""

    def __init__(self, *seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def of(self, *choices: _Any) -> _Any:
        return choices[int(self.generator.integers(len(choices)))]

    def chance(self, probability: float = 0.5) -> bool:
        return bool(self.generator.random() < probability)

    def width(self) -> int:
        """Of few values, so that sizes coincide that have nothing to do with each other."""
        return self.of(4, 6, 8, 8, 12, 16)

    def divisor(self, n: int, *others: int) -> int:
        """A number above 1 that divides n, and all of the others; 1 where there is none."""
        found = [k for k in range(2, n + 1) if not any(m % k for m in (n, *others))]
        return self.of(*found) if found else 1


Builder = Callable[..., nn.Module | None]


@dataclass(frozen=True)
class Piece:
    name: str
    build: Builder
    reads: tuple[Kind, ...]
    gives: Kind


PIECES: dict[str, Piece] = {}


def piece(*reads: Kind, to: Kind | None = None, name: str = "") -> Callable[[Builder], Builder]:
    """Registers a function as a piece that reads these; it gives what it reads first, unless `to` says otherwise."""

    def register(build: Builder) -> Builder:
        called = name or build.__name__
        if called in PIECES:
            raise ValueError(f"there is a piece {called!r} already")
        PIECES[called] = Piece(called, build, reads, to or reads[0])
        return build

    return register


def built(forward: Callable[..., Any], **parts: Any) -> nn.Module:
    """A module with this forward, and with parameters, modules, buffers (tensors) and plain attributes by name."""
    module = type("Built", (nn.Module,), {"forward": forward, "__module__": __name__})()
    for name, part in parts.items():
        if isinstance(part, nn.Parameter) and part.dim() > 1:
            part.data /= max(part.shape[-2:]) ** 0.5  # so that models of many pieces stay finite
        if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
            module.register_buffer(name, part)
        else:
            setattr(module, name, part)
    return module


def suiting(kinds: Sequence[Kind]) -> list[Piece]:
    """Pieces that read nothing but these, in the order of their files."""
    return [p for p in PIECES.values() if set(p.reads) <= set(kinds)]
