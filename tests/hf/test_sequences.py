"""Documents as batches: packed and padded, and what does not fill one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from fairkern import InputError
from fairkern.hf.sequences import UNSEEN, Data, Layout, batches
from fairkern.hf.text import read_documents
from tests.hf.words import Words


def made(data: Any, tokenizer: Any = None, vocabulary: int = 1000, **options: Any) -> Data:
    layout = {"length": 4, "samples": 100, "share": 0.2, "batch": 3, "packed": True, "padding": "right", **options}
    return batches(read_documents(data, tokenizer), tokenizer, Layout(**layout), vocabulary)


TEXTS = [f"text{i} " + " ".join(f"word{j}" for j in range(i % 7 + 2)) for i in range(30)]


def test_packed_sequences_are_the_documents_in_a_row() -> None:
    data = made(TEXTS, Words())
    assert {tuple(batch) for batch in data.calibration} == {("input_ids", "labels")}
    rows = torch.cat([batch["input_ids"] for batch in data.calibration])
    assert rows.shape[1] == 4
    assert all(len(batch["input_ids"]) == 3 for batch in data.calibration[:-1])
    words = Words()
    everything = [[*words(text)["input_ids"], 1] for text in TEXTS]
    flat = rows.flatten().tolist()
    begins = [i for i, token in enumerate(flat) if token == 0]
    for at, end in itertools.pairwise(begins):
        assert len(flat[at:end]) in {len(ids) for ids in everything}
        assert flat[end - 1] == 1
    assert torch.equal(rows, torch.cat([batch["labels"] for batch in data.calibration]))


def test_an_end_is_not_said_twice() -> None:
    data = made([[5, 6, 7, 1], [8, 9, 10, 1], [11, 12, 13, 1], [14, 15, 16, 1]], Words())
    ids = torch.cat([batch["input_ids"] for batch in data.calibration]).flatten().tolist()
    assert [1, 1] not in [ids[i : i + 2] for i in range(len(ids))]


def test_samples_bound_both_sides() -> None:
    data = made(TEXTS * 4, Words(), samples=5)
    assert sum(len(batch["input_ids"]) for batch in data.calibration) == 5
    assert data.said["calibration"] == {"sequences": 5, "tokens": 20}
    assert data.said["held_out"]["sequences"] <= 5


def test_a_prompt_is_not_predicted() -> None:
    entries = [{"prompt": f"ask {i} please", "completion": f"yes {i}"} for i in range(20)]
    data = made(entries, Words(), packed=False, length=8)
    for batch in (*data.calibration, *data.held_out):
        assert (batch["labels"][:, :4] == UNSEEN).all()
        assert torch.equal(batch["labels"][:, 4:], batch["input_ids"][:, 4:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side: str) -> None:
    data = made(TEXTS, Words(), packed=False, padding=side, length=6)
    padded = 0
    for batch in data.calibration:
        for ids, mask, labels, positions in zip(*(batch[n] for n in NAMES), strict=True):
            count = int(mask.sum())
            real = slice(len(mask) - count, None) if side == "left" else slice(0, count)
            assert mask[real].all()
            assert ids[real][0] == 0
            assert torch.equal(positions[real], torch.arange(count))
            assert torch.equal(labels[real][1:], ids[real][1:])
            assert labels[real][0] == UNSEEN
            beside = mask == 0
            assert (ids[beside] == 2).all()
            assert (labels[beside] == UNSEEN).all()
            padded += int(beside.sum())
    assert padded


NAMES = ("input_ids", "attention_mask", "labels", "position_ids")


def test_one_document_is_divided_by_place() -> None:
    data = made([list(range(3, 103))], length=8, batch=100)
    (calibrated,), (measured,) = data.calibration, data.held_out
    assert calibrated["input_ids"].flatten().tolist() == list(range(3, 83))
    assert measured["input_ids"].flatten().tolist() == list(range(83, 99))  # 20 held out, in whole sequences


def test_what_is_held_out_may_be_short() -> None:
    data = made([list(range(3, 53)), [60, 61, 62]], length=16)
    sizes = sorted((data.calibration[0]["input_ids"].shape[1], data.held_out[0]["input_ids"].shape[1]))
    assert sizes in ([3, 16], [16, 16])


def test_data_that_fills_no_sequence() -> None:
    with pytest.raises(InputError, match="too short: 13 tokens in all, and one sequence to calibrate on takes 64"):
        made(["one two three", "four five six", "seven"], Words(), length=64)
    with pytest.raises(InputError, match="too short"):
        made(["one"], Words(), length=2)


def test_no_padding_token() -> None:
    with pytest.raises(InputError, match=r'has no padding token.*leave them packed.*"pad_token" in tokenizer_config'):
        made(TEXTS, Words(pad=None), packed=False)
    assert made(TEXTS, Words(pad=None)).calibration


def test_tokens_that_the_model_has_no_row_for() -> None:
    with pytest.raises(InputError, match="holds the token 99, and the model has 64 rows"):
        made([[3, 4, 5], [99, 4, 5]], vocabulary=64)


def test_the_same_data_makes_the_same_batches() -> None:
    first, second = made(TEXTS, Words()), made(TEXTS, Words())
    for one, other in zip(first.calibration, second.calibration, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
