"""What a file is, in words, for who gives one where another is expected."""

from __future__ import annotations

import re

_FORMAT = re.compile(rb'"format"\s*:\s*"fairkern\.(\w{1,40})"')
_WORDS = {"scores": "fairkern scores", "latency": "a fairkern table of latency"}
_WRITERS = {
    "scores": "Scores.save and `fairkern score` write",
    "plan": "Plan.save and `fairkern plan` write",
    "report": "Report.save and `fairkern prune` write",
    "latency": "LatencyTable.save and `fairkern latency` write",
}


BEGIN = 2**16
"""Bytes of a file that `looks_like` is given."""


def in_words(kind: str) -> str:
    return _WORDS.get(kind, f"a fairkern {kind}")


def expected(kind: str) -> str:
    """What an error says of the kind that was looked for, and where it comes from."""
    writers = _WRITERS.get(kind)
    return f"expected {in_words(kind)}{f', as {writers}' if writers else ''}"


def looks_like(begin: bytes) -> str:
    """What the file is that begins like this; empty where that cannot be told."""
    found = _FORMAT.search(begin)
    if found:
        return in_words(found[1].decode("ascii"))
    if begin.lstrip()[:1] in (b"{", b"["):
        return "JSON that fairkern did not write"
    if begin[8:9] == b"{" and b'"dtype"' in begin:
        return "a safetensors file that holds no scores, weights for example"
    return ""
