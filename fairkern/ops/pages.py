"""Memory of large results in large pages, where the system has such."""

from __future__ import annotations

from torch import Tensor

from fairkern.ops import _native

LEAST = 1 << 22  # bytes; below two large pages there may be none that lies within a tensor whole


def in_large_pages(made: Tensor) -> Tensor:
    """`made` itself, contiguous and not written to yet. On a CPU the system is asked to give a large one's memory in
    pages of two megabytes: the first write to a page of four kilobytes takes several times as long as copying one.

    Values do not depend on it, nor does the memory that a tensor takes once all of it is written. Where the extension
    is not built, nothing is asked.
    """
    if made.nbytes >= LEAST and made.device.type == "cpu" and _native.unavailable() is None:
        _native.extension().large_pages(made.data_ptr(), made.nbytes)
    return made
