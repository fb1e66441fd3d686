"""One-pass scoring against an ordinary forward + backward over the same batches, in turn, in one process.

With second moments, what planning takes from them once (the order of elimination) is told apart from the pass.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import nn

import fairkern as fk
from bench._compare import compare, host_clock
from bench._training import forward_backward, threads
from bench.models import images, resnet18, seeded
from bench.quality.nets.transformers import LanguageModel
from bench.quality.tasks.text import ALPHABET, text
from bench.test_latency import vit
from bench.zoo.mixtures import Net, OneHot
from fairkern.demo.data import Batches, calibration
from fairkern.demo.models import BUILDERS

MOST = 0.85  # scoring time over training time
MOST_WITH_MOMENTS = 1.3


@dataclass(frozen=True)
class Setting:
    build: Callable[[], nn.Module]
    batches: Callable[[], Batches]
    threads: int
    rounds: int
    target: float | None  # None: nothing was promised


def digits() -> Batches:
    pytest.importorskip("sklearn")
    return calibration()


def large() -> Batches:
    """16 images of each of ten classes."""
    x, y = images(160, 10, 3, 128)
    return list(zip(x.split(32), y.split(32), strict=True))


CASES = {
    "vgg": Setting(BUILDERS["vgg"], digits, 1, 21, MOST),
    "resnet": Setting(BUILDERS["resnet"], digits, 1, 21, None),
    "resnet18": Setting(lambda: resnet18(10), large, torch.get_num_threads(), 5, MOST),
}
NAMES = {"vgg": "demo vgg", "resnet": "demo resnet", "resnet18": "ResNet-18"}


@pytest.mark.parametrize("name", CASES)
def test_scoring_against_forward_backward(name: str, benchmark: Any, record: Callable[..., None]) -> None:
    setting = CASES[name]
    model, twin, batches = setting.build(), setting.build(), setting.batches()
    loss_fn = nn.CrossEntropyLoss()
    units = fk.trace(model, batches[0][0][:1])

    def ours() -> fk.Scores:
        return fk.score(model, batches, loss_fn, units=units, progress=False)

    with threads(setting.threads):
        timed = compare(ours, lambda: forward_backward(twin, batches, loss_fn), setting.rounds, warmup=1)
    benchmark.pedantic(ours, rounds=1)
    count, size = sum(len(y) for _, y in batches), batches[0][0].shape[-1]
    record(
        benchmark,
        timed,
        op="score",
        shape=f"{NAMES[name]}, {count} images of {size} x {size}, {len(batches)} batches",
        rival="forward + backward, weight gradients included",
        threads=setting.threads,
        **({} if setting.target is None else timed.bound("relative_cost", setting.target, at_least=False)),
    )


SEQUENCES, TOKENS, EXPERTS, CHOSEN = 32, 64, 64, 8


def listed() -> tuple[nn.Module, Sequence[Any]]:
    """Four layers of experts as modules of a list."""
    net = seeded(lambda: Net(OneHot, width=256, layers=4, sizes=(128,) * EXPERTS, k=CHOSEN))
    x = torch.randn(SEQUENCES, TOKENS, 5, generator=torch.Generator().manual_seed(0))
    return net, list(zip(x.split(8), (torch.arange(SEQUENCES) % 3).split(8), strict=True))


def fused() -> tuple[nn.Module, Sequence[Any]]:
    """OLMoE with four layers, its experts in three-dimensional parameters; a class for each sequence."""
    transformers = pytest.importorskip("transformers")
    config = transformers.OlmoeConfig(
        hidden_size=256,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        vocab_size=1000,
        eos_token_id=1,
        use_cache=False,
    )
    ids = torch.randint(2, 1000, (SEQUENCES, TOKENS), generator=torch.Generator().manual_seed(0))
    return seeded(lambda: transformers.OlmoeForCausalLM(config)), [{"input_ids": x, "labels": x} for x in ids.split(8)]


@pytest.mark.parametrize("experts", [fused, listed], ids=lambda experts: experts.__name__)
def test_many_experts_against_forward_backward(
    experts: Callable[[], tuple[nn.Module, Sequence[Any]]], benchmark: Any, record: Callable[..., None]
) -> None:
    (model, batches), (twin, _) = experts(), experts()
    model.eval()
    head = batches[0] if isinstance(batches[0], dict) else batches[0][0]
    units = fk.trace(model, {"input_ids": head["input_ids"]} if isinstance(head, dict) else head)
    whole = sum(group.units for group in units.groups if group.kind == "expert" and group.frozen is None)
    loss = None if isinstance(head, dict) else nn.CrossEntropyLoss()
    classes = (lambda batch: batch["input_ids"][:, 0] % 3) if isinstance(head, dict) else None

    def ours() -> fk.Scores:
        return fk.score(model, batches, loss, units=units, class_of=classes, progress=False)

    def trained() -> None:
        for batch in batches:
            (twin(**batch).loss if loss is None else loss(twin(batch[0]), batch[1])).backward()
        twin.zero_grad()

    with threads(1):
        timed = compare(ours, trained, 5, warmup=1)
    benchmark.pedantic(ours, rounds=1)
    assert whole == 4 * EXPERTS
    record(
        benchmark,
        timed,
        op="score",
        shape=f"4 layers of {EXPERTS} {experts.__name__} experts, {SEQUENCES} sequences of {TOKENS} tokens",
        rival="forward + backward, weight gradients included",
        threads=1,
    )


def small() -> Batches:
    """As many images of each class as are compared, half as many again."""
    x, y = images(320, 10, 3, 64)
    return list(zip(x.split(32), y.split(32), strict=True))


@dataclass(frozen=True)
class Statistics:
    """A net and its data, with moments kept; one thread."""

    name: str
    build: Callable[[], nn.Module]
    batches: Callable[[], Sequence[Any]]
    rounds: int
    loss: Callable[[Any, Any], torch.Tensor] = nn.functional.cross_entropy
    class_of: Callable[[Any], torch.Tensor] | Literal[False] | None = None


def language(classes: bool = True) -> Statistics:
    task = text()
    return Statistics(
        "language model" if classes else "language model without classes",
        lambda: seeded(lambda: LanguageModel(len(ALPHABET))),
        lambda: task.calibration,
        5,
        task.loss,
        task.class_of if classes else False,
    )


WITH_MOMENTS: dict[str, Callable[[], Statistics]] = {
    "vgg": lambda: Statistics("demo vgg", BUILDERS["vgg"], digits, 11),
    "resnet": lambda: Statistics("demo resnet", BUILDERS["resnet"], digits, 7),
    "resnet18": lambda: Statistics("ResNet-18", lambda: resnet18(10), large, 3),
    "vit": lambda: Statistics("ViT, 6 blocks", vit, small, 3),
    "lm": language,
    "lm_without_classes": lambda: language(False),  # as `prune` scores it
}


@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_moments_against_forward_backward(name: str, benchmark: Any, record: Callable[..., None]) -> None:
    setting = WITH_MOMENTS[name]()
    model, twin, batches = setting.build(), setting.build(), setting.batches()
    units = fk.trace(model, batches[0][0][:1])
    eliminations: list[float] = []

    def ours() -> fk.Scores:
        scores = fk.score(
            model, batches, setting.loss, units=units, gram=True, class_of=setting.class_of, progress=False
        )
        eliminations.append(scores.provenance["seconds"]["residual"])
        return scores

    def clock(call: Callable[[], object]) -> float:
        """Without what elimination took."""
        before = len(eliminations)
        return host_clock(call) - sum(eliminations[before:])

    with threads(1):
        timed = compare(ours, lambda: forward_backward(twin, batches, setting.loss), setting.rounds, 1, clock)
    benchmark.pedantic(lambda: None, rounds=1)
    elimination = statistics.median(eliminations)
    shape, count = " x ".join(map(str, batches[0][0].shape[1:])), sum(len(batch[0]) for batch in batches)
    record(
        benchmark,
        timed,
        op="score, moments kept",
        shape=f"{setting.name}, {count} samples of {shape}, {len(batches)} batches",
        rival="forward + backward, weight gradients included",
        threads=1,
        elimination_s=elimination,
        relative_cost_with_elimination=(timed.ours.p50 + elimination) / timed.rival.p50,
        **timed.bound("relative_cost", MOST_WITH_MOMENTS, at_least=False),
    )
