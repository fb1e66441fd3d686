"""The benchmark of cutting checkpoints at a small size: its plan is one, and both of its sides do what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fairkern as fk
from bench._compaction import copy, plan_for, settle, shapes, write_checkpoint
from bench._cutting import halved, once_ready, passes, sequential, stepping
from bench.models import images
from bench.provenance import ROOT
from fairkern.artefacts.shards import open_shards


def test_half_of_a_small_checkpoint(tmp_path: Path) -> None:
    of = shapes(width=256, inner=24, layers=2, experts=3, words=50)
    write_checkpoint(tmp_path / "in", of, 300_000)
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 2
    plan = plan_for(of)
    plan.save(tmp_path / "plan.json")
    settle(tmp_path / "in", cached=True)
    settle(tmp_path / "in", cached=False)
    copy(tmp_path / "in", tmp_path / "copy")
    for path in (tmp_path / "in").iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()
    command = [
        sys.executable,
        "-m",
        "bench._compaction",
        *(str(tmp_path / name) for name in ("in", "plan.json", "out")),
    ]
    done = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert done["peak_bytes"] > done["bytes"] > done["left"]
    with open_shards(tmp_path / "in") as before, open_shards(tmp_path / "out") as after:
        assert after.shapes["model.layers.0.self_attn.o_proj.weight"] == (256, 128)
        assert after.shapes["model.layers.1.mlp.experts.2.down_proj.weight"] == (256, 12)
        up = "model.layers.1.mlp.experts.1.up_proj.weight"
        gone = next(a.removed for a in plan.axes if a.axis.tensor.endswith("experts.down_proj"))[1]
        stays = [row for row in range(24) if row not in gone]
        assert torch.equal(after.read(up), before.read(up)[stays])
    assert fk.Plan.load(tmp_path / "out" / "plan.json").files == plan.files


def test_time_is_told_apart_and_rivals_are_made_ready() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    x, y = images(8, 2, 3, 8)
    loader = list(zip(x.split(4), y.split(4), strict=True))
    scores = fk.score(model, loader, nn.functional.cross_entropy, gram=True, progress=False)
    spent = sequential(model, scores.plan(keep_params=0.5), scores, loader)
    assert set(spent) == {"all", "solves", "sums"}
    assert 0 < spent["solves"] + spent["sums"] < spent["all"]
    assert passes(model, loader) > 0
    assert fk.apply(model, halved(model, x[:1]))[0].out_channels == 4
    called = []
    assert once_ready(lambda: lambda: called.append(1)) > 0
    assert called == [1]
    pytest.importorskip("torch_pruning")
    stepping(model, x[:1])()
    assert model[0].out_channels == 4
