"""A pruned language model whose layers differ, as a folder: for fairkern, `export_gguf`, servers that read by layer."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from fairkern import options, types
from fairkern.artefacts.folders import check_out, copy_beside, said_of
from fairkern.artefacts.writing import new_folder
from fairkern.checks import check_report
from fairkern.compact import found_build, save_pruned
from fairkern.errors import InputError
from fairkern.hf.block_configs import uneven_config
from fairkern.hf.blocks import Blocks, blocks_of
from fairkern.hf.card import CARD, card
from fairkern.hf.decoder import family_of, places_of
from fairkern.hf.folder import CONFIG, Folder, open_folder
from fairkern.hf.gguf_names import ARCHITECTURES
from fairkern.hf.output import REPORT, as_asked, check_like
from fairkern.hf.weights import configuration
from fairkern.report import save_report
from fairkern.surroundings import stage

_GENERATION = "generation_config.json"
_CONFIG = {"deci": "servers that read that (DeciLM)", "anymodel": "servers that read that (vLLM)"}


def loads(schema: str | None, folder: Folder, name: str) -> str:
    """Who loads what is left of a folder's model where layers differ, in words; `name`: what that model is called."""
    if schema is not None:
        return (
            f"Its layers differ, as config.json says block by block, for {_CONFIG[schema]}; `from_pretrained` does not "
            "load it."
        )
    try:
        check_served(folder, "gguf")
        exported = ", and `fairkern export --gguf` writes it for llama.cpp"
    except InputError:
        exported = ""
    return (
        "Its layers differ, which no configuration of transformers can say, so `from_pretrained` does not load it: "
        f"config.json is that of the uncut model. `fairkern.load_pruned` loads it into {name}{exported}."
    )


@stage
def save_uneven(
    small: Any,
    plan: types.Plan,
    out: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str],
    schema: str | None = None,
    report: types.Report | None = None,
) -> None:
    """Write a pruned language model of transformers that one configuration cannot describe.

    The folder has the weights by transformers' names, plan.json (both as `fk.save_pruned` writes them), the tokenizer,
    chat template and licence of `like`, and config.json: that of `like`, so that `fk.load_pruned` cuts a model of it,
    or one that says the sizes layer by layer. It appears whole or not at all.

    Args:
        small: the cut model, of transformers; it may have been trained since.
        plan: by which it was cut (`Report.plan`).
        out: a new or an empty folder.
        like: the folder that the model came from.
        schema: None, or who reads config.json: "deci" (DeciLM, Nemotron-NAS) or "anymodel" (vLLM, ModelOpt); both with
            `per_layer_config` beside it.
        report: as for `save`; with it there are report.json and a card.

    Raises:
        InputError: an `out` that is not empty or cannot be written; with a schema: a model that is not Llama-like,
            layers with different numbers of query heads, biases that the configuration has no field for.
        PlanMismatchError: `small` does not have the shapes that `plan` leaves.

    Cost: one pass over the weights, in one file.
    """
    options.instance("small", small, nn.Module, options.MODEL)
    options.instance("plan", plan, types.Plan, options.PLAN)
    folder = open_folder(options.place("like", like))
    if hasattr(small, "config"):
        check_like(small, plan, folder)
    write_uneven(small, plan, check_out(options.place("out", out)), folder, schema, check_report(report, plan))


def check_served(folder: Folder, serve: Any) -> None:
    """Raises InputError where llama.cpp could not be told of a folder's model with layers that differ."""
    if not isinstance(serve, str) or serve.partition(":")[0] not in ("gguf", "deci"):
        return
    instead = 'plan with serve="hf", which keeps layers equal'
    try:
        family = family_of(configuration(folder))
    except InputError as error:
        raise InputError(
            f"serve={serve!r}: no file for llama.cpp comes of {folder.path}: {error}. Else {instead}, and convert the "
            "folder by llama.cpp's own script"
        ) from None
    if not any(a.by_layer for a in ARCHITECTURES if a.variant == family.variant.name):
        raise InputError(
            f"serve={serve!r}: llama.cpp has no layers of different sizes for a model like {folder.path}, which "
            f"computes what the {family.variant.name} family does: {instead}"
        )


def write_uneven(
    small: Any,
    plan: types.Plan,
    out: Path,
    folder: Folder,
    schema: str | None,
    done: types.Report | None = None,
    *,
    untrained: bool = False,
) -> None:
    """The folder, whole or not at all; with a report there is a card, too."""
    config = dict(folder.config) if schema is None else _by_layer(small, folder, schema)
    with said_of(out), new_folder(out) as place:
        # of the model before the cut, whatever a configuration by layers says
        build = None if folder.own_code else found_build(small, plan, folder.config)
        save_pruned(small, plan, place, build=build)
        (place / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        copy_beside(folder.path, place, code=folder.own_code)
        if done is not None:
            save_report(done, place / REPORT)
            said = card(small, plan, folder, done, loads(schema, folder, "the model named above"), untrained=untrained)
            (place / CARD).write_text(said, encoding="utf-8")
        if (folder.path / _GENERATION).is_file():
            shutil.copyfile(folder.path / _GENERATION, place / _GENERATION)
        as_asked(place)


def _by_layer(small: Any, folder: Folder, schema: str) -> dict[str, Any]:
    """The content of config.json that says what the cut model's layers hold."""
    before = configuration(folder)
    # compensation may have turned one on
    biases = {n: value for n, value in small.config.to_dict().items() if "bias" in n and isinstance(value, bool)}
    for name, value in biases.items():
        setattr(before, name, value)
    family = family_of(before)
    state = {name: tuple(value.shape) for name, value in small.state_dict().items()}
    shapes = {name: shape for name, shape in state.items() if not (family.tied and name.startswith("lm_head."))}
    blocks = blocks_of(shapes, family.head_size, family.layers, tied=family.tied)
    _check_biases(before, blocks)
    return uneven_config({**folder.config, **biases}, blocks, schema)


def _check_biases(config: Any, blocks: Blocks) -> None:
    """Raises InputError where a bias has no field, which servers leave out, or a field no bias, which they make up."""
    said = {place for place in places_of(config) if place.endswith(".bias")}
    for index, block in enumerate(blocks.blocks):
        absent = {*("q", "k", "v", "o") * (not block.heads), *("gate", "up", "down") * (not block.width)}
        own = {place for place in block.tensors if place.endswith(".bias")}
        expected = {place for place in said if place.partition(".")[0] not in absent}
        for place in sorted(own ^ expected):
            what = "holds" if place in own else "lacks"
            raise InputError(
                f"layer {index} {what} the bias of {place.partition('.')[0]!r}, where the configuration says otherwise "
                'and a server goes by that: prune with biases="auto" or False, or export to GGUF'
            )
