"""Pruned folders: written with all that says how they are loaded again, and loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import nn

from fairkern import compact, options, types
from fairkern.artefacts.files import json_file
from fairkern.checks import check_device, check_plan, check_report
from fairkern.errors import InputError
from fairkern.report import report_content
from fairkern.results import PathLike
from fairkern.surroundings import device_of_new_tensors, stage, uncompiled

REPORT = "report.json"


@stage
def save_pruned(
    small: nn.Module,
    plan: types.Plan,
    folder: PathLike,
    *,
    build: str | Mapping[str, Any] | Callable[..., nn.Module] | None = None,
    report: types.Report | None = None,
) -> None:
    """Write a pruned model: `folder/model.safetensors`, `folder/plan.json`, and `build.json`, by which the folder is
    loaded by itself; a new folder is complete or absent.

    One that exists is written into: these files are replaced, others stay.

    Args:
        small: the cut model; it may have been trained since.
        plan: by which it was cut (`Report.plan`).
        folder: a new one, or one that is there.
        build: how the unpruned architecture is made, which is written as text: "torchvision:resnet18",
            "timm:vit_tiny_patch16_224", "package.module:callable", the callable itself, or with arguments
            {"name": "torchvision:resnet18", "arguments": {"num_classes": 10}}. A model of a library is built, without
            memory for its parameters, to see whether it is what was cut; other callables are not called. None: what a
            model of transformers has as its configuration, or one of timm as its name; for others, or where what that
            makes is not what was cut, there is no build.json, and `load_pruned` needs the unpruned model.
        report: what was done (`fk.prune`, `fk.summarise`), written as report.json.

    Raises PlanMismatchError (`small` does not have the shapes that `plan` leaves, `build` makes another architecture
    than `plan` was made for), InputError (a build that leads nowhere or asks for weights, a report of another plan) and
    OSError.
    """
    options.instance("small", small, nn.Module, options.MODEL)
    check_plan(plan)
    beside = {}
    if (done := check_report(report, plan)) is not None:
        beside[REPORT] = json_file("report", report_content(done))
    place = options.place("folder", folder)
    made = compact.found_build(small, plan) if build is None else compact.given_build(build, small, plan)
    compact.save_pruned(small, plan, place, build=made, beside=beside)


@overload
def load_pruned(
    fresh_model: PathLike, folder: None = None, *, trust: bool = False, device: Any = None
) -> nn.Module: ...


@overload
def load_pruned(fresh_model: nn.Module, folder: PathLike) -> nn.Module: ...


@uncompiled
def load_pruned(
    fresh_model: nn.Module | PathLike,
    folder: PathLike | None = None,
    *,
    trust: bool = False,
    device: str | torch.device | None = None,
) -> nn.Module:
    """A pruned model back from `save_pruned`: `load_pruned(folder)`, or `load_pruned(model, folder)` where the folder
    does not say how the unpruned architecture is made.

    Args:
        fresh_model: the unpruned architecture with any weights (meta is fine); it stays as it is. The copy is in its
            mode (train, as models are made, or eval), of its dtype, and on its device (of meta: on the CPU). Left out,
            it is built as build.json says, and what is loaded is in eval mode and in the dtypes that it was saved in.
        folder: that `save_pruned` wrote, `fk.hf.prune`, `fairkern apply` or `fairkern prune`.
        trust: import and call what build.json names, also where that is no model of torchvision, timm or transformers.
            Whoever wrote the file has chosen what is called.
        device: where to, of a folder by itself; default: torch's default device. On "meta" the weights are not read,
            and tables that no file has (rotary embeddings, attention masks) are on the CPU with their values, so that
            `load_state_dict(…, assign=True)` makes the model whole.

    Raises ArtefactError (a file that is missing, damaged, edited, foreign or newer, weights of another plan),
    PlanMismatchError (another architecture, or pruned already), InputError (a model that cannot be copied; a folder by
    itself: no build.json, one that names what is not trusted, not installed, or cannot be built).

    Warns where what is built by itself has the right shapes, and modules of another class or with other attributes than
    what was saved, as another version of a library may make it.
    """
    if folder is None and device is None and device_of_new_tensors().type == "meta":
        device = "meta"  # which is not left for what computes with values
    return _load_pruned(fresh_model, folder, trust, device)


def _load_pruned(fresh_model: Any, folder: Any, trust: Any, device: Any) -> nn.Module:
    trust = options.flag("trust", trust)
    if isinstance(fresh_model, (str, os.PathLike)) and folder is None:
        where = device_of_new_tensors() if device is None else check_device(device)
        return compact.load_by_itself(options.place("folder", fresh_model), trust=trust, device=where)
    options.instance("fresh_model", fresh_model, nn.Module, f"{options.MODEL}, or a folder and nothing else")
    place = options.place("folder", folder)
    for name, given in (("trust", trust), ("device", device is not None)):
        if given:
            raise InputError(f"{name} is for a folder by itself: fresh_model says {_SAYS[name]}; leave {name} out")
    return compact.load_pruned(fresh_model, place)


_SAYS = {"trust": "what is built", "device": "where the copy lies"}
_load_pruned.__name__ = load_pruned.__name__  # in what a stage says of itself
_load_pruned = stage(_load_pruned)
