"""A pruned language model as a folder that everything loads which loads such folders."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairkern import artefacts, options, types
from fairkern.artefacts.folders import check_out, copy_beside, said_of
from fairkern.artefacts.writing import new_folder
from fairkern.checks import check_report
from fairkern.compact.descriptors import check_pruned
from fairkern.errors import InputError
from fairkern.hf.card import CARD, card
from fairkern.hf.folder import CONFIG, Folder, first_line, open_folder
from fairkern.hf.needed import quiet
from fairkern.hf.verify import verify
from fairkern.report import save_report
from fairkern.surroundings import stage

PLAN, REPORT = "plan.json", "report.json"
_SHARD = "5GB"


def write(
    small: Any,
    plan: types.Plan,
    out: Path,
    like: Folder,
    done: types.Report | None = None,
    *,
    untrained: bool = False,
) -> None:
    """The folder, whole or not at all: written beside `out`, opened again, and renamed to it."""
    check_pruned(small, plan)
    with said_of(out), new_folder(out) as place:
        _model(small, place, like)
        copy_beside(like.path, place, code=like.own_code)
        artefacts.save_plan(plan, place / PLAN)
        if done is not None:
            save_report(done, place / REPORT)
        (place / CARD).write_text(card(small, plan, like, done, untrained=untrained), encoding="utf-8")
        as_asked(place)
        verify(place, small, like.trust_remote_code)


def _model(small: Any, place: Path, like: Folder, **how: Any) -> None:
    """Configuration, generation configuration and weights, by the names that the hub has."""
    with quiet():
        try:
            small.save_pretrained(place, max_shard_size=_SHARD, **how)
        except (OSError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if type(error).__name__ == "SafetensorError" and "I/O" in str(error):  # a full disk has no errno there
                raise OSError(None, str(error)) from error
            raise InputError(f"transformers does not save what is left: {first_line(error)}") from error
    if not like.own_code:
        _forget_code(place / CONFIG)


def write_config(small: Any, place: Path, like: Folder) -> None:
    """Configuration and generation configuration alone, of a model that may lie on meta."""
    _model(small, place, like, state_dict={})


def _forget_code(config: Path) -> None:
    """A configuration that names code which was not used, and is not there."""
    content = json.loads(config.read_text(encoding="utf-8"))
    if content.pop("auto_map", None) is not None:
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def as_asked(place: Path) -> None:
    """Files with the permissions that new ones get (umask); safetensors lets nobody else read its own."""
    mode = stat.S_IMODE((place / PLAN).stat().st_mode)
    for path in place.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def check_like(small: Any, plan: types.Plan, like: Folder) -> None:
    """Raises InputError where the folder is not of the model that was cut."""
    nested = [entry for entry in like.config.values() if isinstance(entry, dict)]
    known = {str(entry["model_type"]) for entry in (like.config, *nested) if "model_type" in entry}
    if small.config.model_type not in known:
        raise InputError(
            f"like is {like.path}, a folder of the model type {', '.join(sorted(known))}, and small is of the type "
            f"{small.config.model_type}: name the folder that small came from"
        )
    for change in plan.config:
        found = like.config.get(change.name)
        if type(found) is int and type(change.before) is int and found != change.before:
            raise InputError(
                f"like is {like.path}, of which {change.name} is {found}, and the plan is of a model where it is "
                f"{change.before}: name the folder that small came from"
            )


@stage
def save(
    small: Any,
    plan: types.Plan,
    out: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str],
    report: types.Report | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write a pruned language model of transformers as a folder that `from_pretrained` loads, without fairkern.

    The folder has the configuration, the generation configuration, weights by the names of the hub in shards of at most
    5 GB, tokenizer, chat template and licence of `like`, plan.json and a model card. It is opened on the meta device
    before it appears, and appears whole or not at all; a run that was killed leaves nothing there.

    Args:
        small: the cut model, of transformers; it may have been trained since.
        plan: by which it was cut (`Report.plan`).
        out: a new or an empty folder.
        like: the folder that the model came from.
        report: what was done and measured, of the same plan (`fk.prune`, `fk.summarise`): written as report.json, and
            its measures, also those of `healed`, into the card. The card counts the parameters of `small` itself.
        trust_remote_code: the model's classes are of that folder's code, which is copied, and run to open the folder.

    Raises:
        InputError: an `out` that is not empty or cannot be written, a full disk; a model that its configuration cannot
            describe, as one with layers of different widths (plan with serve="hf"): says which weight differs; a `like`
            of another model type or of other sizes, a `report` of another plan.
        PlanMismatchError: `small` does not have the shapes that `plan` leaves.
        ArtefactError: a damaged file in `like`.

    Cost: one pass over the weights, copied where transformers writes them in other shapes than it computes in.
    """
    options.instance("small", small, nn.Module, options.MODEL)
    options.instance("plan", plan, types.Plan, options.PLAN)
    if not hasattr(small, "save_pretrained"):
        raise InputError(
            f"small is a {type(small).__name__}; expected a model of transformers (save_pruned writes others)"
        )
    folder = open_folder(options.place("like", like), options.flag("trust_remote_code", trust_remote_code))
    check_like(small, plan, folder)
    write(small, plan, check_out(options.place("out", out)), folder, check_report(report, plan))
