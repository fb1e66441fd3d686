"""A walk by blocks gives what one pass gives."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from tests.walk.models import (
    Again,
    Batches,
    Beside,
    Common,
    Convolutional,
    Counting,
    Residual,
    Skipping,
    Telling,
    images,
    made,
    sentences,
    vectors,
)

LOSS = nn.functional.cross_entropy
BUDGETS = (0.85, 0.7, 0.6)


def agree(
    model: nn.Module, data: Any, loss_fn: Callable[[Any, Any], Tensor] | None = LOSS, segments: int = 3, **how: Any
) -> fk.Scores:
    """Scores, moments, means and plans of both are the same to the bit; what the walk gave. `how`: of `score`."""
    folder = how.pop("walk_folder", None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules, random = list(model.modules()), torch.get_rng_state()
    # two samples, as score() would take them
    first = {k: v[:2] for k, v in data[0].items() if k != "labels"} if isinstance(data[0], dict) else data[0][0][:2]
    how |= {"units": fk.trace(model, first, verify=False), "progress": False}
    whole = fk.score(model, data, loss_fn, **how)
    walked = fk.score(model, data, loss_fn, walk="blocks", walk_folder=folder, **how)
    assert walked.provenance["segments"] == segments
    assert set(whole.signals) == set(walked.signals)
    for name, values in whole.signals.items():
        assert all(np.array_equal(a, b) for a, b in zip(values, walked.signals[name], strict=True)), name
    assert list(whole.means) == [name for name in whole.means if name in walked.means]
    assert all(np.array_equal(mean, walked.means[name]) for name, mean in whole.means.items())
    assert set(whole.moments) == set(walked.moments)
    assert all(torch.equal(kept.gram, walked.moments[name].gram) for name, kept in whole.moments.items())
    assert whole.grids == walked.grids
    for key in ("samples", "batches", "classes", "no_classes", "loss", "keeps"):
        assert whole.provenance.get(key) == walked.provenance.get(key), key
    for budget in BUDGETS:
        plans = [scores.plan(keep_params=budget) for scores in (whole, walked)]
        assert [a.removed.tolist() for a in plans[0].axes] == [a.removed.tolist() for a in plans[1].axes]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    return walked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_units_before_in_and_behind_blocks(dtype: torch.dtype, tmp_path: Path) -> None:
    data = [(x.to(dtype), y) for x, y in vectors()]
    walked = agree(
        made(Residual).to(dtype), data, lambda z, y: LOSS(z.float(), y), gram=True, walk_folder=tmp_path / "between"
    )
    assert {group.name for group in walked.units.groups if group.frozen is None} >= {"enter", "blocks.1.up", "head"}
    assert os.listdir(tmp_path / "between") == []


@pytest.mark.parametrize(
    "options",
    [{"recipe": "paper"}, {"reduction": "per_class"}, {"class_of": False}, {"memory_budget": 10000}],
    ids=str,
)
def test_other_ways_of_scoring(options: dict[str, Any]) -> None:
    agree(made(Residual), vectors(), **options)


def test_moments_go_to_files_or_nowhere(tmp_path: Path) -> None:
    """Of each part of the model to a folder of its own."""
    model, data = made(Residual), vectors()
    how: dict[str, Any] = {"gram": True, "units": fk.trace(model, data[0][0][:2], verify=False), "progress": False}
    whole = fk.score(model, data, LOSS, **how)
    for where in (tmp_path / "moments", False):
        walked = fk.score(model, data, LOSS, walk="blocks", keep_moments=where, **how)
        assert all(
            np.array_equal(*pair) for pair in zip(*(s.signals["residual"] for s in (whole, walked)), strict=True)
        )
        assert set(walked.moments) == (set() if where is False else set(whole.moments))
        assert all(torch.equal(walked.moments[name].gram, whole.moments[name].gram) for name in walked.moments)
    assert {path.name for path in (tmp_path / "moments").iterdir()} == {
        *("before", "segment 0", "segment 1", "segment 2", "behind")
    }
    with pytest.raises(fk.InputError, match="files in it"):
        fk.score(model, data, LOSS, walk="blocks", keep_moments=tmp_path / "moments", **how)


def test_loaders_that_are_iterated_once_and_empty_batches() -> None:
    data = [*vectors(), (torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))]
    model = made(Residual)
    units = fk.trace(model, data[0][0][:2], verify=False)
    whole, walked = (
        fk.score(model, iter(data), LOSS, units=units, progress=False, walk=walk) for walk in ("whole", "blocks")
    )
    for name, values in whole.signals.items():
        assert all(np.array_equal(a, b) for a, b in zip(values, walked.signals[name], strict=True))
    assert walked.provenance["batches"] == 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_blocks_that_share_a_stream_are_one_segment(layout: torch.memory_format, tmp_path: Path) -> None:
    """Those of the second stream, and what reads it behind: the first three are segments of their own."""
    data = [(x.to(memory_format=layout), y) for x, y in images()]
    agree(made(Convolutional).to(memory_format=layout), data, gram=True, walk_folder=tmp_path)


class Modules(nn.Module):
    """torch's own encoder; samples along the second dimension, and attention that runs as another class."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(5, 16), nn.Linear(16, 3)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 20), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.enter(x).transpose(0, 1)).mean(0))


@pytest.mark.parametrize("budget", [None, 6000])
def test_samples_that_do_not_come_first(budget: int | None) -> None:
    """With a budget that holds the samples of neither all units nor those of one segment."""
    drawn = torch.Generator().manual_seed(0)
    data = [(torch.randn(n, 4, 5, generator=drawn), torch.arange(n) % 3) for n in (6, 4, 8)]
    walked = agree(made(Modules), data, gram=budget is None, memory_budget=budget)
    assert (walked.provenance["passes"] > 1) == (budget is not None)


def test_a_sequential_model() -> None:
    layers = [nn.Linear(5, 8), nn.ReLU(), *made(Residual).blocks, nn.LayerNorm(8), nn.Linear(8, 3)]
    agree(nn.Sequential(*layers).eval(), vectors(), segments=7)


def refused(model: nn.Module, data: Batches, said: str) -> None:
    units = fk.trace(model, data[0][0][:2], verify=False)
    held = list(model.modules())

    def loss(output: Any, targets: Tensor) -> Tensor:
        return LOSS(output[0] if isinstance(output, tuple) else output, targets)

    with pytest.raises(fk.InputError, match=said) as raised:
        fk.score(model, data, loss, units=units, walk="blocks", progress=False)
    assert "one pass" in str(raised.value)
    assert all(a is b for a, b in zip(held, model.modules(), strict=True))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (made(Skipping), "skip connection"),
        (made(Again), r"blocks\.0 is called 2 times"),
        (made(Beside), "beside what passes into blocks.0"),
        (made(Telling, False), "more of what units before the blocks make"),
        (made(Telling, True), "given more of earlier blocks"),
        (made(Common), "cannot be seen"),
        (made(Counting, False), "collected from the blocks"),
        (made(Counting, True), "collected from the blocks"),
        (made(Common, True), r"blocks\.1, run alone, raises KeyError"),
        (made(Residual, 1), "no module of a Sequential or ModuleList is given"),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, nn.Module) else "",
)
def test_what_is_no_row_of_blocks_is_refused(model: nn.Module, said: str) -> None:
    refused(model, vectors(), said)


def test_what_passes_between_blocks_in_their_modules_is_seen() -> None:
    with pytest.raises(fk.InputError, match="run by themselves"):
        fk.score(made(Common), vectors((1, 1, 1, 1)), LOSS, class_of=False, walk="blocks", progress=False)


def test_blocks_that_all_share_units_are_refused() -> None:
    layers = [nn.Conv2d(3, 4, 3, padding=1), *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    refused(model, images(), "share units that may be cut")


class Keeping(Residual):
    """Keeps something of every batch."""

    def entered(self, x: Tensor) -> Tensor:
        self.seen = x
        return super().entered(x)


def test_what_a_model_keeps_of_batches() -> None:
    assert agree(made(Keeping), vectors()).provenance["keeps"] == ["seen"]
    model = made(Keeping)
    model.enter = nn.Linear(5, 6).requires_grad_(False)
    model.head = model.norm  # nothing behind is scored
    model.out = nn.Linear(8, 3)
    assert agree(model, vectors()).provenance["keeps"] == ["seen"]


def test_prune_by_blocks() -> None:
    model, data = made(Residual), vectors()
    cuts = [fk.prune(model, data, LOSS, keep_params=0.6, progress=False, walk=walk)[0] for walk in ("whole", "blocks")]
    assert all(torch.equal(a, b) for a, b in zip(*(cut.state_dict().values() for cut in cuts), strict=True))


def test_a_folder_without_a_walk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fk.InputError, match="walk='blocks'"):
        fk.score(made(Residual), vectors(), LOSS, walk_folder=tmp_path)


def test_an_error_half_way_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model, data = made(Residual), vectors()
    held, modes = list(model.modules()), [p.requires_grad for p in model.parameters()]

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        if len(targets) == 4:
            raise ZeroDivisionError
        return LOSS(output, targets)

    with pytest.raises(ZeroDivisionError):
        fk.score(model, data, loss, walk="blocks", walk_folder=tmp_path, progress=False)
    assert all(a is b for a, b in zip(held, model.modules(), strict=True))
    assert modes == [p.requires_grad for p in model.parameters()]
    assert os.listdir(tmp_path) == []


class TestLanguageModels:
    """Left-padded batches of different length; a class for every token where lengths are equal."""

    def model(self, name: str) -> Any:
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
        shared = {**sizes, "num_key_value_heads": 2, "vocab_size": 64}
        of = {
            "Llama": shared,
            "Qwen3Moe": {**shared, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
                         "head_dim": 8},
            "Mixtral": {**shared, "num_local_experts": 4},
            "GPT2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64, "n_positions": 32},
            "Gemma3": {**shared, "head_dim": 8, "sliding_window": 4,
                       "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        }[name]  # fmt: skip
        config = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config"))(**of)
        kind = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
        return made(getattr(transformers, kind), config)

    @pytest.mark.parametrize("name", ["Llama", "Qwen3Moe", "Mixtral", "GPT2", "Gemma3"])
    def test_padded_batches(self, name: str, tmp_path: Path) -> None:
        agree(self.model(name), sentences(64), None, class_of=False, gram=True, walk_folder=tmp_path)

    def test_a_loss_of_routers(self) -> None:
        """It is made of what hooks within the blocks have seen."""
        model = self.model("Qwen3Moe")
        model.config.output_router_logits = True
        with pytest.raises(fk.InputError, match="router logits"):
            fk.score(model, sentences(64), class_of=False, walk="blocks", progress=False)

    @pytest.mark.parametrize("name", ["Llama", "Qwen3Moe"])
    def test_bfloat16(self, name: str) -> None:
        agree(self.model(name).to(torch.bfloat16), sentences(64), None, class_of=False, gram=True)

    def test_classes_of_tokens(self) -> None:
        data = sentences(64, ((3, 7), (2, 7), (4, 7)))
        agree(self.model("Llama"), data, None, class_of=lambda b: b["input_ids"] % 4, samples_per_class=8)

    def test_a_vision_transformer(self) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.ViTConfig(
            hidden_size=32, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, image_size=8,
            patch_size=4, num_labels=3,
        )  # fmt: skip
        model = made(transformers.ViTForImageClassification, config)
        agree(model, images(), lambda z, y: LOSS(z.logits, y), gram=True)
