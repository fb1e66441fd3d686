"""Large results are written into large pages, where the system has such; what is in them is the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fairkern import ops
from fairkern.capture.samples import _Rows
from fairkern.ops import _native
from fairkern.ops.pages import LEAST, in_large_pages

BUILT = _native.unavailable()
needs_extension = pytest.mark.skipif(BUILT is not None, reason=str(BUILT))


class Asked:
    """Stands for the extension: what it is asked to bring into large pages."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def large_pages(self, begin: int, size: int) -> None:
        self.ranges.append((begin, size))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    stands = Asked()
    monkeypatch.setattr(_native, "extension", lambda: stands)
    monkeypatch.setattr(_native, "unavailable", lambda: None)
    return stands


def test_it_is_asked_for_large_tensors_on_a_cpu_alone(asked: Asked) -> None:
    large, small = torch.empty(LEAST, dtype=torch.int8), torch.empty(LEAST - 1, dtype=torch.int8)
    assert in_large_pages(large) is large
    assert in_large_pages(small) is small
    in_large_pages(torch.empty(LEAST, dtype=torch.int8, device="meta"))
    assert asked.ranges == [(large.data_ptr(), LEAST)]


def test_nothing_is_asked_where_there_is_no_extension(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "unavailable", lambda: "not built")
    in_large_pages(torch.empty(LEAST, dtype=torch.int8))
    assert asked.ranges == []


def test_class_samples_are_kept_there(asked: Asked) -> None:
    rows = _Rows()
    kept = rows.extend(2, (1 << 10, 1 << 10), torch.float32, torch.device("cpu"), room=8)
    assert asked.ranges == [(kept.data_ptr(), 8 << 22)]


@needs_extension
@pytest.mark.skipif(sys.platform != "linux", reason="large pages are asked for on Linux")
def test_a_gathered_matrix_lies_in_large_pages() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel gives no large pages when asked")
    weight, rows = torch.arange(1 << 23, dtype=torch.int32).view(1 << 11, -1), torch.arange(0, 1 << 11, 2)
    taken = ops.gather(weight, {0: rows}, backend="native")
    assert torch.equal(taken, weight[rows])
    assert "hg" in _flags(taken.data_ptr() + taken.nbytes // 2)


@needs_extension
def test_what_was_written_stays() -> None:
    made = torch.arange(1 << 21)
    before = made.clone()
    assert torch.equal(in_large_pages(made), before)


@needs_extension
def test_ranges_of_the_extension_are_checked() -> None:
    with pytest.raises(ValueError, match="null"):
        _native.extension().large_pages(0, 1)
    with pytest.raises(ValueError, match="bytes"):
        _native.extension().large_pages(1 << 21, -1)


def _flags(address: int) -> list[str]:
    """What the kernel says of the mapping that an address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    raise AssertionError(f"no mapping holds {address:x}")
