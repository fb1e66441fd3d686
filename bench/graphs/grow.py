"""Random models: a recipe from a seed, and a model from a recipe."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.graphs import (  # noqa: F401
    attention,
    blocks,
    experts,
    heads,
    images,
    joins,
    recurrent,
    tokens,
    traps,
    vectors,
    volumes,
    weights,
)
from bench.graphs.pieces import PIECES, Draw, Kind, Piece, Shape, suiting

AGAIN = "again"  # the module of an earlier step once more
MOST_VALUES, MOST_CHANNELS, BATCH = 4096, 48, 2

GIVEN = {
    Kind.PIXELS: (3, 8, 8),
    Kind.CLIP: (2, 3, 4, 4),
    Kind.SOUND: (1, 24),
    Kind.WORDS: (8,),
    Kind.FRAMES: (9, 5),
    Kind.FACTS: (7,),
}
MADE = (Kind.IMAGE, Kind.VOLUME, Kind.WAVE, Kind.TOKENS, Kind.VECTOR)
OFTEN = {Kind.PIXELS: 3, Kind.CLIP: 1, Kind.SOUND: 1, Kind.WORDS: 3, Kind.FRAMES: 2, Kind.FACTS: 1}
Answer = namedtuple("Answer", ["first", "others"])


@dataclass(frozen=True)
class Step:
    """A piece, which tensors it reads (how far back among those of the right kind), and the seed of its numbers."""

    piece: str
    reads: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Recipe:
    """All that a model is made from. Steps that do not fit are left out, so any of them can be taken away."""

    seed: int
    given: tuple[Kind, ...]  # kinds of the inputs; a mask last, if any
    steps: tuple[Step, ...]
    answer: str = "tensor"
    tied: bool = False
    by_name: bool = False  # inputs are keyword arguments

    def without(self, index: int) -> Recipe:
        return replace(self, steps=self.steps[:index] + self.steps[index + 1 :])


def drawn(seed: int, most: int = 9) -> Recipe:
    """The recipe of a seed, of up to so many steps besides stems and ends."""
    d = Draw(seed, 0)
    kinds = [d.of(*(kind for kind, n in OFTEN.items() for _ in range(n))) for _ in range(d.of(1, 1, 2))]
    given = [*kinds, *([Kind.MASK] if Kind.WORDS in kinds and d.chance() else [])]
    found = [*given]
    steps = []
    for i in range(len(kinds)):
        steps.append(_step(d, next(p for p in PIECES.values() if p.reads == (kinds[i],)), found))
    for _ in range(d.of(*range(2, most + 1))):
        kind = _latest(found) if d.chance(0.75) else d.of(*(k for k in found if k in MADE))
        choices = [p for p in suiting(found) if p.reads[0] is kind and p.gives is not Kind.ANSWER]
        often = [p for p in choices for _ in range(2 if p.gives is not kind or len(p.reads) > 1 else 1)]
        steps.append(Step(AGAIN, (0,), _seed(d)) if d.chance(0.05) else _step(d, d.of(*often), found))
    answer = d.of("tensor", "tuple", "list", "dict", "named")
    return Recipe(seed, tuple(given), tuple(steps), answer, tied=d.chance(0.15), by_name=d.chance(0.3))


def _step(d: Draw, piece: Piece, found: list[Kind]) -> Step:
    found.append(piece.gives)
    return Step(piece.name, tuple(0 if i == 0 else d.of(0, 1, 2) for i in range(len(piece.reads))), _seed(d))


def _seed(d: Draw) -> int:
    return int(d.generator.integers(1 << 30))


def _latest(found: list[Kind]) -> Kind:
    return next(kind for kind in reversed(found) if kind in MADE)


@dataclass
class Value:
    kind: Kind
    tensor: Tensor  # what the whole model gives there for its example inputs
    read: bool = False


@dataclass
class Line:
    """One call of the model: which of its modules, on which of the tensors so far."""

    module: int
    reads: tuple[int, ...]


@dataclass
class Model:
    """A network, its example inputs and what it consists of."""

    network: nn.Module
    recipe: Recipe
    pieces: list[str] = field(default_factory=list)

    def inputs(self, seed: int, batch: int = BATCH, *, longer: int = 0) -> Any:
        """Float64 inputs from a seed; `longer`: with more places in every direction."""
        d = torch.Generator().manual_seed(seed)
        made = [given(kind, batch, d, longer) for kind in self.recipe.given]
        return dict(zip(names(self.recipe), made, strict=True)) if self.recipe.by_name else tuple(made)


def names(recipe: Recipe) -> list[str]:
    plain = ["first", "second"][: len([k for k in recipe.given if k is not Kind.MASK])]
    return [*plain, *(["mask"] if Kind.MASK in recipe.given else [])]


def given(kind: Kind, batch: int, d: torch.Generator, longer: int = 0) -> Tensor:
    if kind is Kind.MASK:
        mask = torch.rand(batch, GIVEN[Kind.WORDS][0] + longer, generator=d) > 0.3
        mask[:, 0] = True
        return mask
    shape = list(GIVEN[kind])
    for i in {Kind.FACTS: (), Kind.WORDS: (0,), Kind.FRAMES: (0,)}.get(kind, range(1, len(shape))):
        shape[i] += longer
    if kind is Kind.WORDS:
        return torch.randint(1, 30, (batch, *shape), generator=d)
    return torch.randn(batch, *shape, generator=d, dtype=torch.float64)


class Network(nn.Module):
    """Runs its lines one after the other; what nothing reads is returned."""

    def __init__(self, modules: list[nn.Module], lines: list[Line], ends: list[int], answer: str) -> None:
        super().__init__()
        self.parts, self.lines, self.ends, self.answer = nn.ModuleList(modules), lines, ends, answer

    def forward(self, first: Tensor, second: Tensor | None = None, mask: Tensor | None = None) -> Any:
        values = [x for x in (first, second, mask) if x is not None]
        for line in self.lines:
            values.append(self.parts[line.module](*(values[i] for i in line.reads)))
        out = [values[i] for i in self.ends]
        if self.answer == "tensor":
            return out[0] if len(out) == 1 else tuple(out)
        if self.answer == "dict":
            return {f"answer_{i}": x for i, x in enumerate(out)}
        return Answer(out[0], out[1:]) if self.answer == "named" else tuple(out) if self.answer == "tuple" else out


class _Building:
    def __init__(self, recipe: Recipe) -> None:
        d = torch.Generator().manual_seed(0)
        self.values = [Value(kind, given(kind, BATCH, d)) for kind in recipe.given]
        self.modules: list[nn.Module] = []
        self.lines: list[Line] = []
        self.pieces: list[str] = []

    def back(self, kind: Kind, far: int) -> int | None:
        """The tensor of a kind that is so many back from the last one."""
        of_kind = [i for i, v in enumerate(self.values) if v.kind is kind]
        return of_kind[max(len(of_kind) - 1 - far, 0)] if of_kind else None

    def add(self, step: Step) -> None:
        if step.piece == AGAIN:
            self._again(Draw(step.seed))
            return
        piece = PIECES[step.piece]
        reads = [self.back(kind, far) for kind, far in zip(piece.reads, step.reads, strict=True)]
        if None not in reads:
            self.build(piece, tuple(i for i in reads if i is not None), step.seed)

    def build(self, piece: Piece, reads: tuple[int, ...], seed: int) -> None:
        torch.manual_seed(seed)
        module = piece.build(Draw(seed), *(tuple(self.values[i].tensor.shape) for i in reads))
        if module is not None:
            self._call(module.double().eval(), len(self.modules), reads, piece)

    def _call(self, module: nn.Module, number: int, reads: tuple[int, ...], piece: Piece) -> None:
        with torch.no_grad():
            out = module(*(self.values[i].tensor for i in reads))
        channels = out.shape[-1 if piece.gives is Kind.TOKENS else 1]
        if piece.gives is not Kind.ANSWER and (out[0].numel() > MOST_VALUES or channels > MOST_CHANNELS):
            return
        if number == len(self.modules):
            self.modules.append(module)
        self.lines.append(Line(number, reads))
        self.pieces.append(piece.name)
        for i in reads:
            self.values[i].read = True
        self.values.append(Value(piece.gives, out))

    def _again(self, d: Draw) -> None:
        last = len(self.values) - 1
        fits = [i for i, line in enumerate(self.lines) if self._reads(line) == self._reads(Line(0, (last,)))]
        if fits:
            line = self.lines[at := d.of(*fits)]
            self._call(self.modules[line.module], line.module, (last,), PIECES[self.pieces[at]])

    def _reads(self, line: Line) -> list[tuple[Kind, Shape]]:
        return [(self.values[i].kind, tuple(self.values[i].tensor.shape)) for i in line.reads]


def grown(recipe: Recipe) -> Model:
    """The model of a recipe, in float64 and eval mode. The global generator of torch stays as it was."""
    with torch.random.fork_rng([]):
        b = _Building(recipe)
        for step in recipe.steps:
            b.add(step)
        for i, value in enumerate(list(b.values)):
            if value.kind in MADE and not value.read:
                d = Draw(recipe.seed, 1, i)
                b.build(
                    d.of(*(p for p in PIECES.values() if p.reads == (value.kind,) and p.gives is Kind.ANSWER)),
                    (i,),
                    _seed(d),
                )
        ends = [i for i, v in enumerate(b.values) if v.kind is Kind.ANSWER]
        network = Network(b.modules, b.lines, ends, recipe.answer).double().eval()
        if recipe.tied:
            _tie(network, Draw(recipe.seed, 2))
        _stir(network, recipe.seed)
    return Model(network, recipe, b.pieces)


def _tie(network: nn.Module, d: Draw) -> None:
    """Two layers of one shape have one weight from now on."""
    layers = [m for m in network.modules() if type(m) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)]
    pairs = [
        (a, b)
        for i, a in enumerate(layers)
        for b in layers[i + 1 :]
        if a.weight is not b.weight and a.weight.shape == b.weight.shape
    ]
    if pairs:
        a, b = d.of(*pairs)
        b.weight = a.weight


def _stir(network: nn.Module, seed: int) -> None:
    """Statistics and constant parameters drawn at random: zeros and ones hide wrong cuts."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
                low = 0.5 if float(tensor.flatten()[0]) > 0 or "var" in name else -0.2
                tensor.uniform_(low, low + 0.7)
