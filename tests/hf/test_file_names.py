"""What files are made of, found by where telling numbers go: held against the tensors, element by element."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fairkern as fk
from fairkern.hf.file_names import _along, _as_it_is, _filled, _tensor, _Views
from fairkern.types import FileTensor

State = dict[str, Tensor]
SHAPES = {"stack": (3, 8, 5), "q": (12, 4), "k": (12, 4), "v": (12, 4), "bias": (12,), "one": (1, 7), "number": ()}


def turned(x: Tensor, dim: int) -> Tensor:
    """Its halves in turns."""
    shape = list(x.shape)
    shape[dim : dim + 1] = [2, shape[dim] // 2]
    return x.reshape(shape).transpose(dim, dim + 1).reshape(x.shape).contiguous()


def rope(x: Tensor, heads: int = 3) -> Tensor:
    """Both halves of every head in turns."""
    return x.view(heads, 2, len(x) // heads // 2, -1).transpose(1, 2).reshape(len(x), -1)


LAYOUTS: dict[str, Callable[[State], Tensor]] = {
    "as it is": lambda s: s["q"],
    "a number": lambda s: s["number"],
    "an expert": lambda s: s["stack"][1],
    "half of an expert": lambda s: s["stack"][2, 4:],
    "every second row": lambda s: s["stack"][2, 1::2],
    "transposed": lambda s: s["stack"].transpose(1, 2).contiguous(),
    "an expert transposed": lambda s: s["stack"][1].T.contiguous(),
    "in turns": lambda s: turned(s["stack"], 1),
    "in turns, transposed": lambda s: turned(s["stack"], 1).transpose(1, 2).contiguous(),
    "rows of all experts": lambda s: s["stack"].flatten(0, 1),
    "rows of all experts, in turns": lambda s: turned(s["stack"], 1).flatten(0, 1),
    "queries, keys and values": lambda s: torch.cat([s["q"], s["k"], s["v"]]),
    "beside each other": lambda s: torch.cat([s["q"], s["k"]], dim=1),
    "head by head": lambda s: torch.stack([s[n].view(3, 4, 4) for n in "qkv"], dim=1).reshape(36, 4),
    "row by row": lambda s: torch.stack([s[n] for n in "qkv"], dim=1).reshape(36, 4),
    "rotated": lambda s: rope(s["q"]),
    "a rotated bias": lambda s: rope(s["bias"][:, None])[:, 0],
    "with a dimension of one more": lambda s: s["bias"][None, :, None],
    "without a dimension of one": lambda s: s["one"][0],
    "upside down": lambda s: s["q"].flip(0),
    "in an order of its own": lambda s: s["q"][[0, 2, 1, 3, 5, 4, 9, 8]].T,
    "a diagonal": lambda s: s["stack"].diagonal(0, 0, 2),
}


def told(layout: Callable[[State], Tensor]) -> list[Tensor]:
    every = {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}
    states = [{name: _filled(t, k) for k, (name, t) in enumerate(every.items())}]
    states += [{name: _along(t, dim) for name, t in every.items()} for dim in range(3)]
    with _Views():
        return [layout(state) for state in states]


def found(layout: Callable[[State], Tensor]) -> FileTensor:
    every = {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}
    which, *where = told(layout)
    return _tensor("file", which, where, list(every), every)


def made(tensor: FileTensor, state: State) -> Tensor:
    """A file's tensor by the definition of its parts, one element after the other."""
    values = torch.full(tensor.shape, -1.0)
    start = k = 0
    while k < len(tensor.parts):
        turns = tensor.parts[k].turns
        for turn, part in enumerate(tensor.parts[k : k + turns]):
            sizes = [part.length if dim == tensor.along else size for dim, size in enumerate(tensor.shape)]
            for place in itertools.product(*map(range, sizes)):
                index = [at if isinstance(at, int) else at[1] + at[2] * place[at[0]] for at in part.index]
                where = list(place)
                if where:
                    where[tensor.along] = start + turn + turns * place[tensor.along]
                values[tuple(where)] = state[part.parameter][tuple(index)]
        start, k = start + turns * tensor.parts[k].length, k + turns
    return values


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_parts_give_the_tensor_of_the_file(layout):
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    assert torch.equal(made(found(layout), state), layout(state))


@pytest.mark.parametrize(
    ("name", "parts"),
    [("an expert", 1), ("in turns", 2), ("rows of all experts", 3), ("queries, keys and values", 3), ("row by row", 3)],
)
def test_there_are_no_more_parts_than_needed(name, parts):
    assert len(found(LAYOUTS[name]).parts) == parts


def test_numbers_that_are_no_places_are_refused():
    with pytest.raises(fk.InputError, match="is not said by rows"):
        found(lambda s: s["q"][:4] + 0 * s["k"][:4] + torch.eye(4, dtype=torch.int32))


def test_only_what_is_a_parameter_by_its_name_is_left_out():
    every = {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}
    for name, expected in (("q", True), ("one", True), ("number", True), ("k", False)):
        which, *where = told(lambda s, name=name: s["q" if name == "k" else name])
        assert _as_it_is(_tensor(name, which, where, list(every), every), every) is expected
    which, *where = told(lambda s: s["q"].T[:4, :4].contiguous())
    assert not _as_it_is(_tensor("q", which, where, list(every), every), every)
