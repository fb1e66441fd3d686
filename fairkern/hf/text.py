"""Data for a language model: a file of text or of JSON lines, or a list, as documents."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairkern.errors import InputError
from fairkern.options import iterable, short

_JSON = (".jsonl", ".ndjson", ".json")
_PARAGRAPHS = 8
_SURROGATE = re.compile("[\ud800-\udfff]")
_FIELDS = '"text", "messages", or "prompt" and "completion"'


@dataclass(frozen=True)
class Document:
    """One text, in parts of which each is to be predicted or only to be read; or token ids.

    `whole`: it holds all special tokens that it shall have, as what a chat template has made does.
    """

    parts: tuple[tuple[str, bool], ...] = ()
    ids: tuple[int, ...] = ()
    whole: bool = False

    @property
    def place(self) -> float:
        """A number from 0 to 1 that its content alone decides, the same everywhere."""
        content = repr(self.ids) if self.ids else "\0".join(text for text, _ in self.parts)
        return _place(content)


@dataclass(frozen=True)
class Documents:
    """All documents of some data, and what it was for a report."""

    documents: tuple[Document, ...]
    said: Mapping[str, Any]


def read_documents(data: Any, tokenizer: Any) -> Documents:
    """The documents of a file or a list.

    Of a file whose name ends in .jsonl, .ndjson or .json every line is one (or every entry of one list), with "text",
    with "messages" (of a role and a content each), or with "prompt" and "completion" (both texts or both messages), of
    which the prompt is read and not predicted. Which of the three it is, what is empty or null does not say. Any other
    file is a text, of which some paragraphs in a row are one: where one begins its first paragraph alone decides, so
    that others stay as they are when the text grows. Items of a list may be texts, such entries, or lists of token ids;
    without a tokenizer only the last.

    Messages go through the tokenizer's chat template; where it has none they are joined by blank lines, which `said`
    tells. A content is a text or a list of parts, {"type": "text", "text": …}, which are joined; null says nothing.

    Raises InputError: no such file, a binary one, nothing in it, an entry that is none of these or several, that has
    images, or a lone surrogate.
    """
    if isinstance(data, (str, os.PathLike)):
        path = Path(data)
        content = _text(path)
        entries: list[Any] = _entries(path, content) if path.suffix.lower() in _JSON else _passages(content)
        said: dict[str, Any] = {"file": path.name, "sha256": hashlib.sha256(content.encode("utf-8")).hexdigest()}
        where = str(path)
    else:
        iterable("data", data, "the path of a file of text or JSON lines, or a list of texts, entries or token ids")
        entries, said, where = list(data), {}, "data"
    documents = [_document(entry, f"{where}, entry {i}", tokenizer) for i, entry in enumerate(entries)]
    documents = [document for document in documents if document.ids or any(text for text, _ in document.parts)]
    if not documents:
        raise InputError(f"{where} is empty; expected text, or JSON lines with {_FIELDS}")
    said["documents"] = len(documents)
    if tokenizer is not None and not tokenizer.chat_template and any(_is_chat(entry) for entry in entries):
        said["messages"] = "joined by blank lines, since the tokenizer has no chat template"
    return Documents(tuple(documents), said)


def held_out(documents: Sequence[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Documents to calibrate on and those to measure on, by their content alone, so that each stays on its side.

    At least one on either side, where there are two.
    """
    order = sorted(documents, key=lambda document: document.place)
    least = order[0].place
    apart = [d for d in documents if d.place < share or d.place == least]
    rest = [d for d in documents if not (d.place < share or d.place == least)]
    return (rest, apart) if rest else (apart, rest)


def _text(path: Path) -> str:
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file of text or of JSON lines with {_FIELDS}")
    if not path.exists():
        raise InputError(f"there is no file {path}")
    data = path.read_bytes()
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not text: byte {data[error.start]:#04x} at {error.start} is not UTF-8; expected a file of text "
            "or of JSON lines (unpack what is compressed, decode what is in another encoding)"
        ) from None
    if "\0" in content:
        raise InputError(f"{path} is not text: it holds zero bytes; expected a file of text or of JSON lines")
    return content


def _passages(content: str) -> list[str]:
    """A text in passages of `_PARAGRAPHS` paragraphs on average; what stands between blank lines is a paragraph."""
    passages: list[list[str]] = []
    for text in re.split(r"\n[ \t\r]*\n\s*", content):
        if not text.strip():
            continue
        if not passages or _place(text) < 1 / _PARAGRAPHS:
            passages.append([])
        passages[-1].append(text)
    return ["\n\n".join(passage) for passage in passages]


def _place(content: str) -> float:
    """A number from 0 to 1 by the content's hash."""
    return int.from_bytes(hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def _entries(path: Path, content: str) -> list[Any]:
    if content.lstrip().startswith("["):
        try:
            listed = json.loads(content)
        except (ValueError, RecursionError):
            listed = None  # lines that are lists are no entries either
        if isinstance(listed, list):
            return listed
    entries = []
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                entries.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number} is not JSON ({error}); expected {_FIELDS}") from None
    return entries


def _document(entry: Any, where: str, tokenizer: Any) -> Document:
    whole = False
    if isinstance(entry, str):
        parts: tuple[tuple[str, bool], ...] = ((entry, True),)
    elif isinstance(entry, Mapping):
        parts, whole = _parts(entry, where, tokenizer)
    elif (ids := _ids(entry)) is not None:
        return Document(ids=ids)
    else:
        raise InputError(f"{where} is a {type(entry).__name__} ({short(entry)}); expected {_FIELDS}")
    lone = next((found for text, _ in parts if (found := _SURROGATE.search(text))), None)
    if lone is not None:
        raise InputError(
            f"{where} holds half of a character, the lone surrogate {lone[0]!a}, which UTF-8 cannot write: leave it out"
        )
    if tokenizer is None:
        raise InputError(f"{where} is text, and the folder has no tokenizer: give lists of token ids, or copy it there")
    return Document(parts, whole=whole)


def _parts(entry: Mapping[Any, Any], where: str, tokenizer: Any) -> tuple[tuple[tuple[str, bool], ...], bool]:
    """The parts of an entry, and whether a chat template has made them."""
    forms = _forms(entry)
    if len(forms) > 1:
        raise InputError(f"{where} has {short(forms)}; expected one of them: {_FIELDS}")
    prompt, completion = entry.get("prompt"), entry.get("completion")
    form = forms[0] if forms else ""
    if form == "text" and isinstance(entry["text"], str):
        return ((entry["text"], True),), False
    if form == "messages" and isinstance(entry["messages"], list):
        return _spoken([], _messages(entry["messages"], where), where, tokenizer)
    if form == "prompt" and isinstance(prompt, str) and isinstance(completion, str):
        return ((prompt, False), (completion, True)), False
    if form == "prompt" and isinstance(prompt, list) and isinstance(completion, list):
        asked = _messages(prompt, where) if prompt else []
        return _spoken(asked, _messages(completion, where), where, tokenizer)
    raise InputError(f"{where} has {short(sorted(map(str, entry)))}; expected {_FIELDS}")


def _forms(entry: Mapping[Any, Any]) -> list[str]:
    """What an entry is given as: columns that a data set fills up with nulls or empty texts do not count beside others.

    A prompt alone does not either: some data sets have one beside the messages that begin with it.
    """
    there = [name for name in ("text", "messages") if entry.get(name) is not None]
    if entry.get("prompt") is not None and entry.get("completion") is not None:
        there.append("prompt")
    held = [name for name in there if entry[name] or (name == "prompt" and entry["completion"])]
    return held or there[:1]


def _spoken(
    asked: list[dict[Any, Any]], answered: list[dict[Any, Any]], where: str, tokenizer: Any
) -> tuple[tuple[tuple[str, bool], ...], bool]:
    """Messages that are read only, and those that are predicted, as `_parts` gives them."""
    if tokenizer is None or not tokenizer.chat_template:
        read, predicted = ("\n\n".join(m["content"] for m in side if m["content"]) for side in (asked, answered))
        return ((*([(read + "\n\n", False)] if read else []), (predicted, True)), False)
    whole = _templated([*asked, *answered], where, tokenizer)
    if not asked:
        return ((whole, True),), True
    for header in (True, False):  # what the template writes before an answer is read too, where it is the same
        read = _templated(asked, where, tokenizer, header)
        if whole.startswith(read):
            return ((read, False), (whole[len(read) :], True)), True
    raise InputError(
        f"{where}: the tokenizer's chat template writes the prompt otherwise where the completion follows; give "
        '"messages", of which all is predicted'
    )


def _templated(messages: list[dict[Any, Any]], where: str, tokenizer: Any, header: bool = False) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header))
    except Exception as error:  # the template's own, of what it does not admit
        raise InputError(f"{where}: the tokenizer's chat template refuses it ({error})") from error


def _messages(messages: list[Any], where: str) -> list[dict[Any, Any]]:
    """Messages whose contents are texts."""
    bad = [m for m in messages if not isinstance(m, Mapping) or not {"role", "content"} <= m.keys()]
    if bad or not messages:
        raise InputError(f"{where}: messages hold {short(bad[:1])}; expected a role and a content each")
    return [{**message, "content": _content(message["content"], where)} for message in messages]


def _content(content: Any, where: str) -> str:
    texts = []
    for part in content if isinstance(content, list) else [] if content is None else [content]:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            raise InputError(
                f"{where}: a message holds {short(part)}; expected text, or a list of parts "
                '{"type": "text", "text": …}'
            )
        texts.append(text)
    return "".join(texts)


def _is_chat(entry: Any) -> bool:
    """Whether it has messages."""
    forms = _forms(entry) if isinstance(entry, Mapping) else []
    return bool(forms) and forms[0] != "text" and isinstance(entry[forms[0]], list)


def _ids(entry: Any) -> tuple[int, ...] | None:
    """Token ids: a list, an array or a tensor of one dimension."""
    listed = entry.tolist() if hasattr(entry, "tolist") else entry
    if not isinstance(listed, (list, tuple)) or not all(type(item) is int and item >= 0 for item in listed):
        return None
    return tuple(listed)
