"""A folder's model without its weights: built from its configuration, with what its files do not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.artefacts.shards import Shards, open_shards
from fairkern.errors import InputError
from fairkern.hf.file_names import files_of
from fairkern.hf.folder import Folder, first_line
from fairkern.hf.needed import quiet
from fairkern.model.on_meta import parameters_on_meta
from fairkern.types import Files
from fairkern.walk.paged import Weights
from fairkern.walk.stored import holding, parameter_of


@dataclass(frozen=True)
class Absent:
    """`bare`: on meta with all that it holds, as `from_pretrained` makes it. `model`: the same tensors, but what files
    do not hold (tables that constructors compute) has values. `weights`: where those of the others come from.
    `ignored`: weights of the files that have no place. `files`: how the files hold parameters."""

    bare: nn.Module
    model: nn.Module
    weights: Weights
    ignored: tuple[str, ...]
    files: Files


@contextmanager
def absent(source: Folder, dtype: torch.dtype | None, device: torch.device) -> Iterator[Absent]:
    """Opens a folder's files. Raises InputError as `Folder.load` does, and where weights are pickles."""
    bare, ignored = source.load(dtype, torch.device("meta"))
    with open_shards(source.path) as shards:
        model = _with_tables(bare, source).eval()
        files = files_of(bare, tuple(shards.shapes))
        yield Absent(bare, model, Weights(model, _Stored(shards, bare, files), device), ignored, files)


def _with_tables(bare: Any, source: Folder) -> nn.Module:
    """A model of the same class and configuration, whose parameters and saved buffers are those of `bare`."""
    with quiet() as transformers, parameters_on_meta():
        try:
            made: nn.Module = transformers.AutoModelForCausalLM.from_config(
                bare.config, dtype=bare.dtype, trust_remote_code=source.trust_remote_code
            )
        except Exception as error:
            raise InputError(
                f"{source.path}: its class builds no model from config.json: {first_line(error)}"
            ) from error
    others = dict(bare.named_modules())
    saved = set(bare.state_dict())
    for path, module in made.named_modules():
        other = others[path]
        module._parameters.update(other._parameters)
        for name in module._buffers:
            if (f"{path}.{name}" if path else name) in saved:
                module._buffers[name] = other._buffers[name]
    return made


class _Stored:
    """Parameters and buffers of a model, out of a folder's files."""

    def __init__(self, shards: Shards, model: Any, files: Files) -> None:
        self._shards, self._held = shards, holding(files)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def __contains__(self, name: str) -> bool:
        tensors = self._held.get(name)
        return self._name(name) in self._shards.shapes if tensors is None else True

    def read(self, name: str) -> Tensor:
        tensors = self._held.get(name)
        if tensors is None:
            return self._shards.read(self._name(name))
        return parameter_of(name, self._shapes[name], tensors, self._shards.read)

    def _name(self, name: str) -> str:
        """Files of a model without its head are without the head's prefix."""
        return name if name in self._shards.shapes else name.removeprefix(self._prefix)
