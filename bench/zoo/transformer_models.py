"""The zoo's transformers: tiny, randomly initialised, with default configurations but for their sizes."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from bench.zoo.entry import Batches, Entry, unlabelled
from bench.zoo.transformer_table import TRANSFORMERS

_INPUTS: dict[str, Callable[[], tuple[str, torch.Tensor]]] = {
    "ids": lambda: ("input_ids", torch.randint(3, 60, (2, 12))),
    "decoder": lambda: ("decoder_input_ids", torch.randint(3, 60, (2, 5))),
    "pixels16": lambda: ("pixel_values", torch.randn(2, 3, 16, 16)),
    "pixels32": lambda: ("pixel_values", torch.randn(2, 3, 32, 32)),
    "pixels64": lambda: ("pixel_values", torch.randn(2, 3, 64, 64)),
    "video": lambda: ("pixel_values", torch.randn(2, 4, 3, 32, 32)),
    "mel": lambda: ("input_features", torch.randn(2, 8, 40)),
    "wave": lambda: ("input_values", torch.randn(2, 400)),
    "spectrogram": lambda: ("input_values", torch.randn(2, 16, 16)),
    "series": lambda: ("past_values", torch.randn(2, 32, 2)),
}
_TASKS = (
    "ForCausalLM", "ForConditionalGeneration", "MTModel", "ForCTC", "ForSemanticSegmentation", "ForObjectDetection",
    "Classification",
)  # fmt: skip


def models() -> Iterator[Entry]:
    transformers = importlib.import_module("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for name, (kind, *_) in TRANSFORMERS.items():
        made = getattr(transformers, kind, None)
        if made is not None:
            yield Entry(
                "transformers",
                name,
                lambda name=name, t=transformers: _transformer(t, name),
                partial(_with_labels, next((task for task in _TASKS if kind.endswith(task)), "")),
                _generate if made.can_generate() else None,
            )


def _transformer(transformers: Any, name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model, config, options, kinds = TRANSFORMERS[name]
    built = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    if hasattr(built, "set_experts_implementation"):
        built.set_experts_implementation("eager")  # the grouped product knows no float64
    return built, dict(_INPUTS[kind]() for kind in kinds.split())


def _with_labels(task: str, inputs: dict[str, torch.Tensor]) -> Batches:
    """Two batches with labels, as the data of the task has them; the model has the loss."""
    samples = len(next(iter(inputs.values())))
    labels: Any
    if task in ("ForCausalLM", "ForConditionalGeneration", "MTModel"):
        labels = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        labels = torch.randint(3, 60, (samples, 5)) if labels is None else labels
    elif task == "ForCTC":
        labels = torch.randint(3, 30, (samples, 4))
    elif task == "ForSemanticSegmentation":
        labels = torch.randint(0, 5, (samples, *inputs["pixel_values"].shape[2:]))
    elif task == "ForObjectDetection":
        boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.3]])
        labels = [{"class_labels": torch.tensor([1, 2]), "boxes": boxes}] * samples
    elif task == "Classification":
        labels = torch.arange(samples) % 2
    else:
        return unlabelled(inputs)
    return [{**inputs, "labels": labels}] * 2, None


def _generate(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    """Three tokens, one after the other, with the cache that the model makes."""
    given = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    return model.generate(**given, max_new_tokens=3, do_sample=False, use_cache=True, pad_token_id=0)  # type: ignore[operator]
