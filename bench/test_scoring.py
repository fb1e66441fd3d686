"""One-pass scoring against an ordinary forward + backward over the same batches, and against a forward + backward for
activations alone, which is the least that any scoring pass computes: in turn, in one process.

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
from bench._compare import Comparison, Timing, bound, host_clock, in_turn
from bench._training import Floor, forward_backward, threads
from bench.models import images, resnet18, seeded, vgg11_bn
from bench.quality.nets.transformers import LanguageModel
from bench.quality.tasks.text import ALPHABET, text
from bench.test_latency import vit
from bench.zoo.mixtures import Net, OneHot
from fairkern.demo.data import Batches, calibration
from fairkern.demo.models import BUILDERS

RIVAL = "forward + backward, weight gradients included"
MOST_OF_EXPERTS = 1.2  # scoring time over training time
MOST_OF_FLOOR = 1.08  # scoring time over that of the floor


@dataclass(frozen=True)
class Setting:
    name: str
    build: Callable[[], nn.Module]
    batches: Callable[[], Batches]
    threads: int
    rounds: int
    target: float | None  # scoring time over training time; None: nothing was promised
    of_floor: float | None = None


def measured(
    ours: Callable[[], object],
    trained: Callable[[], object],
    floor: Floor,
    rounds: int,
    target: float | None,
    of_floor: float | None = None,
    clock: Callable[[Callable[[], object]], float] = host_clock,
) -> tuple[Comparison, dict[str, Any]]:
    """Scoring against training, and what a row says of the floor, and of bounds."""
    mine, rival, least = in_turn((ours, trained, floor), rounds, 1, clock)
    timed = Comparison(mine, rival)
    return timed, {**beside(mine, least, of_floor), **_bound(timed, target)}


def beside(mine: Timing, least: Timing, most: float | None = None) -> dict[str, Any]:
    """What a row says of the floor: its time, and ours over it, where that is bounded with whether it holds."""
    over = mine.p50 / least.p50
    kept = {} if most is None else bound(over, most, at_least=False)
    return {"floor_s": least.as_dict(), "floor": {"value": over, **kept}}


def _bound(timed: Comparison, target: float | None) -> dict[str, Any]:
    return {} if target is None else timed.bound("relative_cost", target, at_least=False)


def digits() -> Batches:
    pytest.importorskip("sklearn")
    return calibration()


def large() -> Batches:
    """16 images of each of ten classes."""
    x, y = images(160, 10, 3, 128)
    return list(zip(x.split(32), y.split(32), strict=True))


def small() -> Batches:
    """As many images of each class as are compared, half as many again."""
    x, y = images(320, 10, 3, 64)
    return list(zip(x.split(32), y.split(32), strict=True))


CASES = {
    "vgg": Setting("demo vgg", BUILDERS["vgg"], digits, 1, 21, 0.68),
    "resnet": Setting("demo resnet", BUILDERS["resnet"], digits, 1, 21, 0.72),
    "vgg11": Setting("VGG-11-BN", lambda: vgg11_bn(10), small, torch.get_num_threads(), 5, None, MOST_OF_FLOOR),
    "resnet18": Setting("ResNet-18", lambda: resnet18(10), large, torch.get_num_threads(), 5, 0.66, MOST_OF_FLOOR),
}


@pytest.mark.parametrize("name", CASES)
def test_scoring_against_forward_backward(name: str, benchmark: Any, record: Callable[..., None]) -> None:
    row(CASES[name], benchmark, record)


def row(setting: Setting, benchmark: Any, record: Callable[..., None]) -> None:
    model, twin, batches = setting.build(), setting.build(), setting.batches()
    loss_fn = nn.CrossEntropyLoss()
    units = fk.trace(model, batches[0][0][:1])
    floor = Floor(twin, units, batches, lambda net, batch: loss_fn(net(batch[0]), batch[1]))

    def ours() -> fk.Scores:
        return fk.score(model, batches, loss_fn, units=units, progress=False)

    def trained() -> None:
        forward_backward(twin, batches, loss_fn)

    with threads(setting.threads):
        timed, more = measured(ours, trained, floor, setting.rounds, setting.target, setting.of_floor)
    benchmark.pedantic(ours, rounds=1)
    count, size = sum(len(y) for _, y in batches), batches[0][0].shape[-1]
    record(
        benchmark,
        timed,
        op="score",
        shape=f"{setting.name}, {count} images of {size} x {size}, {len(batches)} batches",
        rival=RIVAL,
        threads=setting.threads,
        **more,
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

    def loss_of(net: nn.Module, batch: Any) -> torch.Tensor:
        return net(**batch).loss if loss is None else loss(net(batch[0]), batch[1])

    def trained() -> None:
        twin.train()
        for batch in batches:
            loss_of(twin, batch).backward()
        twin.zero_grad()

    with threads(1):
        timed, more = measured(ours, trained, Floor(twin, units, batches, loss_of), 5, MOST_OF_EXPERTS)
    benchmark.pedantic(ours, rounds=1)
    assert whole == 4 * EXPERTS
    record(
        benchmark,
        timed,
        op="score",
        shape=f"4 layers of {EXPERTS} {experts.__name__} experts, {SEQUENCES} sequences of {TOKENS} tokens",
        rival=RIVAL,
        threads=1,
        **more,
    )


@dataclass(frozen=True)
class Statistics:
    """A net and its data, with moments kept; one thread."""

    name: str
    build: Callable[[], nn.Module]
    batches: Callable[[], Sequence[Any]]
    rounds: int
    target: float  # scoring time over training time
    loss: Callable[[Any, Any], torch.Tensor] = nn.functional.cross_entropy
    class_of: Callable[[Any], torch.Tensor] | Literal[False] | None = None


def language(classes: bool = True) -> Statistics:
    task = text()
    return Statistics(
        "language model" if classes else "language model without classes",
        lambda: seeded(lambda: LanguageModel(len(ALPHABET))),
        lambda: task.calibration,
        5,
        1.05 if classes else 1.3,
        task.loss,
        task.class_of if classes else False,
    )


WITH_MOMENTS: dict[str, Callable[[], Statistics]] = {
    "vgg": lambda: Statistics("demo vgg", BUILDERS["vgg"], digits, 11, 0.85),
    "resnet": lambda: Statistics("demo resnet", BUILDERS["resnet"], digits, 7, 1.3),
    "resnet18": lambda: Statistics("ResNet-18", lambda: resnet18(10), large, 3, 0.75),
    "vit": lambda: Statistics("ViT, 6 blocks", vit, small, 3, 0.95),
    "lm": language,
    "lm_without_classes": lambda: language(False),  # as `prune` scores it
}


@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_moments_against_forward_backward(name: str, benchmark: Any, record: Callable[..., None]) -> None:
    row_with_moments(WITH_MOMENTS[name](), benchmark, record)


def row_with_moments(setting: Statistics, benchmark: Any, record: Callable[..., None]) -> None:
    model, twin, batches = setting.build(), setting.build(), setting.batches()
    units = fk.trace(model, batches[0][0][:1])
    floor = Floor(twin, units, batches, lambda net, batch: setting.loss(net(batch[0]), batch[1]))
    eliminations: list[float] = []

    def ours() -> fk.Scores:
        scores = fk.score(
            model, batches, setting.loss, units=units, gram=True, class_of=setting.class_of, progress=False
        )
        eliminations.append(scores.provenance["seconds"]["residual"])
        return scores

    def trained() -> None:
        forward_backward(twin, batches, setting.loss)

    def clock(call: Callable[[], object]) -> float:
        """Without what elimination took."""
        before = len(eliminations)
        return host_clock(call) - sum(eliminations[before:])

    with threads(1):
        timed, more = measured(ours, trained, floor, setting.rounds, setting.target, clock=clock)
    benchmark.pedantic(lambda: None, rounds=1)
    elimination = statistics.median(eliminations)
    shape, count = " x ".join(map(str, batches[0][0].shape[1:])), sum(len(batch[0]) for batch in batches)
    record(
        benchmark,
        timed,
        op="score, moments kept",
        shape=f"{setting.name}, {count} samples of {shape}, {len(batches)} batches",
        rival=RIVAL,
        threads=1,
        elimination_s=elimination,
        relative_cost_with_elimination=(timed.ours.p50 + elimination) / timed.rival.p50,
        **more,
    )
