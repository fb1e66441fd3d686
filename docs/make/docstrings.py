"""For the reference: headings of docstrings that griffe would take for prose, as those that it knows."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Headings(griffe.Extension):
    """`Example:` is a section of examples; `Options, all of them keywords:` one of parameters, with their defaults."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
        before, heading, options = text.partition("Options, all of them keywords:\n")
        if heading:
            options = re.sub(r"^( +\w+)=(\S+): ", r"\1: default `\2`; ", options, flags=re.MULTILINE)
            text = f"{before}Keyword Args:\n{options}"
        obj.docstring.value = text
