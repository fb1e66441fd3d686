"""Tiny models of transformers with weights large enough that tokens do not repeat, as folders; what is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fairkern as fk

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
}
PROMPT = [5, 9, 77, 31, 2]
IDS = torch.randint(0, 128, (8, 24), generator=torch.Generator().manual_seed(3))


def built(config: Any) -> Any:
    """A causal language model of a configuration, in eval mode, its weights drawn by a seed."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=source)
            if value.ndim == 2:
                value.copy_(noise * (1.2 / value.shape[1] ** 0.5))
            else:
                value.copy_(noise * 0.3 if name.endswith("bias") else 1 + noise * 0.2)
    model.config.use_cache = False
    return model


def pruned(config: Any, folder: Path, **options: Any) -> nn.Module:
    """A model that was pruned and compensated, and its folder with the uncut model's configuration beside the plan."""
    model = built(config)
    small, report = fk.prune(model, [{"input_ids": IDS, "labels": IDS}], progress=False, **options)
    assert report.plan is not None
    fk.save_pruned(small, report.plan, folder)
    config.save_pretrained(folder)
    return small


def without(model: Any, folder: Path, *, attention: tuple[int, ...] = (), mlp: tuple[int, ...] = ()) -> None:
    """A folder in which parts of layers are not there but for their bias, and `model` made to add zero there."""
    from safetensors.torch import save_file

    gone = set()
    for index in attention:
        layer = model.model.layers[index]
        layer.self_attn.o_proj.weight.data.zero_()
        gone |= {
            f"model.layers.{index}.self_attn.{n}" for n, _ in layer.self_attn.named_parameters() if n != "o_proj.bias"
        }
        gone.add(f"model.layers.{index}.input_layernorm.weight")
    for index in mlp:
        layer = model.model.layers[index]
        layer.mlp.down_proj.weight.data.zero_()
        gone |= {f"model.layers.{index}.mlp.{n}" for n, _ in layer.mlp.named_parameters() if n != "down_proj.bias"}
    folder.mkdir()
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    parts = {"attention": attention, "mlp": mlp}
    skips = {i: [part for part, layers in parts.items() if i in layers] for i in {*attention, *mlp}}
    config["per_layer_config"] = {str(i): {"skip": skipped} for i, skipped in skips.items()}
    (folder / "config.json").write_text(json.dumps(config))
    kept = {name: value.detach().contiguous() for name, value in model.named_parameters() if name not in gone}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def logits_of(model: Any, tokens: list[int]) -> Tensor:
    """[n, vocabulary]."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def greedy(model: Any, tokens: list[int], count: int) -> list[int]:
    told = list(tokens)
    for _ in range(count):
        told.append(int(logits_of(model, told)[-1].argmax()))
    return told


def away(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((found - expected).abs().max() / expected.abs().max())
