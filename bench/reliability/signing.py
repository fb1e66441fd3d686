"""Sums of changed files made anew, so that what lies behind them is read; by the files' description alone."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

from fairkern.artefacts.files import SUM

NO_LAYOUT = (ValueError, LookupError, RecursionError, struct.error, TypeError, AttributeError)
"""What the code here, and of `damages.py`, may raise for a file that has been damaged before."""

_METADATA = "__metadata__"


def taken_apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file. ValueError or struct.error where it is none."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_together(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def signed(name: str, data: bytes) -> bytes:
    """The file with the sum that its content has; as it is where it has no content to sum up."""
    try:
        if name.endswith(".json"):
            content = json.loads(data)
            if not isinstance(content, dict) or SUM not in content:
                return data
            content[SUM] = _sum({key: value for key, value in content.items() if key != SUM})
            return json.dumps(content, ensure_ascii=False).encode()
        header, body = taken_apart(data)
        texts = header[_METADATA]
        if SUM not in texts:
            return data
        tensors = {
            key: [entry["dtype"], entry["shape"], hashlib.sha256(body[slice(*entry["data_offsets"])]).hexdigest()]
            for key, entry in sorted(header.items())
            if key != _METADATA
        }
        said = {key: texts[key] for key in sorted(texts) if key != SUM}
        texts[SUM] = _sum({"metadata": said, "tensors": tensors})
        text = json.dumps(header, ensure_ascii=False).encode()
        return put_together(text + b" " * (-len(text) % 8), body)
    except NO_LAYOUT:
        return data


def _sum(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
