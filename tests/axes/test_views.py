"""Operators that move positions without arithmetic, and what a view, a slice or a copy does to units."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.axes.harness import Case, Net, check_exact, check_groups, make, unit_map


def between(function: object, reads: int = 8, groups: object = None, frozen: object = None) -> Case:
    """A function between a convolution with 8 channels and one that reads `reads`."""
    return Case(
        lambda: Net(lambda m, x: m.b(function(m.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(reads, 4, 1)),  # type: ignore[operator]
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"} if groups is None else groups,  # type: ignore[arg-type]
        frozen or {},  # type: ignore[arg-type]
    )


def kept(reason: str, function: object, reads: int = 8) -> Case:
    return between(function, reads, {}, {"a.weight:0": reason})


def into_a_slice(x: Tensor) -> Tensor:
    out = x.new_zeros(x.shape[0], 10, *x.shape[2:])
    out[:, 1:9] = x
    return out


def into_parts_of_space(x: Tensor, made: Callable[..., Tensor] = Tensor.new_zeros) -> Tensor:
    out = made(x, (*x.shape[:3], 12))
    out[..., :8].copy_(x)
    out[..., 8:] = x[..., 2:3].expand(-1, -1, -1, 4)
    return out


def read_before_added(x: Tensor) -> Tensor:
    out = x.new_zeros(*x.shape[:2], 9, 8)
    late, early = out[:, :, 1:], out.relu()
    late += x
    return out + early + out.transpose(1, 2)[:, ::3].transpose(1, 2).mean(2, keepdim=True)


def into_a_merged_view(x: Tensor) -> Tensor:
    out = x.new_zeros(2, 8 * 8, 8)
    out.view(2, 8, 8, 8).copy_(x)
    return out.view(2, 8, 8, 8)


def into_shifted_memory(x: Tensor) -> Tensor:
    """Channels are the last dimension of both, with the same stride, and begin elsewhere."""
    memory = x.new_zeros(2, 9, 8, 8)
    memory.flatten()[4:-4][: 2 * 8 * 8 * 8].view(2, 8, 8, 8).copy_(x.permute(0, 2, 3, 1))
    return memory[:, :8].permute(0, 3, 1, 2)


def into_a_ramp(x: Tensor) -> Tensor:
    out = torch.arange(8.0).to(x)[:, None, None].expand(2, 8, 8, 9).clone()
    out[..., :8] = x
    return out


def part_overwritten(x: Tensor) -> Tensor:
    x[:, :3] = 0
    return x


def added_to_a_slice(x: Tensor) -> Tensor:
    x[:, 2:5].add_(1)
    return x


def shuffled(x: Tensor, groups: int = 2) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


def axes_in_place(x: Tensor) -> Tensor:
    x = x.clone()
    x.unsqueeze_(2).squeeze_(2).transpose_(1, 2).transpose_(1, 2)
    return x


def split_and_cat(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([b, a.relu()], 1)


CASES = {
    "permute there and back": between(lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2)),
    "transpose": between(lambda x: x.transpose(1, 3).mT.mT.transpose(1, 3)),
    "movedim, swapaxes": between(lambda x: x.movedim(1, -1).swapaxes(1, 3).movedim(1, -1).permute(0, 3, 2, 1)),
    "axes changed in place": between(axes_in_place),
    "squeeze, unsqueeze": between(lambda x: x.unsqueeze(1).squeeze(1)[:, None][:, 0]),
    "flatten and unflatten space": between(lambda x: x.flatten(2).unflatten(2, (8, 8))),
    "reshape of a transposed tensor": between(
        lambda x: x.permute(2, 3, 0, 1).reshape(64, 2, -1).permute(1, 2, 0).reshape(2, -1, 8, 8)
    ),
    "channels into the batch": between(lambda x: F.avg_pool2d(x.reshape(-1, 1, 8, 8), 3, 1, 1).reshape(2, -1, 8, 8)),
    "spatial slices": between(lambda x: x[:, :, ::2, 1:-1]),
    "spatial flip and roll": between(lambda x: x.flip(2).roll((1, 2), (2, 3))),
    "spatial index": between(lambda x: x[:, :, torch.tensor([0, 2, 5])][..., [1, 0]]),
    "index_select in space": between(lambda x: x.index_select(3, torch.tensor([4, 1]))),
    "spatial padding": between(lambda x: F.pad(F.pad(x, (1, 2, 0, 1), mode="reflect"), (0, 0, 1, 1), value=0.5)),
    "replicated border": between(lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate")),
    "circular border": between(lambda x: F.pad(x, (1, 1, 0, 0), mode="circular")),
    "as_strided to what it is": between(lambda x: x.as_strided(x.shape, x.stride())),
    "channels last": between(lambda x: x + F.adaptive_avg_pool2d(x.contiguous(memory_format=torch.channels_last), 1)),
    "chunk": between(split_and_cat, groups={"a": "4: a.bias:0x2 a.weight:0x2 b.weight:1*x2 @ bx2"}),
    "chunk and multiply": between(
        lambda x: torch.mul(*x.chunk(2, 1)), 4, {"a": "4: a.bias:0x2 a.weight:0x2 b.weight:1* @ b"}
    ),
    "equal split": between(
        lambda x: sum(x.split(x.shape[1] // 4, 1)), 2, {"a": "2: a.bias:0x4 a.weight:0x4 b.weight:1* @ b"}
    ),
    "tensor_split": kept("is sliced", lambda x: sum(x.tensor_split(4, 1)), 2),
    "interleaved parts": between(
        lambda x: x[:, ::2] * x[:, 1::2].sigmoid(), 4, {"a": "4: a.bias:0x2 a.weight:0x2 b.weight:1* @ b"}
    ),
    "stack and sum": between(lambda x: torch.stack([x, x.relu(), -x], 2).sum(2)),
    "stack and unbind": between(lambda x: torch.stack([x, x.relu()], -1).unbind(-1)[1]),
    "stack and select": between(lambda x: torch.stack([x, x.relu()], 0).select(0, 1)),
    "cat with itself": between(
        lambda x: torch.cat([x, x.relu()], 1), 16, {"a": "8: a.bias:0 a.weight:0 b.weight:1*x2 @ bx2"}
    ),
    "repeat": between(lambda x: x.repeat(1, 2, 1, 1), 16, {"a": "8: a.bias:0 a.weight:0 b.weight:1*x2 @ bx2"}),
    "repeat, new dimension": between(lambda x: x.repeat(3, 1, 1, 1, 1).mean(0)),
    "repeat_interleave": between(
        lambda x: x.repeat_interleave(2, 1), 16, {"a": "8: a.bias:0 a.weight:0 b.weight:1*x2 @ bx2"}
    ),
    "expand over space": between(lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8)),
    "expand_as": between(lambda x: x * x.amax((2, 3), keepdim=True).expand_as(x)),
    "channel shuffle": between(shuffled, groups={"a": "4: a.bias:0x2 a.weight:0x2 b.weight:1*x2 @ bx2"}),
    "channel shuffle, operator": between(
        lambda x: F.channel_shuffle(x, 2), groups={"a": "4: a.bias:0x2 a.weight:0x2 b.weight:1*x2 @ bx2"}
    ),
    "pixel shuffle": between(lambda x: F.pixel_shuffle(x, 2), 2, {"a": "2: a.bias:0x4 a.weight:0x4 b.weight:1* @ b"}),
    "pixel unshuffle": between(
        lambda x: F.pixel_unshuffle(x, 2), 32, {"a": "8: a.bias:0 a.weight:0 b.weight:1*x4 @ bx4"}
    ),
    "pixel shuffle to one channel": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2), nn.Conv2d(1, 2, 1)),
        {},
        {"0.weight:0": "one channel"},
    ),
    "padded channels": between(
        lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
        11,
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"},
        {"b.weight:1": "is padding"},
    ),
    "channel slice": kept("is sliced", lambda x: x[:, :5], 5),
    "channel slice, other part unused": kept("is sliced", lambda x: x[:, 4:], 4),
    "channels reversed": kept("is shifted", lambda x: x.flip(1)),
    "channels rolled": kept("is shifted", lambda x: x.roll(1, 1)),
    "rolled as one row": kept("is shifted", lambda x: x.roll(3)),
    "channels indexed": kept("is indexed", lambda x: x[:, [3, 1, 2]], 3),
    "channels gathered": kept("is indexed by gather", lambda x: x.gather(1, torch.zeros(2, 8, 8, 8, dtype=torch.long))),
    "boolean mask": kept("is indexed", lambda x: x[:, torch.arange(8) < 6], 6),
    "one channel selected": kept("is selected", lambda x: x[:, 0][:, None], 1),
    "channels taken apart": kept("is taken apart", lambda x: torch.stack(x.unbind(1)[::2], 1), 4),
    "split into single channels": kept("is taken apart", lambda x: torch.cat(x.split(1, 1)[:3], 1), 3),
    "unequal split": kept("unequal parts", lambda x: x.split([3, 5], 1)[1], 5),
    "copied into a slice": kept("untracked", into_a_slice, 10),
    "copied into parts of space": between(into_parts_of_space),
    "copied into parts of ones": between(lambda x: into_parts_of_space(x, torch.Tensor.new_ones)),
    "added to a part of zeros, read before": between(read_before_added),
    "copied into a merged view": kept("untracked", into_a_merged_view),
    "copied into a view that is shifted": kept("untracked", into_shifted_memory),
    "copied into what differs along channels": kept("untracked|meets a fixed size", into_a_ramp),
    "part overwritten": kept("is sliced", part_overwritten),
    "added to a slice": kept("is sliced", added_to_a_slice),
    "index_put along the batch": between(lambda x: x.index_put_((torch.tensor([1]),), torch.zeros(()).double())),
    "scatter": kept("is indexed by scatter", lambda x: x.scatter(1, torch.zeros(2, 1, 8, 8, dtype=torch.long), 0.0)),
    "as_strided across channels": kept("read with other strides", lambda x: x.as_strided(x.shape, (512, 32, 8, 1))),
    "as_strided that goes over the end of a channel": kept(
        "read with other strides", lambda x: x.as_strided((1, 8, 9, 8), (512, 64, 8, 1))
    ),
    "as_strided with an offset": kept(
        "read with other strides", lambda x: x.as_strided((1, 8, 8, 8), (512, 64, 8, 1), 512)
    ),
    "as_strided to what would be moved channels": kept("slid over", lambda x: x.as_strided(x.shape, (512, 1, 64, 8))),
    "as_strided to overlapping windows of space": between(
        lambda x: x.as_strided((*x.shape[:2], 3, 4, 8), (*x.stride()[:2], 16, 8, 1)).flatten(2, 3)
    ),
    "as_strided as a permutation": between(
        lambda x: x.as_strided((2, 8, 8, x.shape[1]), (x.stride(0), 8, 1, 64)).permute(0, 3, 1, 2)
    ),
    "unfold": kept("is cut into windows", lambda x: x.unfold(1, 2, 2).sum(-1), 4),
    "im2col": between(lambda x: F.unfold(x, 1).unflatten(2, (8, 8))),
    "bits": kept("is read as another type", lambda x: x.view(torch.int64).view(torch.float64)),
    "topk": kept("runs over it", lambda x: x.topk(3, 1).values, 3),
    "flatten before a linear layer": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32, 5)),
        {"0": "8: 0.bias:0 0.weight:0 3.weight:1*x4 @ 3x4"},
    ),
    "flatten before two linear layers": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 2)
        ),
        {"0": "8: 0.bias:0 0.weight:0 3.weight:1*x4 @ 3x4", "3": "6: 3.bias:0 3.weight:0 5.weight:1* @ 5"},
    ),
    "channels last, then flatten": Case(
        lambda: Net(
            lambda m, x: m.b(F.max_pool2d(m.a(x), 4).permute(0, 2, 3, 1).flatten(1)),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Linear(32, 5),
        ),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1*x4 @ bx4"},
    ),
    "linear, then space": Case(
        lambda: Net(lambda m, x: m.b(m.a(x).unflatten(1, (-1, 2, 2))), a=nn.Linear(5, 32), b=nn.Conv2d(8, 4, 1)),
        {"a": "8: a.bias:0x4 a.weight:0x4 b.weight:1* @ b"},
        shape=(3, 5),
    ),
    "embedding": Case(
        lambda: nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 4)),
        {"0": "8: 0.weight:1 1.weight:1* @ 1"},
        {"0.weight:0": "looked up"},
        inputs=lambda: torch.tensor([[0, 3, 6], [2, 2, 1]]),
    ),
    "indices along units": Case(
        lambda: Net(
            lambda m, x: m.b(m.table(m.a(x).argmax(2)).sum(-1)),
            a=nn.Conv1d(3, 8, 1),
            table=nn.Embedding(9, 5),
            b=nn.Linear(8, 2),
        ),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"},
        shape=(2, 3, 9),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    check_groups(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str) -> None:
    check_exact(CASES[name])


def positions(case: str) -> dict[str, np.ndarray]:
    units = unit_map(*make(CASES[case]))
    return {str(axis.axis): axis.positions for axis in units.groups[0].axes}


def test_positions_of_a_chunk() -> None:
    held = positions("chunk")
    assert held["a.weight:0"].tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert held["b.weight:1"].tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_positions_of_repeats() -> None:
    assert positions("repeat")["b.weight:1"].tolist() == [[i, i + 8] for i in range(8)]
    assert positions("repeat_interleave")["b.weight:1"].tolist() == [[2 * i, 2 * i + 1] for i in range(8)]


def test_positions_of_a_flatten() -> None:
    assert positions("flatten before a linear layer")["3.weight:1"].tolist() == np.arange(32).reshape(8, 4).tolist()
    assert positions("channels last, then flatten")["b.weight:1"].tolist() == np.arange(32).reshape(4, 8).T.tolist()
    assert positions("linear, then space")["a.weight:0"].tolist() == np.arange(32).reshape(8, 4).tolist()


def test_positions_of_shuffles() -> None:
    for case in ("channel shuffle", "channel shuffle, operator"):
        held = positions(case)
        order = shuffled(torch.arange(8.0).view(1, 8, 1, 1)).flatten().long().numpy()
        for made, read in zip(held["a.weight:0"], held["b.weight:1"], strict=True):
            assert sorted(order[read]) == made.tolist()
    assert positions("pixel shuffle")["a.weight:0"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert positions("pixel unshuffle")["b.weight:1"].tolist() == np.arange(32).reshape(8, 4).tolist()


def test_positions_of_padding() -> None:
    assert positions("padded channels")["b.weight:1"].tolist() == [[i + 1] for i in range(8)]
