"""Quantised tensors of checkpoints: cut where their scales and codes can be cut along, refused where not.

Known by names, dtypes and shapes: fp8 with a scale per tensor, row or block beside the weight, and mxfp4 in blocks of
32 of a row. A cut that leaves whole blocks leaves their codes and scales as they are; one that does not would have to
quantise anew, which is nobody's business here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairkern.compact.descriptors import Index
from fairkern.compact.stored import Piece, Stored, StoredCut
from fairkern.errors import InputError, PlanMismatchError

_PACKED = {
    ".qweight": "AWQ or GPTQ, int4 packs",
    ".qzeros": "AWQ or GPTQ, int4 packs",
    ".g_idx": "GPTQ, int4 packs",
    ".weight_packed": "compressed-tensors, int4 packs",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
}
_SCALES = ("_scale_inv", "_scale")
_FP8 = {torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz}
_BLOCKS, _OF_BLOCKS = "_blocks", "_scales"  # of mxfp4: codes [..., rows, blocks, 16], and a scale for each block
QUANTISED = (*_SCALES, _BLOCKS, _OF_BLOCKS)
"""What the name of a tensor of scales or codes ends with, behind that of the weight."""

_CODES, _BLOCK = 16, 32  # bytes of a block, and the values in it


def refuse_packed(shapes: Mapping[str, Any], config: Mapping[str, Any], path: Any) -> None:
    """Raises InputError for a checkpoint whose codes hold several weights each across what a cut would tear apart."""
    method = config.get("quantization_config")
    said = f" (config.json: {method.get('quant_method')})" if isinstance(method, dict) else ""
    for name in shapes:
        for ending, what in _PACKED.items():
            if name.endswith(ending):
                raise InputError(
                    f"{path} holds {name}: {what}{said}, which cannot be cut; take the checkpoint that it was "
                    "quantised from, or save it dequantised, cut that, and quantise what is left"
                )


class Quantised:
    """The cuts of a checkpoint's quantised tensors.

    Args:
        shapes, dtypes: of all tensors of the files.
        block: rows and columns of a block of fp8, where the configuration says (`weight_block_size`).
    """

    def __init__(
        self,
        stored: Stored,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, torch.dtype],
        block: Sequence[int] | None,
    ) -> None:
        self._stored, self._shapes, self._dtypes, self._block = stored, shapes, dtypes, block

    def weight_of(self, name: str) -> str | None:
        """The weight whose scales, or the parameter whose codes or scales, a tensor holds; None for another tensor."""
        for ending in _SCALES:
            weight = name.removesuffix(ending)
            if weight != name and self._dtypes.get(weight) in _FP8:
                return weight
        for ending, other in ((_BLOCKS, _OF_BLOCKS), (_OF_BLOCKS, _BLOCKS)):
            parameter = name.removesuffix(ending)
            pair = (self._dtypes.get(f"{parameter}{end}") for end in (ending, other))
            if parameter != name and all(dtype == torch.uint8 for dtype in pair):
                return parameter
        return None

    def cut(self, name: str) -> StoredCut | None:
        """What is left of a tensor of scales or codes; None where nothing is.

        Raises PlanMismatchError (no weight that the plan knows, other shapes), InputError (a block of which a part
        stays; says how many positions make one).
        """
        weight = self.weight_of(name)
        assert weight is not None
        tensor = self._stored.tensor(weight)
        if tensor is None:
            raise PlanMismatchError(f"the checkpoint has {name}, and the plan knows no {weight}")
        cut = self._stored.cut(tensor)
        if cut is None:
            return None
        if len(tensor.parts) > 1:
            raise InputError(f"{weight} is quantised and made of {len(tensor.parts)} parameters: it cannot be cut")
        if weight in self._shapes:
            return self._scales(name, weight, cut)
        return self._codes(name, weight, cut)

    def _scales(self, name: str, weight: str, cut: StoredCut) -> StoredCut:
        """A scale for each block of a weight: one for all, one per row, or one per block."""
        shape, whole = self._shapes[name], cut.shape
        if len(shape) != len(whole):
            if int(torch.Size(shape).numel()) == 1:
                return _kept(self._named(name, weight, cut), shape)
            raise PlanMismatchError(f"{name} has the shape {shape}, the weight {whole}: not scales of it")
        piece, index = cut.pieces[0], {}
        for dim, at in piece.index.items():
            if shape[dim] == whole[dim]:
                index[dim] = at
            elif shape[dim] > 1:
                size = self._size(name, dim, shape, whole)
                index[dim] = _blocks(at, whole[dim], size, f"{weight} dim {dim}")
        return _kept(self._named(name, weight, cut), shape, index, piece.rows)

    def _size(self, name: str, dim: int, shape: Sequence[int], whole: Sequence[int]) -> int:
        """Positions of a block along a dimension."""
        offset = dim - len(whole) + 2  # blocks are of the last two dimensions
        said = None if self._block is None or offset < 0 else int(self._block[offset])
        size = said or -(-whole[dim] // shape[dim])
        if -(-whole[dim] // size) != shape[dim] or (said is None and whole[dim] % shape[dim]):
            raise PlanMismatchError(
                f"{name} has {shape[dim]} scales for {whole[dim]} positions of dim {dim}: how large a block is cannot "
                "be told (weight_block_size in config.json)"
            )
        return size

    def _codes(self, name: str, parameter: str, cut: StoredCut) -> StoredCut:
        """Codes or scales [experts, rows, blocks(, 16)] of a parameter [experts, columns, rows]."""
        codes, whole = name.endswith(_BLOCKS), cut.shape
        expected = (*whole[:-2], whole[-1], whole[-2] // _BLOCK, *((_CODES,) if codes else ()))
        if self._shapes[name] != expected or whole[-2] % _BLOCK:
            raise PlanMismatchError(f"{name} has the shape {self._shapes[name]}; {parameter} would have {expected}")
        last, index = len(whole) - 1, {}
        for dim, at in cut.pieces[0].index.items():
            if dim == last - 1:
                index[last] = _blocks(at, whole[dim], _BLOCK, f"{parameter} dim {dim}")
            else:
                index[last - 1 if dim == last else dim] = at
        return _kept(self._named(name, parameter, cut), expected, index, cut.pieces[0].rows)

    def _named(self, name: str, weight: str, cut: StoredCut) -> str:
        return f"{cut.name}{name[len(weight) :]}"


def _kept(name: str, shape: tuple[int, ...], index: Index | None = None, rows: int = 0) -> StoredCut:
    return StoredCut(name, shape, 0, (Piece(slice(0, shape[0] if shape else 1, 1), index or {}, rows),))


def _blocks(stays: Tensor, length: int, size: int, where: str) -> Tensor:
    """Blocks of which all positions stay, of positions of which whole blocks stay."""
    rows = stays if stays.ndim == 2 else stays[None]
    found = [torch.unique(row // size) for row in rows]
    for row, blocks in zip(rows, found, strict=True):
        counted = torch.clamp(length - blocks * size, max=size).sum()
        if int(counted) != len(row):
            raise InputError(
                f"{where} is quantised in blocks of {size} positions, and the plan keeps a part of some: {len(row)} of "
                f"{length} positions. What goes has to be whole blocks: experts, layers, heads of a multiple of {size} "
                f"positions, or neighbours from a multiple of {size} to another; else dequantise, and cut that"
            )
    if len({len(blocks) for blocks in found}) > 1:
        raise PlanMismatchError(f"{where} would keep another number of blocks of each set: that is no tensor")
    return torch.stack(found) if stays.ndim == 2 else found[0]
