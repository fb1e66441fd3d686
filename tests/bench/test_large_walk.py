"""The benchmark of a model that is not there as a whole, at a small scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
from bench.large_walk import SIBLING, Asked, Watched, compared, make_folder, measured
from bench.shipping.families import write_text

SMALL = {**SIBLING, "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96}
ASKED = Asked(sequence=32, samples=6, threads=1)


def test_the_folder_is_one_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    weights = make_folder(tmp_path / "model", SMALL, largest=10**5)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    assert sum(p.nbytes for p in model.parameters()) == weights
    assert model.dtype is torch.bfloat16


def test_stages_have_their_peaks() -> None:
    looks = [
        {"clock": at, "VmSize": size, "RssAnon": size} for at, size in ((10.5, 7), (12.0, 9), (12.5, 8), (13.5, 6))
    ]
    watched = Watched(0, "", {"clock": 10.0, "VmSize": 5}, 14.0, looks)
    assert watched.stages({"score": 2.0, "cut": 1.0}) == [
        {"stage": "score", "seconds": 2.0, "peak_bytes": 4, "peak_resident_bytes": 9},
        {"stage": "cut", "seconds": 1.0, "peak_bytes": 1, "peak_resident_bytes": 6},
    ]


def test_a_small_model_in_a_small_space(tmp_path: Path) -> None:
    row = measured(tmp_path, SMALL, write_text(tmp_path / "text.txt"), ASKED, 2**29)
    assert row["peak_bytes"] <= row["limit_bytes"] == 2**29
    assert [stage["stage"] for stage in row["stages"]] == ["load", "trace", "score", "plan", "cut"]
    assert row["opened"] == {"finite": True, "missing_keys": 0, "unexpected_keys": 0, "mismatched_keys": 0}
    assert row["params_after"] < row["params"]
    assert row["choices"]["walk"]["walk"] == "blocks"
    assert row["choices"]["proven"] is True
    assert row["ordinary"]["seconds"] > 0


def test_by_blocks_as_by_the_whole(tmp_path: Path) -> None:
    found = compared(tmp_path / "small", SMALL, write_text(tmp_path / "text.txt"), ASKED)
    assert found["plans_equal"]
    assert found["names_equal"]
    assert found["equal"] == found["tensors"]
