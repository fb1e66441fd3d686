"""Tensors with all else beside them: a safetensors file of a kind, the rest as JSON in its metadata."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fairkern.artefacts.fields import Fields
from fairkern.artefacts.files import SCHEMA, check_header, check_sum, compact, parse
from fairkern.artefacts.kinds import expected
from fairkern.artefacts.tensors import Later, open_tensors, write_tensors
from fairkern.artefacts.writing import replacing
from fairkern.errors import ArtefactError
from fairkern.version import package_version


def write_content(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor | Later], content: Mapping[str, Any]
) -> None:
    """Writes atomically a file "fairkern.<kind>": the metadata has `format`, `schema`, `fairkern`, `sha256` (a sum over
    all that the file says) and `content` as JSON.

    `content` is plain (`files.plain`). Raises InputError (a dtype that the format does not have), OSError.
    """
    metadata = {
        "format": f"fairkern.{kind}",
        "schema": str(SCHEMA),
        "fairkern": package_version(),
        "content": compact(content),
    }
    with replacing(path) as temporary:
        write_tensors(temporary, tensors, metadata)


def read_content(path: str | os.PathLike[str], kind: str, again: str) -> tuple[dict[str, Tensor], Fields]:
    """What `write_content` wrote; `again` says in an error what to do where it is not that.

    Raises ArtefactError (truncated, foreign, newer, edited), OSError.
    """
    with open_tensors(path, expected(kind)) as file:
        metadata = file.metadata
        schema = metadata.get("schema", "")
        header = {**metadata, "schema": int(schema) if re.fullmatch("[0-9]{1,9}", schema) else schema}
        check_header(header, path, kind)
        tensors, found = file.read()
    check_sum(header, found, path, kind)
    try:
        return tensors, Fields(parse(metadata.get("content", "")), path)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} has metadata that is not JSON ({error}); {again}") from None
