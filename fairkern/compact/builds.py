"""How the unpruned architecture of a cut model is made: as its user says, or as the model itself tells."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fairkern.artefacts.builds import NAME, checked_arguments
from fairkern.compact import builders
from fairkern.compact.applying import apply
from fairkern.compact.descriptors import check
from fairkern.errors import FairkernError, InputError, PlanMismatchError
from fairkern.model.described import module_digests, own_class
from fairkern.model.fields import bias_fields, configurations
from fairkern.model.tensors import not_saved
from fairkern.options import short
from fairkern.types import Build, Plan

_SAID = "build says"
_FORM = (
    'expected "torchvision:NAME", "timm:NAME", "transformers:CLASS", "package.module:callable", such a callable, or '
    '{"name": one of these, "arguments": {…}}'
)


def given_build(build: Any, small: nn.Module, plan: Plan) -> Build:
    """The build that a user names, as a file is to have it.

    A model of a library's list is built without memory for its parameters, and has to be what the plan was made for.
    Of other callables it is looked at whether they are there and take the arguments; they are not called.

    Raises InputError (another form, a name that leads nowhere, arguments that are missing or no plain values),
    PlanMismatchError (another architecture; names the first axis that differs).
    """
    name, arguments = _parts(build)
    if not builders.is_library(name):
        function = builders.find(name, _SAID)
        _check_callable(name, function, arguments)
        own = builders.own_name(function)
        if own is not None:
            with contextlib.suppress(FairkernError):  # without weights some are others: then it is a callable
                return _recorded(_fitting([Build(own, arguments)], small, plan), small)
        return _recorded(Build(name, arguments), small)
    if name.startswith("transformers:") and not arguments:
        told = found_build(small, plan)
        if told is None or told.name != name:
            raise InputError(
                f'build={name!r} needs the configuration: {{"name": {name!r}, "arguments": config.to_dict()}}'
            )
        return told
    try:
        return _recorded(_fitting([Build(name, arguments)], small, plan), small)
    except PlanMismatchError as error:
        raise PlanMismatchError(
            f"build={name!r} makes another architecture than was cut: {error} (name what made the model that was "
            "traced, with its arguments; of one that has been pruned twice that is a pruned one: leave build out)"
        ) from None


def found_build(small: nn.Module, plan: Plan, config: Mapping[str, Any] | None = None) -> Build | None:
    """The build that a model tells itself: transformers by its configuration, timm by the name that it has there.

    `config`: fields of the configuration that the unpruned model had; else those of the model, as the plan says that
    they were. None where nothing tells, or what is built is not what was cut: of timm in the class and plain
    attributes of every module and in what buffers hold that no file has, since arguments are not kept by its models.
    """
    for candidates, exact in ((_of_transformers(small, plan, config), False), (_of_timm(small, plan), True)):
        try:
            found = _fitting(candidates, small, plan, exact=exact)
        except (FairkernError, LookupError):
            continue
        return _recorded(found, small)
    return None


def most_parameters(plan: Plan) -> int:
    """What building a model like the plan's may register: some put parameters in the place of others meanwhile."""
    return 4 * len(plan.shapes) + 1000


def _parts(build: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(build, Mapping):
        if not set(build) <= {"name", "arguments"} or not isinstance(build.get("name"), str):
            raise InputError(f"build has the entries {', '.join(map(str, build)) or 'none'}; {_FORM}")
        arguments = build.get("arguments") or {}
        if not isinstance(arguments, Mapping):
            raise InputError(f"build has arguments that are a {type(arguments).__name__}; expected keywords: {_FORM}")
        name = build["name"]
        if name.startswith("transformers:"):
            arguments = builders.without_code(arguments)
        arguments = checked_arguments(arguments)
    elif isinstance(build, str):
        name, arguments = build, {}
    elif callable(build) and not isinstance(build, nn.Module):
        name, arguments = f"{build.__module__}:{build.__qualname__}" if hasattr(build, "__qualname__") else "", {}
        if not NAME.fullmatch(name):
            raise InputError(
                f"build is {short(build)}, which no other process can import: name a function or class at the top of "
                "a module"
            )
    else:
        raise InputError(f"build is a {type(build).__name__}; {_FORM}")
    if not NAME.fullmatch(name):
        raise InputError(f"build={short(name)} is not of that form; {_FORM}")
    if name.startswith("__main__:"):
        raise InputError(
            f"build={name!r} is of the script that runs, which no other process imports by that name: put it into a "
            "module of its own"
        )
    builders.refuse_weights(arguments, _SAID)
    return name, arguments


def _check_callable(name: str, function: Any, arguments: Mapping[str, Any]) -> None:
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise InputError(
            f"build={name!r} cannot be called with {short(arguments) if arguments else 'no arguments'} ({error}): "
            f'pass build={{"name": {name!r}, "arguments": {{…}}}} with those that it needs'
        ) from None
    except ValueError:  # no signature to look at
        pass


def _fitting(candidates: Iterable[Build], small: nn.Module, plan: Plan, *, exact: bool = False) -> Build:
    """The first that makes what the plan was made for, with the dtype that its tables are made in.

    Raises what the last of them raised; LookupError where there is none, or none is exactly that.
    """
    problem: Exception = LookupError("nothing tells how the model is made")
    for candidate in candidates:
        try:
            checked_arguments(candidate.arguments)
            made = builders.make(candidate, _SAID, trust=False, most=most_parameters(plan))
            check(made, plan)
        except FairkernError as error:
            problem = error
            continue
        try:
            return _alike(candidate, made, small, plan, exact=exact)
        except LookupError as error:
            problem = error
    raise problem


def _alike(build: Build, made: nn.Module, small: nn.Module, plan: Plan, *, exact: bool) -> Build:
    """The build with the dtype that what it makes has the cut model's tables in. LookupError where that should be exact
    and is not."""
    cut = apply(made, plan)
    if not _same_tables(cut, small):
        other = replace(build, dtype=_dtype_of(small))
        if other != build:
            again = apply(builders.make(other, _SAID, trust=False, most=most_parameters(plan)), plan)
            if _same_tables(again, small):
                return _exactly(other, again, small) if exact else other
        if exact:
            raise LookupError("buffers that no file has hold something else")
    return _exactly(build, cut, small) if exact else build


def _exactly(build: Build, cut: nn.Module, small: nn.Module) -> Build:
    if module_digests(cut) != module_digests(small):
        raise LookupError("modules are others, or have other attributes")
    return build


def _same_tables(cut: nn.Module, small: nn.Module) -> bool:
    """Whether buffers that no file has are those of the cut model, in whatever dtype that was brought to."""
    tables = not_saved(cut)
    for name, tensor in not_saved(small).items():
        other = tables.get(name)
        if other is None or other.is_meta or other.shape != tensor.shape:
            return False
        if not torch.equal(other.to(tensor.dtype), tensor.detach().to("cpu")):
            return False
    return True


def _dtype_of(model: nn.Module) -> str:
    """That of most parameters, as a name."""
    counts: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize > 1:
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    return str(max(counts, key=lambda dtype: counts[dtype], default=torch.float32)).removeprefix("torch.")


def _recorded(build: Build, small: nn.Module) -> Build:
    """With what is to be told again of the cut model."""
    return replace(
        build,
        buffers={name: str(tensor.dtype).removeprefix("torch.") for name, tensor in not_saved(small).items()},
        modules=module_digests(small),
        versions=builders.versions_of(build.name),
    )


def _of_transformers(small: nn.Module, plan: Plan, config: Mapping[str, Any] | None) -> Iterator[Build]:
    kind = own_class(small)
    if next(configurations(small), None) is None or kind.__module__.partition(".")[0] != "transformers":
        return
    name = builders.own_name(kind)
    if name is None:
        return
    if config is not None:
        yield Build(name, builders.without_code(config))
        return
    own: Any = small.config
    fields = builders.without_code(json.loads(own.to_json_string(use_diff=False)))
    for change in plan.config:
        owner = fields
        *path, last = change.name.split(".")
        for part in path:
            owner = owner[part]
        if change.before is None:
            owner.pop(last, None)
        else:
            owner[last] = change.before
    yield Build(name, fields)
    # biases that compensation has turned on, which the plan does not know of
    turned = [flag for flag, value in bias_fields(small).items() if value and "." not in flag]
    for flags in (*([flag] for flag in turned), turned):
        yield Build(name, {**fields, **dict.fromkeys(flags, False)})


def _of_timm(small: nn.Module, plan: Plan) -> Iterator[Build]:
    cfg = getattr(small, "pretrained_cfg", None) or getattr(small, "default_cfg", None)
    if own_class(small).__module__.partition(".")[0] != "timm" or not isinstance(cfg, Mapping):
        return
    architecture, tag = cfg.get("architecture"), cfg.get("tag")
    if not isinstance(architecture, str):
        return
    arguments: dict[str, Any] = {}
    if isinstance(classes := getattr(small, "num_classes", None), int):
        arguments["num_classes"] = classes
    first = plan.shapes.get(f"{cfg.get('first_conv')}.weight")
    if first is not None and len(first) == 4 and first[1] != 3:
        arguments["in_chans"] = first[1]
    names = [f"{architecture}.{tag}"] if tag else []
    for name in (*names, architecture):
        yield Build(f"timm:{name}", arguments)
