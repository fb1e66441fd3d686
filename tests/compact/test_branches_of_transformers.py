"""Blocks of transformers' own models: caches, generation, and the configuration that counts what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import NONE

transformers = pytest.importorskip("transformers")

SIZES = dict.fromkeys(("num_attention_heads", "num_hidden_layers"), 4) | {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def made(kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **options)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def ids() -> Tensor:
    return torch.randint(3, 40, (2, 6), generator=torch.Generator().manual_seed(0))


def logits(model: nn.Module, cache: str) -> list[Tensor]:
    given = {"cache_implementation": "static"} if cache == "static" else {}
    made = model.generate(
        input_ids=ids(), attention_mask=torch.ones_like(ids()), max_new_tokens=5, min_new_tokens=5, do_sample=False,
        return_dict_in_generate=True, output_logits=True, **given,
    )  # fmt: skip
    return list(made.logits)


def without(units: fk.UnitMap, gone: list[list[int]]) -> fk.Plan:
    branches = iter(gone)
    removed = [
        np.array(next(branches), dtype=np.int64) if g in units.branched else NONE for g in range(len(units.groups))
    ]
    return fk.Plan.of(build(units, removed))


LLAMA = ("Llama", {}, [[0, 2], [0]])
SLIDING = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"] * 2}
QWEN = ("Qwen2", {**SLIDING, "use_sliding_window": True}, [[0], [0, 1], [1]])  # near, MLPs, far


@pytest.mark.parametrize(("kind", "options", "gone"), [LLAMA, QWEN], ids=["Llama", "layers of two kinds"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_goes_by_caches_that_have_moved_up(
    kind: str, options: dict[str, Any], gone: Any, cache: str
) -> None:
    model = made(kind, **options)
    units = fk.trace(model, {"input_ids": ids()}, depth=True)
    assert all(units.groups[g].frozen is None for g in units.branched), units.explain()
    plan = without(units, gone)
    small = fk.apply(model, plan)
    assert small.config.num_hidden_layers == len(small.model.layers) == 3
    with plan.masked(model):
        expected = logits(model, cache)
    for a, b in zip(expected, logits(small, cache), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_whole_blocks_are_what_transformers_loads(tmp_path: Path) -> None:
    model = made("Llama")
    data = [{"input_ids": ids(), "labels": ids()}] * 2
    units = fk.trace(model, {"input_ids": ids()}, depth=True)
    scores = fk.score(model, data, units=units, class_of=False, gram=True, progress=False)
    plan = scores.plan(drop={"branch": 1}, serve="hf")
    assert plan.result["serves"]["hf"] == "yes"
    (removed,) = {tuple(group.removed.tolist()) for group in plan.groups if group.kind == "branch"}
    together = np.sum([scores.signals["residual"][g] for g in units.branched], axis=0)
    assert removed == (int(together.argmin()),)
    small = fk.apply(model, plan)
    small.save_pretrained(tmp_path / "small")
    again, said = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    torch.testing.assert_close(again.eval()(ids()).logits, small(ids()).logits)
    assert without(units, [[0], [1]]).result["serves"]["hf"].startswith("every layer is built with all")
