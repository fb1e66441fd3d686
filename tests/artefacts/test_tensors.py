"""Files of tensors: what the package of the format writes and reads, and where the bytes lie."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from fairkern.artefacts.tensors import _DTYPES, open_tensors, write_tensors
from fairkern.errors import ArtefactError, InputError

SHAPES: list[tuple[int, ...]] = [(), (1,), (3,), (2, 3), (0,), (4, 0, 2), (1, 1, 5)]
NEWER = ("F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")  # that older versions of the package do not have


def filled(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """Bytes drawn at random."""
    count = int(np.prod(shape)) * dtype.itemsize
    data = np.random.default_rng(seed).integers(0, 2 if dtype is torch.bool else 256, count, dtype=np.uint8)
    return torch.from_numpy(data).view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def everything() -> dict[str, Tensor]:
    kinds = [(name, dtype, shape) for name, dtype in _DTYPES.items() for shape in SHAPES]
    return {
        f"{name}.{'x'.join(map(str, shape))}": filled(dtype, shape, k) for k, (name, dtype, shape) in enumerate(kinds)
    }


def identical(one: Tensor, other: Tensor) -> bool:
    def data(tensor: Tensor) -> bytes:
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""

    return (one.dtype, one.shape, data(one)) == (other.dtype, other.shape, data(other))


def read(path: Path) -> dict[str, Tensor]:
    with open_tensors(path) as file:
        return file.read()[0]


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    tensors = {
        name: t for name, t in everything().items() if not name.startswith(("F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2F"))
    }
    write_tensors(tmp_path / "t", tensors, {"a": "ä\n", "b": ""})
    found = safetensors.torch.load_file(tmp_path / "t")
    assert found.keys() == tensors.keys()
    assert all(identical(found[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "t", "pt") as file:
        texts = file.metadata()
    assert len(texts.pop("sha256")) == 64
    assert texts == {"a": "ä\n", "b": ""}


def test_what_the_package_writes_is_read(tmp_path: Path) -> None:
    tensors = {
        name: t for name, t in everything().items() if not name.startswith(("F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2F"))
    }
    safetensors.torch.save_file(tensors, tmp_path / "t", {"a": "1"})
    found = read(tmp_path / "t")
    assert found.keys() == tensors.keys()
    assert all(identical(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("threads", [1, 3])
def test_every_dtype_and_shape_comes_back(threads: int, tmp_path: Path) -> None:
    tensors = everything()
    write_tensors(tmp_path / "t", tensors, {})
    before, alive = torch.get_num_threads(), threading.active_count()
    torch.set_num_threads(threads)
    try:
        found = read(tmp_path / "t")
    finally:
        torch.set_num_threads(before)
    assert all(identical(found[name], tensor) for name, tensor in tensors.items())
    assert threading.active_count() == alive


def test_views_conjugates_and_gradients_are_written_by_value(tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    z = torch.randn(3, dtype=torch.complex64)
    tensors = {
        "columns": x.t(),
        "part": x[1:, ::2],
        "expanded": torch.ones(1).expand(5),
        "lone": torch.ones(1).expand(7)[:1],
        "conjugate": z.conj(),
        "negative": z.conj().imag,
        "parameter": torch.nn.Parameter(x),
    }
    write_tensors(tmp_path / "t", tensors, {})
    found = read(tmp_path / "t")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize("shift", range(8))
def test_bytes_that_begin_anywhere_are_copied_to_where_their_type_may_lie(shift: int, tmp_path: Path) -> None:
    values = torch.arange(5, dtype=torch.float64)
    entry = {"dtype": "F64", "shape": [5], "data_offsets": [1, 41]}
    text = json.dumps({"b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": entry}).encode() + b" " * shift
    data = len(text).to_bytes(8, "little") + text + b"\7" + values.numpy().tobytes()
    (tmp_path / "t").write_bytes(data)
    found = read(tmp_path / "t")
    assert torch.equal(found["a"], values)
    assert found["a"].data_ptr() % 8 == 0


def test_a_dtype_that_the_format_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a is a tensor of torch\.complex128, which a safetensors file cannot hold"):
        write_tensors(tmp_path / "t", {"a": torch.zeros(1, dtype=torch.complex128)}, {})
    with pytest.raises(InputError, match="__metadata__ is a tensor"):
        write_tensors(tmp_path / "t", {"__metadata__": torch.zeros(1)}, {})
    with pytest.raises(InputError, match="text that no file can"):
        write_tensors(tmp_path / "t", {"\ud800": torch.zeros(1)}, {})


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", {"a": torch.zeros(1000)}, {})
    with open_tensors(tmp_path / "t") as file:
        with open(tmp_path / "t", "rb+") as other:
            other.truncate(500)
        with pytest.raises(ArtefactError, match="it ends within the tensor 'a'"):
            file.read()


def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", {"a": torch.zeros(1000)}, {})
    write_tensors(tmp_path / "u", {"a": torch.ones(1000)}, {})
    with open_tensors(tmp_path / "t") as file:
        (tmp_path / "u").replace(tmp_path / "t")
        tensors, found = file.read()
    assert found == file.metadata["sha256"]
    assert torch.equal(tensors["a"], torch.zeros(1000))


def test_under_another_default_device_and_dtype(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", {"a": torch.ones(3)}, {})
    with torch.device("meta"), torch.inference_mode():
        assert torch.equal(read(tmp_path / "t")["a"], torch.ones(3, device="cpu"))
