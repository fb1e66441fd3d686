"""Kinds of units of which none can be cut, and what a plan and its report say of those that a cut leaves alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.artefacts import load_plan, load_scores, save_plan, save_scores
from tests.axes.harness import unit_map

Mix = Callable[[Tensor], Tensor]


class Attention(nn.Module):
    """`mix` is given what each head looks at, [B, H, N, N] or [B, H, N, D]."""

    def __init__(self, mix: Mix, manual: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.mix, self.manual = mix, manual

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (4, 2)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.manual:
            x = self.mix((q @ k.transpose(-1, -2)).softmax(-1)) @ v
        else:
            x = self.mix(F.scaled_dot_product_attention(q, k, v))
        return self.out(x.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, mix: Mix, manual: bool) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), Attention(mix, manual)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.down(self.up(x).relu())


class Images(nn.Module):
    def __init__(self, mix: Mix = lambda a: a, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(Block(mix, manual), Block(mix, manual))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def talking(a: Tensor) -> Tensor:
    return a * a.mean(1, keepdim=True)


X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3


@pytest.mark.parametrize("manual", [False, True])
def test_heads_that_cannot_go_are_said(manual: bool) -> None:
    units = unit_map(Images(talking, manual), [X])
    kept = [(k.module, k.reason) for k in units.kept if k.kind == "head"]
    assert kept == [(f"blocks.{i}.attention", f"mean in blocks.{i}.attention runs over it") for i in range(2)]
    assert [k.module for k in units.kept if k.kind == "channel"] == ["patches"]
    assert not any(k.kind == "head" for k in unit_map(Images(manual=manual), [X]).kept)


def test_a_report_says_which_kinds_were_left_alone_and_why(tmp_path) -> None:
    units = fk.trace(Images(talking, manual=True), X)
    heads = "no head {} cut: those of blocks.0.attention and 1 more stay: mean runs over it"
    assert heads.format("can be") in " ".join(units.explain().split())
    model, loss = Images(talking, manual=True), nn.CrossEntropyLoss()
    _, report = fk.prune(model, [(X, Y)], loss, units=units, keep_params=0.9, progress=False)
    channels, *_ = [line for line in report.choices["left_alone"] if "channel" in line]
    assert report.choices["left_alone"] == [heads.format("was"), channels]
    assert channels.startswith("no channel was cut: those of patches stay: layer norm runs over it in")
    assert heads.format("was") in " ".join(report.table().split())
    assert report.table().count("no head was cut") == 1
    save_plan(report.plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").result["left_alone"] == report.choices["left_alone"]


def test_heads_that_a_plan_spares_are_said() -> None:
    units = fk.trace(Images(), X)
    assert {g.kind for g in units.groups} == {"head", "neuron"}
    spared = "no head was cut: the plan spared those of blocks.0.attention.q and 1 more, which could be cut"
    assert spared in units.plan(keep_params=0.9, ignore="*.attention.q").result["left_alone"]
    assert not any("head" in line for line in units.plan(keep_params=0.8).result["left_alone"])
    assert "left_alone" not in units.plan(keep_params=1.0).result


def test_groups_that_failed_the_proof_are_said_with_the_failure() -> None:
    units = fk.trace(Images(), X)
    heads = {i: "pruned differs from masked by 3e-2" for i, g in enumerate(units.groups) if g.kind == "head"}
    said = units.freeze(heads).plan(keep_params=0.9).result["left_alone"]
    where = "blocks.0.attention.q and 1 more"
    assert f"no head was cut: those of {where} stay: pruned differs from masked by 3e-2" in said


def test_kept_units_are_part_of_files(tmp_path) -> None:
    scores = fk.score(Images(talking, manual=True), [(X, Y)], nn.CrossEntropyLoss(), progress=False)
    save_scores(scores, tmp_path / "scores.safetensors")
    assert load_scores(tmp_path / "scores.safetensors").units.kept == scores.units.kept != ()


def test_a_value_that_all_heads_have_is_no_head() -> None:
    """Where heads are mixed with each other, what can go is a value of each: as many positions as there are heads."""
    units = unit_map(Images(talking), [X])
    assert [(g.name, g.kind, g.units) for g in units.groups if "attention" in g.name] == [
        (f"blocks.{i}.attention.v", "neuron", 2) for i in range(2)
    ]


def test_groups_that_are_named_by_a_number_have_the_class_of_their_module(tmp_path) -> None:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2), nn.ReLU())
    model = nn.Sequential(OrderedDict(features=stem, flat=nn.Flatten(), head=nn.Linear(4 * 49, 3))).eval()
    units = fk.trace(model, torch.randn(2, 1, 8, 8))
    assert units.classes == {"features.0": "Conv2d", "features.2": "ConvTranspose2d"}
    scores = fk.score(model, [(torch.randn(6, 1, 8, 8), torch.arange(6) % 3)], nn.CrossEntropyLoss(), units=units)
    scores.save(tmp_path / "scores.safetensors")
    again = fk.Scores.load(tmp_path / "scores.safetensors")
    assert again.units.classes == units.classes
    plan = again.plan(drop={"channel": 1})
    assert [row["module"] for row in fk.summarise(plan, scores=again).groups] == ["Conv2d", "ConvTranspose2d"]
    assert not any("module" in row for row in fk.summarise(plan).groups), "a plan by itself does not know"
