"""A local folder of transformers: looked at before anything is loaded, then loaded as it is."""

from __future__ import annotations

import importlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairkern.artefacts.shards import open_shards
from fairkern.artefacts.tensors import open_tensors
from fairkern.errors import ArtefactError, InputError
from fairkern.hf.needed import quiet
from fairkern.options import short

CONFIG = "config.json"
_GENERATION = "generation_config.json"
_PLAN = "plan.json"
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
_DEQUANTISED = {
    "fp8": "load it with quantization_config=FineGrainedFP8Config(dequantize=True)",
    "mxfp4": "load it with quantization_config=Mxfp4Config(dequantize=True)",
    "bitsandbytes": "load it and call model.dequantize()",
}
_QUANTISED = {".qweight": "AWQ or GPTQ", "_scale_inv": "fp8", "_blocks": "mxfp4", ".absmax": "bitsandbytes"}


@dataclass(frozen=True)
class Folder:
    """A folder that has been looked at: what it holds is there and whole."""

    path: Path
    config: Mapping[str, Any]  # as its file has it
    shards: tuple[str, ...]
    trust_remote_code: bool = False

    @property
    def has_tokenizer(self) -> bool:
        return any((self.path / name).is_file() for name in _TOKENIZERS)

    @property
    def own_code(self) -> bool:
        """Whether the classes are those of the folder's code."""
        return self.trust_remote_code and bool(self.config.get("auto_map"))

    def load(self, dtype: torch.dtype | None, device: torch.device, **how: Any) -> tuple[nn.Module, tuple[str, ...]]:
        """The model in eval mode, of the folder's dtype unless one is given, and the names of weights that it ignores.

        `how`: further keywords of `from_pretrained`.

        Raises InputError for a configuration that its class refuses, one that is of no causal language model, and
        weights that are missing or of other shapes.
        """
        what = "its own code" if self.own_code else "transformers"
        refused = f"{self.path} cannot be loaded by {what}"
        if device.type == "meta":
            model, info = opened_bare(self.path, refused, self.trust_remote_code, dtype or "auto")
        else:
            model, info = opened(self.path, refused, self.trust_remote_code, dtype=dtype or "auto")
        self._check(info)
        return model.to(device).eval(), tuple(sorted(info["unexpected_keys"]))

    def tokenizer(self) -> Any:
        """The folder's tokenizer. Raises InputError where there is none, or one that cannot be loaded."""
        if not self.has_tokenizer:
            raise InputError(
                f"{self.path} has no tokenizer (none of {', '.join(_TOKENIZERS)}): copy that of the model into it, or "
                "give data as lists of token ids (fk.hf.prune)"
            )
        with quiet() as transformers:
            try:
                return transformers.AutoTokenizer.from_pretrained(
                    self.path, trust_remote_code=self.trust_remote_code, local_files_only=True
                )
            except Exception as error:
                raise InputError(f"the tokenizer of {self.path} cannot be loaded: {first_line(error)}") from error

    def _check(self, info: Mapping[str, Any]) -> None:
        for kind, what in (("missing_keys", "lacks"), ("mismatched_keys", "holds in another shape")):
            found = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info[kind])
            if found and _is_pruned(self.path):
                raise InputError(
                    f"{self.path} is pruned already, and its layers differ ({_PLAN} beside its weights says how): "
                    "prune the model that it was cut from; fk.load_pruned loads this one into that"
                )
            if found:
                more = f" and {len(found) - 1} further weights" if len(found) > 1 else ""
                raise InputError(
                    f"{self.path} {what} {found[0]}{more}, of what {CONFIG} says: they would be random numbers; "
                    "fetch the whole folder again"
                )


def open_folder(folder: str | os.PathLike[str], trust_remote_code: bool = False, *, quantised: bool = False) -> Folder:
    """Looks at a folder's configuration and at the headers of its weights, which may be `quantised` for who asks so.

    Raises InputError for what is not there, cannot be used as it is (quantised weights, code of its own), ArtefactError
    for a shard that is truncated.
    """
    path = Path(folder)
    if not path.is_dir():
        what = "is a file" if path.is_file() else "is not there"
        raise InputError(
            f"{folder} {what}; expected a folder of this machine with {CONFIG} and weights: a model of the hub is "
            "fetched first (hf download NAME --local-dir DIR)"
        )
    config = _json(path / CONFIG) if (path / CONFIG).is_file() else None
    if config is None:
        raise InputError(f"{path} has no {CONFIG}; expected a folder of save_pretrained or `hf download`")
    if not quantised:
        _check_method(path, config)
    _check_code(path, config, trust_remote_code)
    shards = _shards(path)
    for name in sorted(set(shards.values())):
        _check_shard(path, name, {tensor for tensor, shard in shards.items() if shard == name and tensor}, quantised)
    return Folder(path, config, tuple(dict.fromkeys(shards.values())), trust_remote_code)


def _is_pruned(path: Path) -> bool:
    """Whether plan and weights are those that `save_pruned` writes."""
    weights = path / _SINGLE[0]
    if not ((path / _PLAN).is_file() and weights.is_file()):
        return False
    with open_tensors(weights) as opened:
        return "fairkern" in opened.metadata


def opened(
    folder: str | os.PathLike[str], refused: str, trust_remote_code: bool, **how: Any
) -> tuple[nn.Module, Mapping[str, Any]]:
    """The causal language model of a folder as `from_pretrained` makes it, and which weights it missed or ignored.

    Weights of other shapes are left out, and named there. Raises InputError, `refused` and why, for what transformers
    or the folder's code refuses.
    """
    with quiet() as transformers:
        try:
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **how,
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise InputError(f"{refused}: {first_line(error)}") from error
    return model, info


def opened_bare(
    folder: str | os.PathLike[str], refused: str, trust_remote_code: bool, dtype: Any = "auto"
) -> tuple[nn.Module, Mapping[str, Any]]:
    """`opened` on the meta device, from what the files' headers say: `from_pretrained` maps each of them, and so takes
    addresses for all weights."""
    with open_shards(folder) as shards, quiet() as transformers:
        state = {
            name: torch.empty(shape, dtype=shards.dtypes[name], device="meta") for name, shape in shards.shapes.items()
        }
        own = {"trust_remote_code": trust_remote_code, "local_files_only": True}
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **own)
            with torch.device("meta"):
                kind: Any = type(
                    transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
                )
            model, info = kind.from_pretrained(
                None,
                config=config,
                state_dict=state,
                device_map="meta",
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            if (Path(folder) / _GENERATION).is_file():
                model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise InputError(f"{refused}: {first_line(error)}") from error
    return model, info


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is truncated or not JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise ArtefactError(f"{path} holds a JSON {type(content).__name__}; expected an object; fetch it again")
    return content


def _check_method(path: Path, config: Mapping[str, Any]) -> None:
    given = config.get("quantization_config") or config.get("compression_config")
    if given:
        method = str(given.get("quant_method", "unknown")) if isinstance(given, dict) else short(given)
        raise _quantised(path, method)


def _quantised(path: Path, method: str) -> InputError:
    how = _DEQUANTISED.get(method, "take the checkpoint that it was quantised from, or load it dequantised")
    return InputError(
        f"{path} holds quantised weights ({method}), whose scales and codes a cut would tear apart: {how}, save that "
        "(save_pretrained), prune the new folder, and quantise what is left again"
    )


def _check_code(path: Path, config: Mapping[str, Any], trusted: bool) -> None:
    """Code of the folder runs only for who says so; transformers' own classes take it where they know the model."""
    kind = str(config.get("model_type"))
    with quiet():
        known = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    if kind in known or (trusted and config.get("auto_map")):
        return
    if config.get("auto_map"):
        raise InputError(
            f"{path} brings code of its own (auto_map in {CONFIG}) for the model type {kind!r}, which transformers "
            "does not know: read that code, and pass trust_remote_code=True (--trust-remote-code) to run it"
        )
    raise InputError(f"{path / CONFIG} names the model type {kind!r}, which this version of transformers does not know")


def _shards(path: Path) -> dict[str, str]:
    """The file of every tensor, by an index; of a single file under an empty name."""
    for name in _INDEX:
        if (path / name).is_file():
            listed = _json(path / name).get("weight_map")
            if not isinstance(listed, dict) or not listed or not all(isinstance(v, str) for v in listed.values()):
                raise ArtefactError(f"{path / name} has no weight_map of names and files; fetch it again")
            absent = sorted({file for file in listed.values() if not (path / file).is_file()})
            if absent:
                raise InputError(
                    f"{path} lacks {absent[0]}, one of {len(set(listed.values()))} files of its weights by {name}; "
                    "fetch the whole folder again"
                )
            return listed
    for name in _SINGLE:
        if (path / name).is_file():
            return {"": name}
    raise InputError(
        f"{path} has no weights: expected one of {', '.join((*_SINGLE, *_INDEX))}; fetch the whole folder again"
    )


def _check_shard(path: Path, name: str, expected: set[str], quantised: bool) -> None:
    file = path / name
    if file.suffix == ".bin":
        if not zipfile.is_zipfile(file):
            raise ArtefactError(f"{file} is truncated, or of a format older than torch 1.6; fetch it again")
        return
    with open_tensors(file) as opened:
        names = opened.shapes
    for tensor in () if quantised else names:
        for end, method in _QUANTISED.items():
            if tensor.endswith(end):
                raise _quantised(path, method)
    lacking = sorted(expected - names.keys())
    if lacking:
        raise ArtefactError(f"{file} lacks {lacking[0]}, which the index beside it looks for there; fetch it again")
