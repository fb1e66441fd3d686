"""What operators are given: memory that the compiled extension can read, or an error that names the tensor."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import fairkern
from fairkern import ops
from fairkern.errors import InputError
from fairkern.ops import _native
from fairkern.ops.gather import native as gather_native
from fairkern.ops.project import native as project_native
from fairkern.ops.taylor import native as taylor_native
from fairkern.ops.tod import native as tod_native
from fairkern.ops.wasserstein import native as wasserstein_native

OPS = Path(fairkern.__file__).parent / "ops"
needs_extension = pytest.mark.skipif(_native.unavailable() is not None, reason="the extension is not built")


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


X, Y, D, LABELS = numbers(6, 4), numbers(5, 4), numbers(3, 2), torch.tensor([0, 1] * 3)
X3, ROWS, ORDER, OFFSETS = (
    numbers(6, 4, 3),
    torch.tensor([0, 2]),
    torch.tensor([0, 2, 4, 1, 3, 5]),
    torch.tensor([0, 3, 6]),
)


# operator → its tensors by name, and the call that takes them
PUBLIC: dict[str, tuple[dict[str, Tensor], Callable[..., Any]]] = {
    "class_wasserstein": ({"x": X, "labels": LABELS}, ops.class_wasserstein),
    "wasserstein_1d": ({"x": X, "y": Y}, ops.wasserstein_1d),
    "sliced_wasserstein": ({"x": X3, "directions": D, "labels": LABELS}, ops.sliced_wasserstein),
    "sliced_wasserstein of rows": (
        {
            "x": X,
            "directions": D,
            "labels": LABELS,
            "sets": torch.tensor([0, 1] * 3),
            "samples": torch.arange(6),
            "places": torch.tensor([0, 1, 2] * 2),
        },
        lambda x, directions, labels, **rows: ops.sliced_wasserstein(
            x, directions, labels, placed=ops.Placed(**rows, total=2)
        ),
    ),
    "taylor": ({"act": X, "grad": X + 1}, ops.taylor),
    "taylor_sums": (
        {"act": X, "grad": X, "signed": numbers(4), "per_sample": numbers(4), "activation": numbers(4)},
        lambda act, grad, **out: ops.taylor_sums(act, grad, out=ops.TaylorSums(**out)).signed,
    ),
    "project": ({"x": X3, "directions": D, "rows": ROWS}, ops.project),
    "project into": (
        {"x": X3, "directions": D, "out": torch.zeros(6, 4, 2)},
        lambda **given: ops.project(**given).clone(),
    ),
    "gather": ({"weight": X, "index": ROWS}, lambda weight, index: ops.gather(weight, {0: index})),
    "tod_curve": ({"u": X[:, 0], "r": X[:, 1]}, ops.tod_curve),
    "gram": ({"x": X}, lambda x: ops.gram(x).gram),
}
EACH = [(op, name) for op, (tensors, _) in PUBLIC.items() for name in tensors]


@pytest.mark.parametrize(("op", "name"), EACH)
def test_a_tensor_without_memory_is_refused(op: str, name: str) -> None:
    tensors, call = PUBLIC[op]
    value = tensors[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch on its nested tensors
        nested = torch.nested.nested_tensor([value])
    others = {
        "fake tensor": FakeTensorMode().from_tensor(value),
        "TwoTensor": TwoTensor(value, value),
        "nested": nested,
    }
    for words, other in others.items():
        with pytest.raises(InputError, match=words):
            call(**{**tensors, name: other})
    with pytest.raises(InputError, match=r"torch\.func"):
        torch.func.vmap(lambda one: call(**{**tensors, name: one}))(torch.stack([value, value]))
    with pytest.raises(InputError, match="to_dense"):
        call(**{**tensors, name: value.to_sparse()})


@pytest.mark.parametrize("op", PUBLIC)
def test_a_gradient_being_taken_around(op: str) -> None:
    tensors, call = PUBLIC[op]
    floats = [name for name, value in tensors.items() if value.is_floating_point()]
    with pytest.raises(InputError, match=r"torch\.func"):
        torch.func.grad(lambda x: call(**{**tensors, floats[0]: x}).sum())(tensors[floats[0]])


WRITTEN = {"signed", "per_sample", "activation", "out"}
READ = [(op, name) for op, name in EACH if name not in WRITTEN and PUBLIC[op][0][name].is_floating_point()]


@pytest.mark.parametrize(("op", "name"), READ)
def test_a_negation_that_torch_has_not_carried_out(op: str, name: str) -> None:
    """The imaginary part of a conjugate is the negative of what lies in memory."""
    tensors, call = PUBLIC[op]
    value = tensors[name]
    for lazy in (torch.complex(torch.zeros_like(value), -value).conj().imag, torch._neg_view(-value)):
        assert lazy.is_neg()
        expected, found = (
            call(**{key: t.clone() if key in WRITTEN else t for key, t in given.items()})
            for given in (tensors, {**tensors, name: lazy})
        )
        assert torch.equal(found, expected)


NATIVE: dict[str, tuple[dict[str, Tensor], Callable[..., Any]]] = {
    "class_wasserstein": (
        {"x": X3, "order": ORDER, "offsets": OFFSETS, "directions": D},
        lambda **given: wasserstein_native.class_wasserstein(reduce="max", **given),
    ),
    "wasserstein_1d": ({"x": X, "y": Y}, lambda x, y: wasserstein_native.wasserstein_1d(x, y, 1)),
    "taylor": (
        {"act": X, "grad": X, "signed": numbers(4), "per_sample": numbers(4), "activation": numbers(4)},
        lambda act, grad, **out: taylor_native.taylor_sums(act, grad, 1, out=tuple(out.values())),
    ),
    "project": ({"x": X3, "directions": D, "rows": ROWS, "out": torch.zeros(2, 4, 2)}, project_native.project),
    "gather": ({"weight": X, "index": ROWS}, lambda weight, index: gather_native.gather_many([(weight, {0: index})])),
    "tod_curves": ({"u": X[:, 0], "r": X[:, 1]}, lambda u, r: tod_native.tod_curves(u, r, [6])),
}


@needs_extension
@pytest.mark.parametrize(("op", "name"), [(op, name) for op, (tensors, _) in NATIVE.items() for name in tensors])
def test_the_extension_gets_addresses_in_cpu_memory_alone(op: str, name: str) -> None:
    tensors, call = NATIVE[op]
    call(**tensors)
    value = tensors[name]
    wrong = [value.to("meta")]
    if not op.startswith("tod") and name not in ("x", "act", "weight"):  # which say themselves what type is read
        wrong.append(value.to(torch.float16))
    if value.is_floating_point() and op != "tod_curves":
        wrong.append(torch._neg_view(-value))
    for other in wrong:
        with pytest.raises(InputError, match="CPU memory"):
            call(**{**tensors, name: other})


@pytest.mark.parametrize("path", sorted(OPS.rglob("native.py")), ids=lambda path: path.parent.name)
def test_addresses_come_from_one_place(path: Path) -> None:
    called = {
        ast.unparse(n.func).rpartition(".")[2] for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)
    }
    assert "data_ptr" not in called
    assert "address" in called
