"""Documents as batches for a model: tokenised, packed or padded, a part held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.hf.text import Document, Documents, held_out

UNSEEN = -100  # the label of what is not to be predicted
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """How documents become sequences.

    `packed`: one after the other, each closed by the end token, and cut into sequences of equal length. Else a sequence
    per document, cut at that length and padded on `padding`, the left or the right, with masks and positions of its own
    tokens.
    """

    length: int
    samples: int  # sequences to calibrate on, at most
    share: float  # of the documents, held out
    batch: int
    packed: bool
    padding: str


@dataclass(frozen=True)
class Data:
    """Batches to calibrate on and to measure on, and what they were made from."""

    calibration: list[Batch]
    held_out: list[Batch]
    said: Mapping[str, Any]


def batches(given: Documents, tokenizer: Any, layout: Layout, vocabulary: int) -> Data:
    """Batches of `input_ids` and `labels`, and of padded ones `attention_mask` and `position_ids`.

    Where documents are too few to give a sequence on either side, they are divided by place: the end is held out. Of
    packed sequences all are whole, but for one that is held out where there is no whole one.

    Raises InputError where the data does not fill one sequence, holds ids that the model has no row for, or needs
    padding that the tokenizer has no token for.
    """
    fill = _filler(tokenizer) if not layout.packed else 0
    parts = [_enough(side, tokenizer, layout) for side in held_out(given.documents, layout.share)]
    largest = max((max(ids) for side in parts for ids, _ in side if ids), default=0)
    if largest >= vocabulary:
        raise InputError(f"the data holds the token {largest}, and the model has {vocabulary} rows of embeddings")
    made = _sequences(parts, layout)
    if not all(made) and (layout.packed or len(given.documents) == 1):
        made = _sequences(_divided([*parts[0], *parts[1]], layout), layout)
    total = sum(len(ids) for side in parts for ids, _ in side)
    if not made[0] or not made[1]:
        raise InputError(
            f"the data is too short: {total} tokens in all, and one sequence to calibrate on takes {layout.length}, "
            "beside a few tokens that are held out; give more text or a smaller sequence="
        )
    sides = [_batched(side[: layout.samples], layout, fill) for side in made]
    said = {
        **given.said,
        "sequence": layout.length,
        "calibration": _said(made[0][: layout.samples]),
        "held_out": _said(made[1][: layout.samples]),
        "layout": "packed" if layout.packed else f"padded on the {layout.padding}",
    }
    return Data(sides[0], sides[1], said)


_Row = tuple[list[int], list[int]]  # ids and labels


def _said(rows: Sequence[_Row]) -> dict[str, int]:
    return {"sequences": len(rows), "tokens": sum(len(ids) for ids, _ in rows)}


def _enough(documents: Sequence[Document], tokenizer: Any, layout: Layout) -> list[_Row]:
    """The first documents, as many as fill all samples: a corpus is not tokenised for some of it."""
    end = None if tokenizer is None or not layout.packed else tokenizer.eos_token_id
    rows: list[_Row] = []
    filled = 0
    for document in documents:
        rows.append(_tokens(document, tokenizer, end))
        filled += len(rows[-1][0]) if layout.packed else layout.length * _predicts(rows[-1])
        if filled >= layout.samples * layout.length:
            break
    return rows


def _tokens(document: Document, tokenizer: Any, end: int | None) -> _Row:
    """A document's ids, and its labels."""
    if document.ids:
        ids, labels = list(document.ids), list(document.ids)
    else:
        ids, labels = [], []
        for number, (text, predicted) in enumerate(document.parts):
            found = tokenizer(text, add_special_tokens=not document.whole and number == 0)["input_ids"]
            ids += found
            labels += found if predicted else [UNSEEN] * len(found)
    if end is not None and ids and ids[-1] != end:
        ids, labels = [*ids, end], [*labels, end]
    return ids, labels


def _sequences(parts: Sequence[Sequence[_Row]], layout: Layout) -> list[list[_Row]]:
    """Of what is calibrated on, and of what is held out."""
    if layout.packed:
        return [_packed(parts[0], layout), _packed(parts[1], layout, short=True)]
    return [_rows(side, layout) for side in parts]


def _divided(side: Sequence[_Row], layout: Layout) -> list[list[_Row]]:
    """Documents in a row in two, at a whole number of sequences where there are several."""
    ids = [i for row, _ in side for i in row]
    labels = [i for _, row in side for i in row]
    at = len(ids) - max(2, round(layout.share * len(ids)))
    at = at // layout.length * layout.length if at > layout.length else at
    return [[(ids[:at], labels[:at])], [(ids[at:], labels[at:])]]


def _packed(side: Sequence[_Row], layout: Layout, short: bool = False) -> list[_Row]:
    """Whole sequences; `short`: one that is not, where there is no whole one."""
    ids = [i for row, _ in side for i in row]
    labels = [i for _, row in side for i in row]
    whole = len(ids) // layout.length
    cuts = [slice(k * layout.length, (k + 1) * layout.length) for k in range(whole)]
    if not cuts and short:
        cuts = [slice(None)]
    return [row for row in ((ids[cut], labels[cut]) for cut in cuts) if _predicts(row)]


def _rows(side: Sequence[_Row], layout: Layout) -> list[_Row]:
    rows = ((ids[: layout.length], labels[: layout.length]) for ids, labels in side)
    return [row for row in rows if _predicts(row)]


def _predicts(row: _Row) -> bool:
    """Whether a token of it is predicted from one before."""
    return any(label != UNSEEN for label in row[1][1:])


def _filler(tokenizer: Any) -> int:
    """The id that stands at padded places."""
    found = None if tokenizer is None else tokenizer.pad_token_id
    if found is None:
        raise InputError(
            "the tokenizer has no padding token, and sequences of different lengths are to be padded: leave them "
            "packed (without packing=False, --no-packing), or give it one (tokenizer.pad_token = tokenizer.eos_token; "
            'in the folder, "pad_token" in tokenizer_config.json, the same text as its "eos_token")'
        )
    return int(found)


def _batched(rows: Sequence[_Row], layout: Layout, fill: int) -> list[Batch]:
    if layout.packed:
        return [_stacked(rows[k : k + layout.batch]) for k in range(0, len(rows), layout.batch)]
    return [_padded(rows[k : k + layout.batch], layout.padding, fill) for k in range(0, len(rows), layout.batch)]


def _stacked(rows: Sequence[_Row]) -> Batch:
    return {"input_ids": _tensor([ids for ids, _ in rows]), "labels": _tensor([labels for _, labels in rows])}


def _padded(rows: Sequence[_Row], side: str, fill: int) -> Batch:
    width = max(len(ids) for ids, _ in rows)

    def beside(row: Sequence[int], value: int) -> list[int]:
        more = [value] * (width - len(row))
        return [*more, *row] if side == "left" else [*row, *more]

    mask = _tensor([beside([1] * len(ids), 0) for ids, _ in rows])
    return {
        "input_ids": _tensor([beside(ids, fill) for ids, _ in rows]),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        # nothing comes before the first token: behind padding on the left it would be predicted from that
        "labels": _tensor([beside([UNSEEN, *labels[1:]], UNSEEN) for _, labels in rows]),
    }


def _tensor(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device="cpu")
