"""The weights and configuration of a folder, read one tensor at a time: sharded or not, pruned unevenly or not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairkern.artefacts.fields import Fields
from fairkern.artefacts.files import SUM, parse, read_json
from fairkern.artefacts.plans import read_plan_payload
from fairkern.artefacts.tensors import TensorFile, open_tensors
from fairkern.errors import ArtefactError, InputError
from fairkern.hf.blocks import Blocks, Rows, Shape, head_size_of
from fairkern.hf.folder import Folder, first_line, open_folder
from fairkern.hf.needed import quiet

_PLAN = "plan.json"


class Weights:
    """A folder whose files are open. `config` is transformers', `shapes` those of all tensors by their names."""

    def __init__(self, folder: Folder, files: dict[str, TensorFile]) -> None:
        self._folder, self._files = folder, files
        self.path = folder.path
        self.config = configuration(folder)
        self._of: dict[str, tuple[str, str]] = {}  # the file and the name there
        self._sums: dict[str, dict[str, str]] = {name: {} for name in files}
        for name, file in files.items():
            for tensor, dtype in file.dtypes.items():
                if not dtype.is_floating_point or dtype.itemsize < 2:
                    raise InputError(
                        f"{self.path / name} holds {tensor} as {dtype}: quantised weights; load the model dequantised, "
                        "save it, and export that"
                    )
            self._of |= {tensor: (name, tensor) for tensor in file.shapes}
            self._of |= {alias: (name, tensor) for alias, tensor in _shared(file, self.path / name).items()}
        self.shapes: dict[str, Shape] = {tensor: files[name].shapes[own] for tensor, (name, own) in self._of.items()}

    def read(self, rows: Rows) -> Tensor:
        """Rows of a tensor, in its own dtype."""
        file, own = self._of[rows.name]
        tensor, self._sums[file][own] = self._files[file].tensor(own)
        return tensor[rows.start : rows.stop]

    def check_sums(self) -> None:
        """Raises ArtefactError where a file that carries a sum of all that it says was damaged or edited."""
        for name, file in self._files.items():
            if SUM not in file.metadata:
                continue
            sums = self._sums[name]
            sums |= {tensor: file.tensor(tensor)[1] for tensor in file.shapes.keys() - sums.keys()}
            if file.sum_of(sums) != file.metadata[SUM]:
                raise ArtefactError(
                    f"{self.path / name}: its content does not have the sum that it names: the file was edited or "
                    "damaged after it was written; save the model again"
                )

    def check_head_size(self, size: int) -> None:
        """Raises InputError where the size of heads is a guess: a quotient of numbers of which one was cut."""
        if self._folder.config.get("head_dim") is not None:
            return
        said = self.config.num_attention_heads * size
        found = {shape[-1] for name, shape in self.shapes.items() if name.endswith(".o_proj.weight")}
        if found <= {said}:
            return
        before = set()
        if (self.path / _PLAN).is_file():
            plan = read_plan_payload(read_json(self.path / _PLAN, "plan"), self.path / _PLAN)
            before = {a.length for a in plan.axes if a.axis.tensor.endswith(".o_proj.weight") and a.axis.dim == 1}
        if said not in before:
            raise InputError(
                f"{self.path / 'config.json'} counts {self.config.num_attention_heads} heads and the weights hold "
                f"{', '.join(map(str, sorted(found)))} columns for them: of which size a head is cannot be told; write "
                "head_dim into config.json, or keep the plan and the uncut model's configuration beside the weights"
            )

    def check_absent(self, blocks: Blocks) -> None:
        """Raises InputError for a layer without attention or MLP where nothing says that it went."""
        if all("fairkern" in file.metadata for file in self._files.values()):
            return  # its sum says that all is there
        said = _skipped(self._folder.config)
        for index, block in enumerate(blocks.blocks):
            for part, there in (("attention", block.heads), ("mlp", block.width)):
                if not there and (index, part) not in said:
                    raise InputError(
                        f"{self.path} has no weights for the {part} of layer {index}, and config.json does not say "
                        "that it went (per_layer_config, block_configs): fetch or save the whole folder again"
                    )

    def check_tied(self, ends: Mapping[str, Rows]) -> None:
        """Raises InputError where an output is stored beside the embedding that it is tied to, and is another."""
        output, embedding = ends.get("output.weight"), ends["embedding.weight"]
        if output is None or self._of[output.name] == self._of[embedding.name]:
            return
        if not torch.equal(self.read(output), self.read(embedding)):
            raise InputError(
                f"{self.path / 'config.json'} ties the output to the embedding, and {output.name} differs from "
                f"{embedding.name}: set tie_word_embeddings to false there, or leave the output out"
            )

    def tokenizer(self) -> Any:
        """The folder's tokenizer, None where it has none."""
        return self._folder.tokenizer() if self._folder.has_tokenizer else None


@contextmanager
def open_weights(folder: str | os.PathLike[str]) -> Iterator[Weights]:
    """Opens a folder's files, each once.

    Raises InputError (no such folder; no configuration, weights or shard; weights that are quantised or pickled),
    ArtefactError (a file that is truncated or contradicts itself).
    """
    looked = open_folder(folder)
    pickled = [name for name in looked.shards if not name.endswith(".safetensors")]
    if pickled:
        raise InputError(
            f"{looked.path} holds its weights as {pickled[0]}; expected safetensors: load the model and save it "
            "(save_pretrained)"
        )
    with ExitStack() as stack:
        yield Weights(looked, {name: stack.enter_context(open_tensors(looked.path / name)) for name in looked.shards})


def configuration(folder: Folder) -> Any:
    """transformers' of a folder, without what it says of single layers. Raises InputError where it is none."""
    path = folder.path / "config.json"
    with quiet() as transformers:
        try:
            config = transformers.AutoConfig.from_pretrained(folder.path, local_files_only=True)
            config.per_layer_config = None
        except Exception as error:  # whatever its class makes of what it reads
            raise InputError(f"{path} is no configuration that transformers reads: {first_line(error)}") from error
    try:
        size = head_size_of(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if size < 2 or size % 2:
        raise InputError(f"{path} gives heads of {size}; expected a positive, even number")
    return config


def _skipped(config: Mapping[str, Any]) -> set[tuple[int, str]]:
    """Layers and their parts that a configuration says are not there."""
    layers, blocks = config.get("per_layer_config") or {}, config.get("block_configs") or ()
    said = set()
    try:
        said |= {(int(index), str(part)) for index, layer in layers.items() for part in layer.get("skip", ())}
        for index, entry in enumerate(blocks):
            parts = {"attention": "attention", "ffn": "mlp"}
            said |= {(index, own) for part, own in parts.items() if entry[part].get("no_op")}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"per_layer_config or block_configs in config.json is not what transformers or DeciLM write ({error!r})"
        ) from None
    return said


def _shared(file: TensorFile, path: Path) -> dict[str, str]:
    """Names of tensors that `fk.save_pruned` stores under another one."""
    said = file.metadata.get("fairkern")
    if said is None:
        return {}
    try:
        shared = Fields(parse(said), path)["shared"].entries()
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} has metadata that is not JSON ({error}); save the model again") from None
    return {alias: own.text() for alias, own in shared.items() if own.text() in file.shapes}
