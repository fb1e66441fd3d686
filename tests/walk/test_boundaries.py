"""What is kept comes back as it was, from memory and from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fairkern.walk.boundaries import Boundaries, kept_batches
from fairkern.walk.rows import rows_of


class Cache:
    """What a model fills."""


def layouts() -> list[Tensor]:
    x = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    return [
        x,
        x.to(memory_format=torch.channels_last),
        x.transpose(0, 2),
        x[:, 1:, ::2],
        x[:1].expand(4, 3, 4, 5),
        x.bfloat16(),
        x > 7,
        torch.tensor(3),
        torch.zeros(0, 4),
    ]


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "files"])
def test_values_and_layouts(on_disk: bool, tmp_path: Path) -> None:
    with Boundaries(tmp_path if on_disk else None) as store:
        for number, x in enumerate(layouts()):
            store.put(number, x)
            back = store.get(number, torch.device("cpu"))
            assert torch.equal(back, x)
            assert back.dtype == x.dtype
            dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last) or not x.numel()
            assert back.stride() == x.stride() or not dense
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "files"])
def test_nested_values_and_one_tensor_in_several_places(on_disk: bool, tmp_path: Path) -> None:
    shared, cache = torch.ones(3), Cache()
    value: Any = [(shared, {"a": shared, "b": [torch.zeros(2), None]}), cache, "text"]
    with Boundaries(tmp_path if on_disk else None) as store:
        store.put("x", value)
        assert store.count("x") == 2
        assert len(list(tmp_path.rglob("*.bin"))) == 2 * on_disk
        back = store.get("x")
        assert back[0][0] is back[0][1]["a"]
        assert back[1] is cache
        assert back[2] == "text"
        assert torch.equal(back[0][1]["b"][0], torch.zeros(2))
        assert torch.equal(store.get("x", change=lambda k, t: t + k)[0][1]["b"][0], torch.ones(2))
        store.put("x", shared)
        assert len(list(tmp_path.rglob("*.bin"))) == on_disk
        store.drop("x")
        assert list(tmp_path.rglob("*.bin")) == []
        assert "x" not in store


def test_batches_are_kept_as_they_came(tmp_path: Path) -> None:
    given = [{"x": torch.randn(2, 3)}, (torch.ones(1), [torch.zeros(2), "b"])]
    with Boundaries(tmp_path) as store:
        kept = kept_batches(store, iter(given))
        for _ in range(2):
            found = list(kept)
            assert torch.equal(found[0]["x"], given[0]["x"])  # type: ignore[call-overload]
            assert found[1][1][1] == "b"
        assert len(kept) == 2


@pytest.mark.parametrize(
    "made",
    [
        lambda x: x,
        lambda x: x.transpose(0, 1),
        lambda x: x.flatten(0, 1),
        lambda x: x.transpose(0, 1).flatten(0, 1),
    ],
    ids=["first", "second", "folded", "in turn"],
)
def test_rows_of_samples(made: Any) -> None:
    x = torch.randn(5, 3, 2)
    shared = torch.ones(5, 5)
    rows = rows_of([made(x), shared], [made(x[-1:]), shared], 5)
    take = rows.taken(torch.tensor([1, 4]), 5)
    assert torch.equal(take(0, made(x)), made(x[[1, 4]]))
    assert take(1, shared) is shared
    assert rows.samples_in(made(x[:3])) == (0 if made(x).shape == made(x[:3]).shape else 3)
