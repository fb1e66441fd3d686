"""Whether a folder holds what its configuration says: opened as anybody opens it, without memory for its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import nn

from fairkern.errors import InputError
from fairkern.hf.folder import opened, opened_bare


def verify(
    folder: str | os.PathLike[str],
    small: nn.Module | None = None,
    trust_remote_code: bool = False,
    *,
    headers: bool = False,
) -> None:
    """Opens a folder on the meta device, by the class that its configuration names. `headers`: of its weights it is
    told what the headers of files say, and so takes no addresses for them.

    Raises InputError where the configuration's own checks refuse it, a weight is missing, has no place, or has another
    shape, or where the model that opens has other parameters than `small`.
    """
    refused = "transformers does not open what is left"
    if headers:
        there, info = opened_bare(folder, refused, trust_remote_code)
    else:
        there, info = opened(folder, refused, trust_remote_code, device_map="meta")
    for kind, what in (
        ("mismatched_keys", "expects another shape for"),
        ("missing_keys", "expects, and the weights lack,"),
        ("unexpected_keys", "has no place for"),
    ):
        found = sorted(_said(key) for key in info[kind])
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise InputError(f"the configuration of what is left {what} {found[0]}{more}")
    if small is not None:
        _compare(_shapes(there), _shapes(small))


def _said(key: object) -> str:
    """A weight's name, and its shapes in the file and in the model, where these are told."""
    if not isinstance(key, tuple):
        return str(key)
    name, *shapes = key
    return f"{name} ({' in the file, '.join(str(tuple(shape)) for shape in shapes)} in the model)" if shapes else name


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _compare(opened: Mapping[str, tuple[int, ...]], small: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(opened.keys() | small.keys()):
        if opened.get(name) != small.get(name):
            raise InputError(
                f"{name} is {small.get(name, 'absent')} in the pruned model and {opened.get(name, 'absent')} in the "
                "one that its configuration makes"
            )
