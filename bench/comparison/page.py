"""The tables of docs/guide/comparison.md, from the results file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.comparison.features import FEATURES, TOOLS


def tables(rows: list[Mapping[str, Any]]) -> str:
    """For each part a table of answers and, below, what was run and what came, feature by feature."""
    found = {row["case"]: row["cells"] for row in rows}
    lines = list[str]()
    for part, features in FEATURES.items():
        names = [name for name, _ in TOOLS.values()]
        lines += ["", f"## {part}", "", f"| | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
        for key, title in features.items():
            lines.append(f"| {title} | {' | '.join(_answer(found[key][tool]) for tool in TOOLS)} |")
        lines += ["", f"### {part}: what was run", ""]
        for key, title in features.items():
            notes = dict[str, list[str]]()
            for tool, (name, _) in TOOLS.items():
                cell = found[key][tool]
                notes.setdefault(("from " if cell["how"] == "cited" else "") + cell["what"], []).append(name)
            said = [f"{' and '.join(tools)}: {_sentence(what)}" for what, tools in notes.items()]
            lines.append(f"- **{title[0].upper()}{title[1:]}.** {' '.join(said)}")
    return "\n".join(lines)


def _answer(cell: Mapping[str, Any]) -> str:
    mark = " ᶜ" if cell["how"] == "cited" else ""
    return f"**yes**{mark}" if cell["answer"] == "yes" else f"{cell['answer']}{mark}"


def _sentence(text: str) -> str:
    return text if text.endswith(".") else text + "."
