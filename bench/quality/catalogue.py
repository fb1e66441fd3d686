"""Which nets on which tasks; which of them the default is chosen on, and which confirm it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from bench.quality.nets.convolutional import VGG, ConvNeXt, DenseNet, MobileNet, ResNet
from bench.quality.nets.minilm import minilm
from bench.quality.nets.sequential import MLP, RowLSTM
from bench.quality.nets.transformers import LanguageModel, ViT
from bench.quality.tasks.digits import digits
from bench.quality.tasks.glyphs import CLASSES, glyphs
from bench.quality.tasks.sentences import sentences
from bench.quality.tasks.task import Task
from bench.quality.tasks.text import ALPHABET, text
from bench.quality.train import Schedule, trained


@dataclass(frozen=True)
class Entry:
    """A net and its task. `chooses`: it takes part in choosing the default; the others confirm."""

    name: str
    kind: str  # cnn, vit, lm, … : what targets are said for
    chooses: bool
    build: Callable[[], nn.Module]
    task: Callable[[], Task]
    schedule: Schedule = field(default_factory=Schedule)

    def load(self, seed: int) -> tuple[nn.Module, Task]:
        """The trained net, in eval mode, and the task."""
        task = self.task()
        return trained(self.name, self.build, task, self.schedule, seed), task


@dataclass(frozen=True)
class Pretrained:
    """A net that comes with its weights; every seed is the same net."""

    name: str
    kind: str
    chooses: bool

    def load(self, seed: int) -> tuple[nn.Module, Task]:
        model, tokenise = minilm()
        return model, sentences(model, tokenise)


def _entries() -> list[Entry | Pretrained]:
    ten, many = 10, len(CLASSES)
    return [
        Entry("vgg-digits", "cnn", True, partial(VGG, ten), digits),
        Entry("resnet-digits", "cnn", False, partial(ResNet, ten), digits),
        Entry("densenet-digits", "cnn", True, partial(DenseNet, ten), digits),
        Entry("mobilenet-digits", "cnn", False, partial(MobileNet, ten), digits),
        Entry("convnext-digits", "cnn", True, partial(ConvNeXt, ten), digits, Schedule(rate=4e-3)),
        Entry("vit-digits", "vit", False, partial(ViT, ten), digits, Schedule(epochs=25)),
        Entry("mlp-digits", "mlp", True, partial(MLP, ten), digits, Schedule(epochs=60)),
        Entry("lstm-digits", "lstm", False, partial(RowLSTM, ten), digits, Schedule(epochs=30)),
        Entry("vgg-glyphs", "cnn", False, partial(VGG, many), glyphs, Schedule(epochs=20)),
        Entry("resnet-glyphs", "cnn", True, partial(ResNet, many), glyphs, Schedule(epochs=20)),
        Entry("vit-glyphs", "vit", True, partial(ViT, many), glyphs, Schedule(epochs=30)),
        Entry("mlp-glyphs", "mlp", False, partial(MLP, many), glyphs, Schedule(epochs=60)),
        Entry("lm-text", "lm", True, partial(LanguageModel, len(ALPHABET)), text, Schedule(epochs=20, rate=5e-3)),
        Entry(
            "moe-text",
            "lm",
            False,
            partial(LanguageModel, len(ALPHABET), experts=True),
            text,
            Schedule(epochs=16, rate=5e-3),
        ),
        Pretrained("minilm-sentences", "embedding", False),
    ]


ENTRIES = {entry.name: entry for entry in _entries()}
ADDS_UP = frozenset(  # nets of which a unit costs the same whatever else goes: the default prices there
    {"convnext-digits", "vit-digits", "vit-glyphs", "lm-text", "moe-text", "minilm-sentences"}
)
