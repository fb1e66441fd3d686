"""`python -m bench.intercepts`: what it costs a language model that compensation may add no bias."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import nn

import fairkern as fk
from bench._compare import bound
from bench.provenance import ROOT, write_results
from bench.quality import methods
from bench.quality.catalogue import ENTRIES
from bench.quality.nets.transformers import LanguageModel
from bench.quality.tasks.task import Task
from bench.quality.tasks.text import ALPHABET
from bench.quality.train import trained

RESULTS = ROOT / "bench" / "results" / "intercepts.json"
BARE = "lm-text without biases"
MODELS, SEEDS, KEEPS = ("lm-text", "moe-text", BARE), (0, 1, 2), (0.7, 0.5)
MOST = 0.005  # by which perplexity may be larger without


def main() -> int:
    """Both ways at every budget, by one plan, refitted layer after layer; perplexity on text that nothing has seen."""
    torch.set_num_threads(1)
    rows = []
    for name in MODELS:
        cuts = [{"seed": seed, **found} for seed in SEEDS for found in cuts_of(*_loaded(name, seed))]
        for keep in KEEPS:
            mine = [cut for cut in cuts if cut["keep"] == keep]
            cost = float(np.mean([cut["without"] / cut["with"] - 1 for cut in mine]))
            row = {"case": f"{name}, {keep:.0%} kept", "value": cost, **bound(cost, MOST, at_least=False)}
            rows.append({**row, "cuts": mine})
            print(f"{row['case']}: perplexity without intercepts {cost:+.2%}, {mine}", flush=True)
    write_results(RESULTS, rows=rows)
    return 0


def bare() -> nn.Module:
    """`lm-text` as language models are made today: no linear layer has a bias, and norms only scale."""
    model = LanguageModel(len(ALPHABET))
    for path, module in list(model.named_modules()):
        holder, name = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
        if isinstance(module, nn.Linear):
            module.bias = None
        elif isinstance(module, nn.LayerNorm):
            setattr(holder, name, nn.RMSNorm(module.normalized_shape))
    return model


def _loaded(name: str, seed: int) -> tuple[nn.Module, Task]:
    if name != BARE:
        return ENTRIES[name].load(seed)
    entry = ENTRIES["lm-text"]
    task = entry.task()
    return trained("lm-text-bare", bare, task, entry.schedule, seed), task


def cuts_of(model: nn.Module, task: Task) -> list[dict[str, Any]]:
    """Per budget the task's measure before the cut, and after it with the biases that compensation adds and without."""
    units = fk.trace(model, task.example)
    scores = fk.score(model, task.calibration, task.loss, units=units, class_of=False, gram=True, progress=False)
    found = []
    for keep in KEEPS:
        plan = methods.plan(scores, methods.DEFAULT, 1.0 - (1.0 - keep) * methods.cuttable(units))
        how: dict[str, Any] = {"compensate": "sequential", "scores": scores, "loader": task.calibration}
        with_, without = (fk.apply(model, plan, biases=biases, **how) for biases in (True, False))
        found.append(
            {
                "keep": keep,
                "before": task.measure(model),
                "with": task.measure(with_),
                "without": task.measure(without),
                "biases": sum(p.numel() for p in with_.parameters()) - sum(p.numel() for p in without.parameters()),
            }
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
