"""What a plan does to the tensors of a checkpoint's files: which go, what is left of the others, and by which names."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from fairkern.compact.descriptors import Index, kept
from fairkern.errors import PlanMismatchError
from fairkern.ops.gather import gather
from fairkern.plans.renaming import Renaming
from fairkern.types import FilePart, Files, FileTensor, Plan

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a name between two dots that is a number


@dataclass(frozen=True)
class Piece:
    """Positions of a tensor along its `along`, and what stays of them."""

    at: slice
    index: Index  # dim → int64 [kept], counted among these positions along `along`; [rows, kept] by those of dim `rows`
    rows: int = 0
    turns: int = 1  # as those of `FilePart`

    @property
    def length(self) -> int:
        """Positions before the cut."""
        return len(range(self.at.start, self.at.stop, self.at.step))

    def size(self, dim: int, whole: int) -> int:
        """How many positions are left along a dimension."""
        return self.index[dim].shape[-1] if dim in self.index else whole


@dataclass(frozen=True)
class StoredCut:
    """What is left of one tensor of the files: pieces one behind the other, or in turns."""

    name: str  # in the files that are written
    shape: tuple[int, ...]  # before
    along: int
    pieces: tuple[Piece, ...]

    @property
    def left(self) -> tuple[int, ...]:
        """The shape of what is left."""
        sizes = [self.pieces[0].size(dim, size) for dim, size in enumerate(self.shape)]
        if sizes:
            sizes[self.along] = sum(piece.size(self.along, piece.length) for piece in self.pieces)
        return tuple(sizes)

    @property
    def whole(self) -> bool:
        """Whether all of it stays."""
        return self.left == self.shape

    @property
    def at_once(self) -> bool:
        """Whether rows of it cannot be cut by themselves: they take turns, or other ones go at each place of a dim."""
        turns = self.along == 0 and any(piece.turns > 1 for piece in self.pieces)
        return not self.whole and (turns or any(0 in p.index and p.index[0].ndim == 2 for p in self.pieces))

    def of_rows(self, rows: Tensor, start: int) -> Tensor:
        """What is left of rows `start` and following of the first dimension; all of them where it is cut `at_once`."""
        if self.whole:
            return rows
        found = [_of_piece(piece, self.along, rows, start) for piece in self.pieces]
        at_once = self.along or self.at_once
        made = self._in_turns(found) if at_once else [part for part in found if len(part)] or found[:1]
        return made[0] if len(made) == 1 else torch.cat(made, dim=self.along)

    def _in_turns(self, found: list[Tensor]) -> list[Tensor]:
        """Pieces that take turns, put together."""
        made, k = [], 0
        while k < len(found):
            turns = self.pieces[k].turns
            together = found[k : k + turns]
            made.append(
                torch.stack(together, self.along + 1).flatten(self.along, self.along + 1) if turns > 1 else found[k]
            )
            k += turns
        return made


def _of_piece(piece: Piece, along: int, rows: Tensor, start: int) -> Tensor:
    """What is left of a piece in rows `start` and following."""
    if along:
        part = rows[(slice(None),) * along + (piece.at,)]
        return _gathered(part, _within(piece, start, start + len(rows)), piece.rows)
    if piece.turns > 1:
        return _gathered(rows[piece.at], piece.index, piece.rows)
    begin, end = max(piece.at.start, start), min(piece.at.stop, start + len(rows))
    if begin >= end:
        return rows[:0].new_empty(0, *(piece.size(dim, size) for dim, size in enumerate(rows.shape) if dim))
    part = rows[begin - start : end - start]
    return _gathered(part, _within(piece, begin - piece.at.start, end - piece.at.start), piece.rows)


def _within(piece: Piece, begin: int, end: int) -> Index:
    """The index of positions `begin` to `end` of dimension 0 of a piece."""
    index = {dim: at[begin:end] if at.ndim == 2 and not piece.rows else at for dim, at in piece.index.items()}
    if 0 in index and index[0].ndim == 1:
        ends = torch.tensor([begin, end], dtype=index[0].dtype, device="cpu")
        first, last = torch.searchsorted(index[0], ends).tolist()  # positions ascend
        index[0] = index[0][first:last] - begin
    return index


def _gathered(part: Tensor, index: Index, rows: int) -> Tensor:
    """`gather`, of which an index per position belongs to dimension 0."""
    if not index:
        return part.contiguous()
    order = [rows, *(dim for dim in range(part.dim()) if dim != rows)]
    moved = {order.index(dim): at for dim, at in index.items()}
    taken = gather(part.permute(order), moved)
    return taken.permute([order.index(dim) for dim in range(part.dim())]).contiguous()


class Stored:
    """A plan, as it concerns files."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._renaming, self._kept = plan, Renaming(plan), kept(plan)
        files = plan.files or Files()
        self._tensors = {tensor.name: tensor for tensor in files.tensors}
        self.ignored = set(files.ignored)

    def tensor(self, name: str) -> FileTensor | None:
        """How a tensor of files is made of parameters; None where the plan does not know it."""
        if name in self._tensors or name not in self._plan.shapes:
            return self._tensors.get(name)
        shape = tuple(self._plan.shapes[name])
        whole = FilePart(name, tuple((dim, 0, 1) for dim in range(len(shape))), shape[0] if shape else 1)
        return FileTensor(name, shape, (whole,))

    def cut(self, tensor: FileTensor) -> StoredCut | None:
        """What is left of a tensor; None where nothing is.

        Raises PlanMismatchError where what is left is no tensor: a different number of each expert's, half of a part.
        """
        pieces, names = [], set()
        for together in tensor.placed():
            left = [self._piece(tensor, part, at) for part, at in together]
            sizes = {None if piece is None else piece.size(tensor.along, piece.length) for piece in left}
            if len(sizes) > 1:
                raise PlanMismatchError(
                    f"positions of {tensor.name} that take turns would be of other numbers: what is left is no tensor"
                )
            pieces += [piece for piece in left if piece is not None]
            names |= {self._name(tensor, part) for (part, _), piece in zip(together, left, strict=True) if piece}
        if not pieces:
            return None
        if len(names) > 1:
            raise PlanMismatchError(f"parts of {tensor.name} would come to lie in {', '.join(sorted(names))}")
        cut = StoredCut(names.pop(), tensor.shape, tensor.along, tuple(pieces))
        for piece in pieces:
            for dim, size in enumerate(tensor.shape):
                if dim != tensor.along and piece.size(dim, size) != cut.left[dim]:
                    raise PlanMismatchError(
                        f"{tensor.name} would keep {piece.size(dim, size)} positions of dim {dim} in one part and "
                        f"{cut.left[dim]} in another: what is left of it is no tensor"
                    )
        return cut

    def parameters(self, tensor: FileTensor) -> dict[str, int]:
        """How many elements of which parameters a tensor holds."""
        found: dict[str, int] = {}
        for part in tensor.parts:
            sizes = [part.length if dim == tensor.along else size for dim, size in enumerate(tensor.shape)]
            found[part.parameter] = found.get(part.parameter, 0) + int(torch.Size(sizes).numel())
        return found

    def _piece(self, tensor: FileTensor, part: FilePart, at_: slice) -> Piece | None:
        """What stays of a part; None where it goes."""
        if self._renaming.after(part.parameter) is None:
            return None
        found: Index = {}
        rows = part.index[0][0] if part.index and isinstance(part.index[0], tuple) else 0
        for dim, stays in self._kept.get(part.parameter, {}).items():
            at = part.index[dim]
            own = self._rows(tensor, part, stays)
            if isinstance(at, int):
                if own.ndim == 2:
                    raise PlanMismatchError(
                        f"{tensor.name} holds one position of dim {dim} of {part.parameter}, of which every set loses "
                        "others: what is left of it is no tensor"
                    )
                if at not in own.tolist():
                    return None
                continue
            file_dim, first, step = at
            length = part.length if file_dim == tensor.along else tensor.shape[file_dim]
            inside = _inside(own, first, step, length, f"{tensor.name} dim {file_dim}")
            if not inside.shape[-1]:
                return None
            if inside.shape[-1] < length:
                found[file_dim] = inside
        return Piece(at_, found, rows, part.turns)

    def _rows(self, tensor: FileTensor, part: FilePart, stays: Tensor) -> Tensor:
        """Of an index per position of a parameter's dimension 0 what concerns this part."""
        if stays.ndim == 1:
            return stays
        at = part.index[0]
        if isinstance(at, int):
            return stays[at]
        file_dim, first, step = at
        length = part.length if file_dim == tensor.along else tensor.shape[file_dim]
        return stays[first : first + step * (length - 1) + 1 : step]

    def _name(self, tensor: FileTensor, part: FilePart) -> str:
        """The name afterwards: the numbers of modules and experts in it are those that the parts have then."""
        after = self._renaming.after(part.parameter)
        assert after is not None
        former = [int(n) for n in _NUMBER.findall(part.parameter)]
        later = [int(n) for n in _NUMBER.findall(after)]
        index = self._kept.get(part.parameter, {})
        fixed = {tuple(at for at in p.index if isinstance(at, int)) for p in tensor.parts}
        for dim, at in enumerate(part.index):
            if isinstance(at, int) and len(fixed) == 1:
                former.append(at)
                place = at if dim not in index else index[dim].tolist().index(at)
                later.append(place)
        if former == later:
            return tensor.name
        if part.parameter == tensor.name:
            return after
        numbers = [int(n) for n in _NUMBER.findall(tensor.name)]
        if numbers != former:
            raise PlanMismatchError(
                f"{tensor.name} holds a part of {part.parameter} that moves up, and is not numbered as that is: what "
                "its name becomes cannot be told"
            )
        new = iter(later)
        return _NUMBER.sub(lambda _: str(next(new)), tensor.name)


def _inside(stays: Tensor, first: int, step: int, length: int, where: str) -> Tensor:
    """Which of the positions `first`, `first + step`, … stay, as places among these; a row of them per set."""
    rows = stays if stays.ndim == 2 else stays[None]
    hit = (rows >= first) & (rows < first + step * length) & ((rows - first) % step == 0)
    counts = hit.sum(dim=-1)
    if len(set(counts.tolist())) > 1:
        raise PlanMismatchError(f"{where} would keep another number of positions of each set: that is no tensor")
    places = ((rows[hit] - first) // step).reshape(len(rows), int(counts[0]))
    return places if stays.ndim == 2 else places[0]
