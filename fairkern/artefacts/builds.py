"""build.json of a pruned folder: how the unpruned architecture is made, as text. Nothing of it is run by reading it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from fairkern.artefacts.fields import LIMIT, Fields
from fairkern.artefacts.files import json_file, plain, read_json
from fairkern.errors import ArtefactError, InputError
from fairkern.types import Build

BUILD = "build.json"
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_][\w.-]*", re.ASCII)
"""`library:name` or `package.module:callable`: names, and nothing that an interpreter would be needed for."""

DTYPES = ("float32", "float64", "float16", "bfloat16")
"""That models are made in."""

_KEYWORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_DEEPEST, _MOST, _LONGEST = 12, 2**18, 2**16  # of arguments: levels, entries in all, characters of a text


def build_file(build: Build, plan_sum: str) -> bytes:
    """The file ("fairkern.build"), of a folder whose plan has this sum."""
    return json_file(
        "build",
        {
            "name": build.name,
            "arguments": checked_arguments(build.arguments),
            "dtype": build.dtype,
            "plan": plan_sum,
            "versions": dict(build.versions),
            "buffers": dict(build.buffers),
            "modules": dict(build.modules),
        },
    )


def read_build(path: str | os.PathLike[str], plan_sum: str) -> Build:
    """What `build_file` made of a build.

    Raises ArtefactError (truncated, edited, foreign, newer; of another plan than the one beside it; a name that is no
    name, arguments without bounds), FileNotFoundError.
    """
    content = Fields(read_json(path, "build"), path)
    if content["plan"].text() != plan_sum:
        raise ArtefactError(
            f"{path} was written with another plan than the one beside it: it is of another model; save the folder "
            "again, or load it with the unpruned model: load_pruned(model, folder)"
        )
    if not NAME.fullmatch(name := content["name"].text()):
        content["name"].fail(f"{name[:60]!r} is not of the form library:name or package.module:callable")
    if (dtype := content["dtype"].text()) not in DTYPES:
        content["dtype"].fail(f"the dtype {dtype[:20]!r}, expected one of {', '.join(DTYPES)}")
    try:
        arguments = checked_arguments(content["arguments"].mapping())
    except InputError as error:
        content["arguments"].fail(str(error))
    texts = {
        key: {name: entry.text() for name, entry in content[key].entries().items()}
        for key in ("versions", "buffers", "modules")
    }
    return Build(name, arguments, dtype, **texts)


def is_build_of(path: str | os.PathLike[str], plan_sum: str) -> bool:
    """Whether there is a build there that says that it belongs to a plan with this sum."""
    try:
        return read_json(path, "build").get("plan") == plan_sum
    except (ArtefactError, OSError):
        return False


def checked_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of plain types within bounds. Raises InputError for what is none."""
    for key in arguments:
        if not isinstance(key, str) or not _KEYWORD.fullmatch(key):
            raise InputError(f"build has the argument {str(key)[:60]!r}; expected the name of a keyword")
    found = plain(arguments, "arguments of build")
    left = [(found, 0)]
    entries = 0
    while left:
        value, depth = left.pop()
        entries += 1
        if depth > _DEEPEST or entries > _MOST:
            what = f"lie deeper than {_DEEPEST} levels" if depth > _DEEPEST else f"are more than {_MOST} values"
            raise InputError(f"arguments of build {what}: they are settings of a model, and no data")
        if isinstance(value, str) and len(value) > _LONGEST:
            raise InputError(f"arguments of build hold a text of {len(value)} characters; expected at most {_LONGEST}")
        if isinstance(value, int) and not isinstance(value, bool) and not -LIMIT < value < LIMIT:
            raise InputError(f"arguments of build hold {str(value)[:30]}; expected whole numbers below 2^53")
        if isinstance(value, dict):
            left += [(entry, depth + 1) for pair in value.items() for entry in pair]
        elif isinstance(value, list):
            left += [(entry, depth + 1) for entry in value]
    return found
