"""The benchmark of scoring at a small size, and the floor that it is held against."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fairkern as fk
from bench import documents
from bench import test_scoring as bench
from bench._training import Floor
from bench.models import Basic, ResNet, images

BATCHES = [(x, y) for x, y in zip(*(t.split(20) for t in images(40, 4, 3, 16)), strict=True)]


class Backwards(TorchDispatchMode):
    """What convolutions are asked for in the backward pass: input, weight, bias."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(list(args[-1]))
        return func(*args, **(kwargs or {}))


class Attention(nn.Module):
    """A tap within a function that a module calls, and one of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.down(torch.relu(self.up(nn.functional.layer_norm(x, (8,))))).mean(1)


def plain() -> nn.Module:
    layers = (nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.Conv2d(12, 12, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.Conv2d(12, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def residual() -> nn.Module:
    return ResNet(Basic, (1, 1), classes=4, width=8)


def loss_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("build", "convolutions"),
    [(plain, 2), (residual, 5)],  # all but the one in front of the first tap
)
def test_the_floor_has_gradients_of_activations_from_the_first_tap_on(build: Any, convolutions: int) -> None:
    net = build().train()
    next(net.parameters()).requires_grad_(False)
    units = fk.trace(net, BATCHES[0][0][:1])
    floor = Floor(net, units, BATCHES, loss_of)
    asked = [parameter.requires_grad for parameter in net.parameters()]
    with Backwards() as seen:
        floor()
    assert seen.masks == [[True, False, False]] * (convolutions * len(BATCHES))
    assert [parameter.requires_grad for parameter in net.parameters()] == asked
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not net.training


def test_the_floor_begins_at_the_module_around_a_tap_in_a_function() -> None:
    net = Attention()
    units = fk.trace(net, BATCHES[0][0][:1])
    given: list[tuple[Tensor, ...]] = []
    floor = Floor(net, units, BATCHES[:1], loss_of)
    with floor._asked():
        net.attention.register_forward_pre_hook(lambda _, args: given.append(args))
        net.embed.register_forward_hook(lambda *_: given.append(_[2:]))
        loss_of(net, BATCHES[0])
    (embedded,), (query, key, value) = given
    assert not embedded.requires_grad
    assert query.is_leaf
    assert query.requires_grad
    assert query is key is value


def test_a_row_says_all_three(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    rows: list[dict[str, Any]] = []
    benchmark: Any = SimpleNamespace(pedantic=lambda *_, **__: None)

    def record(_: Any, timed: Any, **what: Any) -> None:
        rows.append({"case": "toy", **what, **timed.as_dict()})

    bench.row(bench.Setting("toy", plain, lambda: BATCHES, 1, 1, 0.7, 1.08), benchmark, record)
    bench.row_with_moments(bench.Statistics("toy", plain, lambda: BATCHES, 1, 0.9), benchmark, record)
    for row in rows:
        over = row["ours_s"]["p50"] / row["floor_s"]["p50"]
        assert row["floor"]["value"] == pytest.approx(over)
        assert row["relative_cost"] == pytest.approx(row["ours_s"]["p50"] / row["rival_s"]["p50"])
    assert rows[0]["floor"].items() >= {"target": 1.08, "at_least": False}.items()
    assert "target" not in rows[1]["floor"]
    results = {"uncommitted_changes": False, "commit": None, "date": "", "device": "", "threads": 1, "python": ""}
    monkeypatch.setattr(documents, "_read", lambda _: {**results, "torch": "", "rows": rows})
    page = documents.scoring().splitlines()
    assert {line.count("|") for line in page if line.startswith("|")} == {9}
    assert "≤ 1.08, " in documents.scoring()
