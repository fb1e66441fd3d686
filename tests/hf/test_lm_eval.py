"""A pruned folder under lm-eval: its adapter for transformers runs on it, and finds what is found here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import fairkern as fk
from bench.shipping.families import documents

lm_eval = pytest.importorskip("lm_eval")
transformers = pytest.importorskip("transformers")

TASKS = """
- task: docstrings
  output_type: loglikelihood_rolling
  doc_to_text: ""
  doc_to_target: "{{text}}"
  metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
- task: last_words
  output_type: loglikelihood
  doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
  doc_to_target: "{{' ' + text.split(' ')[-1]}}"
  metric_list:
    - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
    - {metric: acc, aggregation: mean, higher_is_better: true}
- task: continuations
  output_type: generate_until
  doc_to_text: "{{text[:40]}}"
  doc_to_target: "{{text[40:60]}}"
  generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 6, do_sample: false}
  metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of tasks over a few docstrings; nothing is downloaded."""
    yaml = pytest.importorskip("yaml")
    texts = [text[:200] for text in documents() if " " in text[:200].strip()][:12]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    folder = tmp_path / "tasks"
    folder.mkdir()
    for task in yaml.safe_load(TASKS):
        task |= {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
            "test_split": "test",
            "metadata": {"version": 1.0},
        }
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    return folder


def logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    """Of every token but the first, given those before."""
    with torch.no_grad():
        rows = model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return -F.nll_loss(rows, torch.tensor(ids[1:]), reduction="none")


@pytest.mark.slow
def test_a_pruned_folder(made: Path, text: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    out = tmp_path / "out"
    fk.hf.prune(made, text, out=out, keep_params=0.7, sequence=64, samples=16, progress=False, device="cpu")
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(out), "dtype": "float32"},
        tasks=["docstrings", "last_words", "continuations"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        log_samples=True,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    total, length = 0.0, 0
    for sample in found["samples"]["docstrings"]:
        whole = sample["doc"]["text"]
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        total += float(logprobs(model, [tokenizer.bos_token_id, *ids]).sum())
        length += len(whole.encode())
    assert found["results"]["docstrings"]["bits_per_byte,none"] == pytest.approx(
        -total / length / math.log(2), rel=1e-4
    )
    assert found["results"]["last_words"]["perplexity,none"] > 1
    assert len(found["samples"]["continuations"]) == 12
