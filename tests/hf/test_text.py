"""Data of a language model: what is read as a document, what is held out, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fairkern import InputError
from fairkern.hf.text import Document, held_out, read_documents
from tests.hf.words import Words


def file(tmp_path: Path, content: str | bytes, name: str = "data.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(data: Any, tokenizer: Any = None) -> list[str]:
    found = read_documents(data, tokenizer or Words()).documents
    return ["|".join(text for text, _ in document.parts) for document in found]


def test_passages(tmp_path: Path) -> None:
    assert texts(file(tmp_path, "one\ntwo\n\n three\n \t\r\n\n\nfour\n")) == ["one\ntwo\n\nthree\n\nfour\n"]
    assert texts(file(tmp_path, "\ufeffone")) == ["one"]
    paragraphs = [f"paragraph {i}" for i in range(400)]
    found = texts(file(tmp_path, "\n\n".join(paragraphs)))
    assert 25 < len(found) < 100
    assert "\n\n".join(found).split("\n\n") == paragraphs
    grown = texts(file(tmp_path, "\n\n".join([*paragraphs[:200], "and one more", *paragraphs[200:]])))
    assert len(set(found) - set(grown)) == 1  # the passage that it lies in


LINES = [
    {"text": "one two"},
    {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]},
    {"prompt": "two and two", "completion": " four"},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
]


@pytest.mark.parametrize("name", ["data.jsonl", "data.ndjson", "data.json"])
def test_lines(tmp_path: Path, name: str) -> None:
    path = file(tmp_path, "\n".join(map(json.dumps, LINES)) + "\n\n", name)
    joined = ["one two", "hello\n\nthere", "two and two| four", "a\n\n|b"]
    assert texts(path) == joined == texts(LINES)
    templated = ["one two", "<user> hello <end> <assistant> there <end>", "two and two| four"]
    assert texts(path, Words(template="x")) == [*templated, "<user> a <end> <assistant>| b <end>"]


def test_a_list_in_one_file(tmp_path: Path) -> None:
    assert texts(file(tmp_path, json.dumps(LINES, indent=1), "data.json"))[0] == "one two"


def test_prompts_are_read_and_not_predicted() -> None:
    (document,) = read_documents([LINES[2]], Words()).documents
    assert document.parts == (("two and two", False), (" four", True))


@pytest.mark.parametrize("template", [None, "x"])
def test_messages_of_a_prompt_are_read_and_not_predicted(template: str | None) -> None:
    (document,) = read_documents([LINES[3]], Words(template=template)).documents
    assert [predicted for _, predicted in document.parts] == [False, True]


def test_a_header_that_does_not_come_before_answers_is_not_read() -> None:
    class Thinking(Words):
        def apply_chat_template(self, messages: Any, tokenize: bool = True, add_generation_prompt: bool = False) -> str:
            return super().apply_chat_template(messages) + (" <think>" if add_generation_prompt else "")

    class Counting(Words):
        def apply_chat_template(self, messages: Any, tokenize: bool = True, add_generation_prompt: bool = False) -> str:
            return f"{len(messages)} " + super().apply_chat_template(messages)

    assert texts([LINES[3]], Thinking(template="x")) == ["<user> a <end>| <assistant> b <end>"]
    with pytest.raises(InputError, match=r"data, entry 0: .* writes the prompt otherwise"):
        texts([LINES[3]], Counting(template="x"))


def chat(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": content}]}


def test_contents_in_parts() -> None:
    parts = [{"type": "text", "text": "an "}, {"type": "text", "text": "answer"}]
    entries = [chat(parts), chat(None), chat([])]
    assert texts(entries) == ["ask\n\nan answer", "ask", "ask"]
    templated = [f"<user> ask <end> <assistant> {answer} <end>" for answer in ("an answer", "", "")]
    assert texts(entries, Words(template="x")) == templated


@pytest.mark.parametrize("template", [None, "x"])
@pytest.mark.parametrize("content", [[{"type": "image", "url": "a.png"}], 3, {"type": "text", "text": "a"}])
def test_contents_that_are_no_text(content: Any, template: str | None) -> None:
    if isinstance(content, dict):
        content = [content, {"type": "text", "text": None}]
    with pytest.raises(InputError, match=r"data, entry 1: a message holds .*; expected text, or a list of parts"):
        read_documents([LINES[1], chat(content)], Words(template=template))


def test_columns_that_are_filled_up() -> None:
    """As a data set of several kinds of entries has them."""
    blank = {"text": "", "messages": [], "prompt": None, "completion": None}
    assert texts([{**blank, **line} for line in LINES]) == texts(LINES)
    assert texts([{**LINES[1], "prompt": "hello", "prompt_id": "3"}]) == ["hello\n\nthere"]
    assert texts([{"prompt": "", "completion": "yes"}]) == ["|yes"]
    for two in ({**LINES[0], **LINES[1]}, {**LINES[0], **LINES[2]}, {**LINES[1], **LINES[3]}):
        with pytest.raises(InputError, match=r"entry 0 has \['\w+', '\w+'\]; expected one of them"):
            texts([two])


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    odd = "one\u2028two\u0085three\u2029four"
    lines = "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in (odd, "six"))
    assert texts(file(tmp_path, lines, "data.jsonl")) == [odd, "six"]


@pytest.mark.parametrize("template", [None, "x"])
@pytest.mark.parametrize("entry", ["a \ud83d", {"text": "a \udc00"}, chat("\ud83d")])
def test_half_a_character(entry: Any, template: str | None) -> None:
    with pytest.raises(InputError, match=r"data, entry 1 holds half of a character, the lone surrogate '.ud"):
        read_documents(["whole \U0001f600", entry], Words(template=template))


def test_a_template_makes_whole_texts() -> None:
    documents = read_documents(LINES, Words(template="x")).documents
    assert [document.whole for document in documents] == [False, True, False, True]


def test_token_ids_need_no_tokenizer() -> None:
    found = read_documents([[3, 4], (5, 6), torch.tensor([7, 8])], None).documents
    assert [document.ids for document in found] == [(3, 4), (5, 6), (7, 8)]
    with pytest.raises(InputError, match="the folder has no tokenizer"):
        read_documents(["text"], None)


def test_what_is_said() -> None:
    assert read_documents(["one", "two"], Words()).said == {"documents": 2}
    assert "no chat template" in read_documents(LINES, Words()).said["messages"]
    assert "messages" not in read_documents(LINES, Words(template="x")).said


BAD: list[tuple[str, str | bytes, str]] = [
    ("data.txt", "", "is empty"),
    ("data.txt", " \n\n\t\n", "is empty"),
    ("data.jsonl", "\n\n", "is empty"),
    ("data.jsonl", '{"text": ""}\n', "is empty"),
    ("data.txt", b"PK\x03\x04\xff\xfe\x00", "is not text: byte 0xff at 4 is not UTF-8"),
    ("data.txt", b"some\x00thing", "is not text: it holds zero bytes"),
    ("data.jsonl", b"\x1f\x8b\x08", "is not text: byte 0x8b"),
    ("data.jsonl", '{"text": "a"}\n{"text": ', "line 2 is not JSON"),
    ("data.jsonl", '{"content": "a"}\n', r"entry 0 has \['content'\]; expected \"text\""),
    ("data.jsonl", '{"text": 3}\n', 'expected "text"'),
    ("data.jsonl", "3\n", "is a int"),
    ("data.jsonl", '{"messages": [{"role": "user"}]}\n', "expected a role and a content each"),
    ("data.jsonl", '{"messages": []}\n', "expected a role and a content each"),
    ("data.jsonl", '{"messages": [{"role": "nobody", "content": "a"}]}\n', "template refuses it .nobody may not speak"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD, ids=[said for _, _, said in BAD])
def test_data_that_is_none(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_documents(file(tmp_path, content, name), Words(template="x"))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_documents(tmp_path / "absent.txt", Words())
    with pytest.raises(InputError, match="is a folder; expected a file"):
        read_documents(tmp_path, Words())
    with pytest.raises(InputError, match="expected the path of a file of text"):
        read_documents(3, Words())


def test_what_is_held_out_goes_by_content() -> None:
    documents = [Document(((f"document {i}", True),)) for i in range(400)]
    rest, apart = held_out(documents, 0.25)
    assert len(rest) + len(apart) == 400
    assert 60 < len(apart) < 140
    again, others = held_out(documents[::-1][:200], 0.25)
    assert {d.parts for d in others} <= {d.parts for d in apart}
    assert {d.parts for d in again} <= {d.parts for d in rest}


def test_a_document_is_on_one_side_only() -> None:
    twice = [Document(((text, True),)) for text in ("a", "b", "a", "b", "c")]
    rest, apart = held_out(twice, 1e-9)
    assert apart
    assert not {d.parts for d in rest} & {d.parts for d in apart}
    only, none = held_out(twice[:1], 0.1)
    assert (len(only), len(none)) == (1, 0)
