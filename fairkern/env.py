"""The only reader of os.environ. Nothing is read at import; each function reads when it is called."""

from __future__ import annotations

import os


def triton_interpreted() -> bool:
    """Whether Triton kernels run in the interpreter (`TRITON_INTERPRET=1`)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
