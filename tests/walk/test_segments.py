"""Where a model's blocks are, which of them share units, and stubs that stand in their places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.walk import chain
from fairkern.walk.segments import Block as Found
from fairkern.walk.segments import Given, Segment, divide, stubs
from tests.walk.models import Block, Convolutional, Residual, images, made, vectors

X, Y = vectors()[0][0], images()[0][0]


def chain_of(model: nn.Module, x: Tensor) -> chain.Chain:
    return chain.chain_of(model, lambda: model(x))


class Tuples(Residual):
    """Blocks that are called by name, and return what passes as the second of three."""

    class Inner(Block):
        def forward(self, scale: float, *, hidden: Tensor) -> tuple[None, Tensor, Tensor]:  # type: ignore[override]
            return None, super().forward(hidden) * scale, hidden

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Inner(8, 10) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entered(x)
        for block in self.blocks:
            _, x, _ = block(1.0, hidden=x)
        return self.left(x)


def test_where_the_tensor_is_that_passes() -> None:
    found = chain_of(made(Tuples), X)
    assert found.blocks == tuple(Found(f"blocks.{k}", "hidden", 1, (False, True, True)) for k in range(3))
    assert {"enter", "project"} <= found.before
    assert {"norm", "head", "out"} <= found.behind
    assert found.number("blocks.1.up.weight") == 1
    assert found.number("enter.weight") is None


def test_lists_within_lists() -> None:
    """Modules of a Sequential in a Sequential are taken one by one, those within a block are not."""
    inner = nn.Sequential(Block(5, 4), nn.Sequential(Block(5, 4), nn.Sequential(Block(5, 4))))
    assert [b.path for b in chain_of(nn.Sequential(inner, Block(5, 3)).eval(), X).blocks] == [
        *("0.0", "0.1.0", "0.1.1.0", "1")
    ]


def test_what_is_given_whole_numbers_is_no_block() -> None:
    model = nn.Sequential(nn.Embedding(9, 5), Block(5, 4), Block(5, 4)).eval()
    assert [block.path for block in chain_of(model, torch.ones(2, 3, dtype=torch.int64)).blocks] == ["1", "2"]


def test_blocks_that_share_units_are_one_segment() -> None:
    model = made(Convolutional)
    division = divide(chain_of(model, Y), fk.trace(model, Y, verify=False))
    assert [[block.path for block in segment] for segment in division.segments] == [
        *(["body.0"], ["body.1"]),
        ["body.2", "body.3", "body.4", "body.5"],
    ]


def test_layers_in_a_row_that_share_units() -> None:
    layers = [nn.Linear(5, 6), nn.Linear(6, 5), *made(Residual, 3, 5).blocks, nn.Linear(5, 4), nn.Linear(4, 3)]
    model = nn.Sequential(*layers).eval()
    units = fk.trace(model, X, verify=False)
    division = divide(chain_of(model, X), units)
    assert [[block.path for block in segment] for segment in division.segments] == [
        *(["0", "1"], ["2"], ["3"], ["4"]),
        ["5", "6"],
    ]
    assert [[units.groups[g].name for g in groups] for groups in division.groups] == [
        *(["0"], ["2.up"], ["3.up"], ["4.up"], ["5"])
    ]


def test_a_segment_has_the_names_of_the_model() -> None:
    model = made(Residual)
    given: Any = [((None,), {}), ((None,), {})]
    blocks = chain_of(model, X).blocks[1:]
    segment = Segment(model, blocks, lambda _: (0, torch.ones(2, 8), [Given(*g) for g in given]))
    assert set(segment.state_dict()) == {n for n in model.state_dict() if n.startswith(("blocks.1.", "blocks.2."))}
    assert segment.get_submodule("blocks.1") is model.blocks[1]
    assert torch.equal(segment(torch.arange(2)), model.blocks[2](model.blocks[1](torch.ones(2, 8))))


def test_stubs_are_there_for_a_while() -> None:
    model = made(Residual)
    model.blocks[1].kind = "full"
    held, seen = list(model.modules()), []

    def called(number: int, block: Found, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        seen.append((number, block.path, args[0].shape))
        return args[0]

    with stubs(model, chain_of(model, X).blocks, called):
        assert not any(name.startswith("blocks.") for name in model.state_dict())
        assert model.blocks[1].kind == "full"
        assert torch.equal(model(X), model.left(model.entered(X)))
    assert seen == [(k, f"blocks.{k}", (6, 8)) for k in range(3)]
    with pytest.raises(ZeroDivisionError), stubs(model, chain_of(model, X).blocks, lambda *_: 1 / 0):  # type: ignore[arg-type]
        model(X)
    assert all(a is b for a, b in zip(held, model.modules(), strict=True))
