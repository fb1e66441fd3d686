"""docs/guide/quickstart.ipynb from quickstart.md: the same words and blocks, executed here. Needs the extra `docs`.

What is shown as printed is left out, since cells show what they print, and so is what only the tests read.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

GUIDE = Path(__file__).resolve().parents[1] / "guide"
PAGE, NOTEBOOK = GUIDE / "quickstart.md", GUIDE / "quickstart.ipynb"
SHOWN = re.compile(r"(?:<!-- [^\n]* -->\n)*```text\n.*?^```\n", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^(<!-- raises: \w+ -->\n)?```python\n(.*?)\n```$", re.DOTALL | re.MULTILINE)


def cells(page: str) -> list[dict[str, Any]]:
    """The page as cells, not executed."""
    text = re.sub(r"The same page as a notebook.*?\n\n", "\n\n", SHOWN.sub("", page), flags=re.DOTALL)
    made: list[dict[str, Any]] = []
    end = 0
    for match in CODE.finditer(text):
        made += [_words(text[end : match.start()]), _code(match[2], match[1] is not None)]
        end = match.end()
    made.append(_words(text[end:]))
    return [{**cell, "id": f"cell-{number}"} for number, cell in enumerate(made) if cell["source"]]


def _words(text: str) -> dict[str, Any]:
    text = re.sub(r"^<!-- .* -->\n", "", text, flags=re.MULTILINE)
    return {"cell_type": "markdown", "metadata": {}, "source": re.sub(r"\n{3,}", "\n\n", text).strip()}


def _code(source: str, raises: bool) -> dict[str, Any]:
    metadata = {"tags": ["raises-exception"]} if raises else {}
    return {"cell_type": "code", "execution_count": None, "metadata": metadata, "outputs": [], "source": source}


def notebook(page: str) -> dict[str, Any]:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells(page), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def executed(page: str) -> dict[str, Any]:
    """The notebook with what its cells print, but for what names this machine: the lines of a report that say its
    processor and platform, and of an error all but the last line."""
    import nbclient
    import nbformat

    made = nbformat.from_dict(notebook(page))
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(made, timeout=300, resources={"metadata": {"path": folder}}).execute()
    for cell in made.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = re.sub(r"^ (processor|platform) .*\n", "", output.text, flags=re.MULTILINE)
            if output.output_type == "error":
                output.traceback = [f"{output.ename}: {output.evalue}"]
            if output.get("name") == "stderr":
                raise SystemExit(f"a cell warns: {output.text}")
    made.metadata = notebook(page)["metadata"]
    return made


def main() -> None:
    NOTEBOOK.write_text(json.dumps(executed(PAGE.read_text()), indent=1, ensure_ascii=False) + "\n")
    print(f"{NOTEBOOK.name}: {len(cells(PAGE.read_text()))} cells", file=sys.stderr)


if __name__ == "__main__":
    main()
