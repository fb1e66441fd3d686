"""Files that are edited and given the right sum, as somebody would who means it: for the checks behind the sum."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from fairkern.artefacts.files import SUM, sum_of
from fairkern.artefacts.tensors import open_tensors, write_tensors


def edit_json(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Changes what a JSON file says; of a schema that has sums, the sum too."""
    content = json.loads(path.read_text("utf-8"))
    edit(content)
    if content.pop(SUM, None):
        content[SUM] = sum_of(content)
    path.write_text(json.dumps(content), "utf-8")


def without_sum(content: dict[str, Any]) -> None:
    """An edit: a file of schema 3, the last that had none."""
    del content[SUM]
    content["schema"] = 3


def edit_tensors(
    path: Path,
    tensors: Callable[[dict[str, Tensor]], Any] = lambda tensors: None,
    metadata: Callable[[dict[str, str]], Any] = lambda metadata: None,
) -> None:
    """Changes a safetensors file's tensors or texts, and its sum."""
    with open_tensors(path) as file:
        texts, (stored, _) = file.metadata, file.read()
    tensors(stored)
    metadata(texts)
    write_tensors(path, stored, texts)
