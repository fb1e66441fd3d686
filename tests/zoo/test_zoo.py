"""Models of the zoo are cut exactly, or frozen with a reason: some always, all of them with `pytest -m zoo`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import pytest

from bench.zoo.catalogue import entries
from bench.zoo.entry import Entry
from bench.zoo.reload import Reloader
from bench.zoo.row import examine

FAST = {
    "torchvision": {"mnasnet0_5", "shufflenet_v2_x0_5", "squeezenet1_1"},
    "timm": {"lcnet_050", "pit_ti_224"},
    "transformers": {
        "llama",
        "gemma2",
        "gpt2",
        "bloom",
        "falcon",
        "mamba",
        "mamba2",
        "t5",
        "whisper",
        "bart",
        "bert",
        "distilbert",
        "deberta-v2",
        "vit",
        "swin",
        "dinov2",
        "clip",
        "mixtral",
        "deepseek-v3",
        "switch",
        "gpt-oss",
        "yolos",
    },
    "x_transformers": {"decoder gated values"},
    "open_clip": {"residual network"},
    "rtdl_revisiting_models": {"ft-transformer"},
}

# What the zoo runs and no rule covers: what such an operator touches stays, and the map names it.
WITHOUT_RULE = {"aten.gather.default": "token types of BERT and RoBERTa, a buffer that no unit touches"}


def fast(entry: Entry) -> bool:
    return entry.library == "hand-written" or entry.name in FAST.get(entry.library, ())


def check(entry: Entry, reloader: Reloader) -> None:
    row = examine(entry, reloader)
    assert not row.problem
    assert row.exact
    assert row.reloads is not False
    assert row.prunable == row.groups or row.frozen
    assert set(asdict(row.uses).values()) <= {"", "yes"}
    assert set(row.unknown) <= set(WITHOUT_RULE), "write a rule, or list the operator with why there is none"


@pytest.fixture(scope="module")
def reloader() -> Iterator[Reloader]:
    with Reloader() as process:
        yield process


@pytest.mark.parametrize("entry", [e for e in entries() if fast(e)], ids=str)
def test_some(entry: Entry, reloader: Reloader) -> None:
    check(entry, reloader)


@pytest.mark.zoo
@pytest.mark.parametrize("entry", [e for e in entries() if not fast(e)], ids=str)
def test_the_rest(entry: Entry, reloader: Reloader) -> None:
    check(entry, reloader)
