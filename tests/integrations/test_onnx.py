"""ONNX files of cut models: what onnxruntime computes from them, and the sizes that stand in them."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.integrations.models import KINDS, close, cut

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

BATCH = ({0: torch.export.Dim.DYNAMIC},)


def by_export(model: nn.Module, x: Tensor, file: Path) -> None:
    program = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=BATCH, verbose=False)
    assert program is not None
    program.save(str(file))


def by_torchscript(model: nn.Module, x: Tensor, file: Path) -> None:
    """The exporter before, which torch keeps for `dynamo=False`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (x,), str(file), dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}}, opset_version=18
        )


WRITERS = {"torch.export": by_export, "TorchScript": by_torchscript}


def run(file: Path, x: Tensor) -> Any:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def weights(file: Path) -> dict[str, tuple[int, ...]]:
    return {item.name: tuple(item.dims) for item in onnx.load(str(file)).graph.initializer}


def numbers(file: Path) -> Iterator[int]:
    """All whole numbers that are constants of the file: what views and splits are given."""
    graph = onnx.load(str(file)).graph
    held = [*graph.initializer, *(a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute)]
    for item in held:
        if item.data_type == onnx.TensorProto.INT64:
            yield from map(int, onnx.numpy_helper.to_array(item).ravel())


def floats(file: Path) -> int:
    """How many numbers its weights are."""
    graph = onnx.load(str(file)).graph
    return sum(math.prod(item.dims) for item in graph.initializer if item.data_type == onnx.TensorProto.FLOAT)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", KINDS)
def test_file_computes_what_the_cut_model_does(name: str, writer: str, tmp_path: Path) -> None:
    made, file = cut(name), tmp_path / "model.onnx"
    with torch.no_grad():
        try:
            WRITERS[writer](made.small, made.x, file)
        except torch.onnx.errors.UnsupportedOperatorError as error:
            with pytest.raises(type(error), match=re.escape(str(error).partition(" to ONNX")[0])):
                WRITERS[writer](made.whole, made.x, file)
            pytest.skip(f"{error}, cut or not")
        for x in (made.x, made.more, made.x[:1]):
            assert close(run(file, x), made.small(x))
    onnx.checker.check_model(str(file))
    found = weights(file)
    assert {key: found[key] for key in made.shapes if key in found}.items() <= made.shapes.items()
    left = sum(p.numel() for p in made.small.parameters())
    assert 0.8 * left < floats(file) < 1.1 * left  # batch norms are folded, tables of positions spread out


@pytest.mark.parametrize("writer", WRITERS)
def test_numbers_of_the_code_are_those_that_are_left(writer: str, tmp_path: Path) -> None:
    """`view(b, 3, 8, 64)` and `view(b, 64, 3, 4, 8)` in the code; 4 and 2 are left of 8 and of 4."""
    made, file = cut("views"), tmp_path / "model.onnx"
    assert {(site.before, site.after) for site in made.plan.sites} >= {(8, 4), (4, 2)}
    WRITERS[writer](made.small, made.x, file)
    found = set(numbers(file))
    assert found >= {4, 2}
    assert not found & {24, 32, 96}


@pytest.mark.parametrize("name", ["resnet", "vit", "views"])
def test_static_quantisation_of_a_file(name: str, tmp_path: Path) -> None:
    """int8 by onnxruntime: weights and activations, calibrated on a few batches."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    made, file, small = cut(name), tmp_path / "model.onnx", tmp_path / "model.int8.onnx"
    by_export(made.small, made.x, file)
    quantization.quantize_static(
        str(file), str(small), _Batches(file, [made.x, made.more]), per_channel=True,
        weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    held = [item for item in onnx.load(str(small)).graph.initializer if item.data_type == onnx.TensorProto.INT8]
    assert any(len(item.dims) >= 2 for item in held)
    with torch.no_grad():
        expected = made.small(made.more)
    found = torch.as_tensor(run(small, made.more))
    assert 0 < (found - expected).norm() / expected.norm() < 0.2


class _Batches:
    """What onnxruntime calibrates on."""

    def __init__(self, file: Path, batches: list[Tensor]) -> None:
        name = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).get_inputs()[0].name
        self.rest = iter([{name: batch.numpy()} for batch in batches])

    def get_next(self) -> Any:
        return next(self.rest, None)
