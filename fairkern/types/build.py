"""How an unpruned architecture is made, as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Build:
    """Whom to call for the unpruned architecture, and what tells whether that is still what was cut.

    `name` is "library:name" of a library that has models by name ("torchvision:resnet18", "timm:vit_tiny_patch16_224",
    "transformers:LlamaForCausalLM", whose arguments are its configuration), or "package.module:callable". `arguments`
    are keywords of plain types. `dtype` is torch's default dtype while it is made.

    Of the cut model: `buffers` has the dtypes of those that no file has, by name, and `modules` a digest of the class
    and plain attributes of every module, by path. `versions` are those of what made it.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    buffers: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
