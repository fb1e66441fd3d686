"""Prune a language model to half its parameters, then let transformers' Trainer distil the uncut one into it.

    python examples/heal_trainer.py [--keep 0.5] [--steps 150] [--teacher-steps 400] [--out FOLDER]

The model is a tiny Llama over bytes, trained here for a moment on docstrings of the standard library, so nothing is
downloaded. Needs `pip install transformers accelerate`; less than a minute on one core. `fk.heal` does the same without
transformers; a Trainer brings its own logging, checkpoints, and several devices.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import fairkern as fk

MODULES = ("argparse", "collections", "datetime", "decimal", "difflib", "inspect", "json", "random", "statistics")
LENGTH = 64  # bytes of a sequence
BATCH = 16


class Distiller(Trainer):
    """A Trainer whose loss is the divergence of the model's next bytes from the teacher's."""

    def __init__(self, *args: Any, teacher: torch.nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher.to(self.args.device).eval()
        self.model_accepts_loss_kwargs = False  # ours is a mean already: Trainer divides it by the accumulated batches

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        outputs = model(**inputs)
        with torch.no_grad():
            target = self.teacher(**inputs).logits
        each = F.kl_div(
            outputs.logits[:, :-1].log_softmax(-1), target[:, :-1].log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        counted = inputs["labels"][:, 1:] >= 0  # no padding
        loss = each[counted].mean()
        return (loss, outputs) if return_outputs else loss


def docstrings() -> Iterator[str]:
    for name in MODULES:
        for held in vars(importlib.import_module(name)).values():
            text = inspect.getdoc(held) if callable(held) else None
            if text:
                yield text


def sequences() -> list[dict[str, Tensor]]:
    data = torch.tensor(list("\n\n".join(dict.fromkeys(docstrings())).encode()))
    rows = data[: len(data) // LENGTH * LENGTH].reshape(-1, LENGTH)
    return [{"input_ids": row, "labels": row} for row in rows]


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def asked(folder: str, steps: int, rate: float) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        per_device_train_batch_size=BATCH,
        save_strategy="no",
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
    )


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, data: Sequence[dict[str, Tensor]]) -> float:
    """Per byte, of what no step has seen."""
    rows = torch.stack([sample["input_ids"] for sample in data]).to(model.device)
    return float(model.eval()(input_ids=rows, labels=rows).loss.exp())


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", type=float, default=0.5, help="share of the parameters that stays")
    parser.add_argument("--steps", type=int, default=150, help="of distillation")
    parser.add_argument("--teacher-steps", type=int, default=400)
    parser.add_argument("--out", help="write the healed model there, as transformers reads it")
    chosen = parser.parse_args(arguments)

    data = sequences()
    data, held_out = [row for k, row in enumerate(data) if k % 10], data[::10]
    with tempfile.TemporaryDirectory() as folder:
        model = llama()
        Trainer(model, asked(folder, chosen.teacher_steps, 3e-3), train_dataset=data).train()
        found = {"before": perplexity(model, held_out)}

        batches = [
            {key: torch.stack([sample[key] for sample in data[k : k + BATCH]]) for key in ("input_ids", "labels")}
            for k in range(0, 8 * BATCH, BATCH)
        ]
        small, report = fk.prune(model.eval(), batches, keep_params=chosen.keep, serve="hf", progress=False)
        found["cut"] = perplexity(small, held_out)

        Distiller(small, asked(folder, chosen.steps, 1e-3), train_dataset=data, teacher=model).train()
        found["healed"] = perplexity(small, held_out)
    if chosen.out is not None:
        small.save_pretrained(chosen.out)

    print(f"parameters kept    {report.after['params'] / report.before['params']:.1%}")
    print(f"perplexity before  {found['before']:.3f} per byte")
    print(f"cut, one shot      {found['cut']:.3f}")
    print(f"healed             {found['healed']:.3f} after {chosen.steps} steps")
    return found


if __name__ == "__main__":
    main()
