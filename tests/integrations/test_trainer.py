"""A cut model in transformers' Trainer: its checkpoints are folders that transformers opens, and runs can go on."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import fairkern as fk

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


ROWS = torch.randint(0, 64, (16, 12), generator=torch.Generator().manual_seed(1))
DATA = [{"input_ids": row, "labels": row} for row in ROWS]


def run(model: nn.Module, folder: Path, resumed: Path | None = None) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=4, learning_rate=1e-3, save_strategy="steps",
        save_steps=2, logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, seed=0,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=DATA)
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    return trainer


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def cut() -> tuple[nn.Module, fk.Plan]:
    batches = [{"input_ids": ROWS[k : k + 8], "labels": ROWS[k : k + 8]} for k in (0, 8)]
    small, report = fk.prune(llama().eval(), batches, keep_params=0.7, serve="hf", progress=False)
    assert report.plan is not None
    return small, report.plan


def test_a_run_s_checkpoints_are_opened_and_gone_on_from(cut: tuple[nn.Module, fk.Plan], tmp_path: Path) -> None:
    small = copy.deepcopy(cut[0])
    before = {name: tuple(p.shape) for name, p in small.named_parameters()}
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in llama().parameters())
    whole = run(small, tmp_path / "whole")
    trained = whole.model
    assert {name: tuple(p.shape) for name, p in trained.named_parameters()} == before
    opened, told = LlamaForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-4", output_loading_info=True)
    assert not told["missing_keys"] | told["unexpected_keys"]
    assert same(opened, trained)
    half = LlamaForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-2")
    again = run(half, tmp_path / "again", resumed=tmp_path / "whole" / "checkpoint-2")
    assert same(again.model, trained)
    for state, other in zip(
        whole.optimizer.state_dict()["state"].values(), again.optimizer.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(torch.as_tensor(state[key]), torch.as_tensor(other[key])) for key in state)


def test_what_is_trained_can_be_saved_as_a_pruned_folder(cut: tuple[nn.Module, fk.Plan], tmp_path: Path) -> None:
    small, plan = cut
    trained = run(copy.deepcopy(small), tmp_path / "run").model
    fk.save_pruned(trained, plan, tmp_path / "folder")
    assert same(fk.load_pruned(llama(), tmp_path / "folder"), trained)
