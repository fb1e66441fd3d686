"""The standard library's own documentation strings, character by character."""

from __future__ import annotations

import ast
import math
import string
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.quality.tasks.task import Batch, Task

ALPHABET = "\n" + string.ascii_letters + string.digits + string.punctuation + " "
LENGTH = 64  # characters that a sample predicts
BATCH = 32
STEPS = 48  # batches an epoch
CLASSES = 10  # the modules that say most: the classes of the Utilization Score
CALIBRATION = 16  # windows a class
TEST = 192  # windows


@cache
def docstrings() -> dict[str, list[str]]:
    """Top-level modules of the standard library and their documentation strings, the wordiest first."""
    found = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        found[path.stem] = [text for text in texts if text]
    return dict(sorted(found.items(), key=lambda item: (-sum(map(len, item[1])), item[0])))


@cache
def text() -> Task:
    """Next-character prediction. The last tenth of every module is for testing; targets are `(characters, module)`."""
    code = {character: number for number, character in enumerate(ALPHABET)}
    train, test = [], []
    for texts in docstrings().values():
        ids = torch.tensor([code[c] for c in "\n\n".join(texts) if c in code], dtype=torch.long)
        head = int(0.9 * len(ids))
        train.append(ids[:head])
        test.append(ids[head:])
    everything = torch.cat(train)
    generator = torch.Generator().manual_seed(0)
    unseen = _windows(torch.cat(test), TEST, generator)
    told = [_windows(part, CALIBRATION, generator) for part in train[:CLASSES]]
    windows = torch.stack(told, 1).flatten(0, 1)  # classes in turn
    modules = torch.arange(CLASSES).repeat(CALIBRATION)
    calibration: list[Batch] = [
        (w[:, :-1], (w[:, 1:], m)) for w, m in zip(windows.split(BATCH), modules.split(BATCH), strict=True)
    ]

    def epoch(generator: torch.Generator) -> Iterator[Batch]:
        for _ in range(STEPS):
            w = _windows(everything, BATCH, generator)
            yield w[:, :-1], (w[:, 1:], None)

    def perplexity(model: nn.Module) -> float:
        model.eval()
        with torch.inference_mode():
            return math.exp(min(float(_loss(model(unseen[:, :-1]), (unseen[:, 1:], None))), 50.0))

    return Task("text", "perplexity", calibration, _loss, perplexity, epoch, lambda batch: batch[1][1])


def _loss(logits: Tensor, targets: tuple[Tensor, Tensor | None]) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets[0].flatten())


def _windows(ids: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` windows of LENGTH + 1 characters from anywhere."""
    starts = torch.randint(0, len(ids) - LENGTH, (count,), generator=generator)
    return ids[starts[:, None] + torch.arange(LENGTH + 1)]
