from __future__ import annotations

import sys

import pytest
import torch

from fairkern import env, ops
from fairkern.errors import BackendError, InputError
from fairkern.ops import _native, _registry
from fairkern.ops.gather import native


@pytest.fixture
def without_extension(monkeypatch):
    """As if the extension had not been built."""
    monkeypatch.setitem(sys.modules, "fairkern.ops._extension_cpu", None)
    monkeypatch.delattr("fairkern.ops._extension_cpu", raising=False)
    _native._load.cache_clear()
    yield
    _native._load.cache_clear()


def test_every_operator_has_a_reference_that_runs_here():
    for op, row in ops.backends().items():
        assert row["reference"] is None, op
    assert set(ops.backends()) == set(_registry.OPERATORS)


def test_native_says_why_not_on_another_device():
    assert "meta" in ops.backends("meta")["gather"]["native"]


def test_without_the_extension_auto_takes_the_reference(without_extension):
    labels = torch.tensor([0, 0, 1, 1])
    assert ops.class_wasserstein(torch.arange(4.0)[:, None], labels).item() == 2.0
    assert ops.gather(torch.arange(3), {0: torch.tensor([2])}).item() == 2
    assert "FAIRKERN_BUILD" in ops.backends()["gather"]["native"]
    assert ops.describe()["extension"]["path"] is None


def test_without_the_extension_asking_for_it_is_an_error(without_extension):
    with pytest.raises(BackendError, match="not built"):
        ops.gather(torch.arange(3), {}, backend="native")
    with pytest.raises(BackendError, match="not built"):
        _native.extension()


def test_a_stale_extension_is_noticed(extension, monkeypatch):
    monkeypatch.setattr(extension, "INTERFACE", _native.INTERFACE + 1)
    _native._load.cache_clear()
    try:
        assert "another version" in _native.unavailable()
    finally:
        _native._load.cache_clear()


def test_python_and_the_extension_agree(extension):
    assert extension.INTERFACE == _native.INTERFACE
    assert extension.GATHER_DIMS == native.MAX_DIMS


def test_describe(extension):
    seen = ops.describe()
    assert seen["extension"]["path"] == extension.__file__
    assert seen["extension"]["isa"] in ("baseline", "avx2", "avx512")
    assert seen["versions"]["torch"] == torch.__version__
    assert seen["launch_settings"]
    assert all("settings" in why for why in seen["launch_settings"].values())


@pytest.mark.parametrize("backend", ["metal", "", None, "Native"])
def test_unknown_backends_are_input_errors(backend):
    with pytest.raises(InputError, match=r"auto, native, .*reference"):
        ops.gather(torch.arange(3), {}, backend=backend)


def test_the_extension_checks_what_it_is_given(extension):
    with pytest.raises(ValueError, match="null pointer"):
        extension.gather(table=0, jobs=1, threads=1)
    with pytest.raises(ValueError, match="threads is 0"):
        extension.gather(table=0, jobs=0, threads=0)
    table = torch.zeros(1, 4 + 3 * extension.GATHER_DIMS, dtype=torch.int64)
    table[0, 3] = 99
    with pytest.raises(ValueError, match="99 dims"):
        extension.gather(table=table.data_ptr(), jobs=1, threads=1)
    table[0, :4] = torch.tensor([table.data_ptr(), table.data_ptr(), 3, 0])
    with pytest.raises(ValueError, match="element size is 3"):
        extension.gather(table=table.data_ptr(), jobs=1, threads=1)
    sizes = {"element": 0, "samples": 1, "before": 1, "channels": 1, "after": 1, "threads": 1}
    sizes |= {"wide": False, "accumulate": False, "scale": 1.0, "isa": 0}
    pointers = {"act": 8, "grad": 8, "signed_sum": 8, "per_sample": 8, "activation": 8}
    with pytest.raises(ValueError, match="act is a null"):
        extension.taylor(**sizes, **{**pointers, "act": 0})
    with pytest.raises(ValueError, match="element is 7"):
        extension.taylor(**{**sizes, "element": 7}, **pointers)
    with pytest.raises(ValueError, match="is empty"):
        extension.taylor(**{**sizes, "after": 0}, **pointers)
    with pytest.raises(ValueError, match="isa is 9"):
        extension.taylor(**{**sizes, "isa": 9}, **pointers)
    sizes = {"element": 0, "samples": 1, "channels": 1, "positions": 1, "projections": 1, "threads": 1, "isa": 0}
    sizes |= {"stride_n": 1, "stride_c": 1, "stride_d": 1, "rows": 0}
    with pytest.raises(ValueError, match="directions is a null"):
        extension.project(**sizes, x=8, directions=0, out=8)
    with pytest.raises(ValueError, match="projections are 1, 1, 0 and 1"):
        extension.project(**{**sizes, "positions": 0}, x=8, directions=8, out=8)
    sizes = {"element": 1, "count": 1, "units": 2, "steps": 1, "threads": 1, "isa": 0}
    with pytest.raises(ValueError, match="steps is 3"):
        extension.eliminate_steps(**{**sizes, "steps": 3}, table=8, chosen=8, added=8)
    with pytest.raises(ValueError, match="element is 2"):
        extension.eliminate_steps(**{**sizes, "element": 2}, table=8, chosen=8, added=8)
    rows, table = torch.tensor([0, 3]), torch.zeros(1, 12, dtype=torch.int64)
    with pytest.raises(ValueError, match="inverse is a null"):
        extension.eliminate_steps(**sizes, table=table.data_ptr(), chosen=8, added=8)
    table[:], table[0, 4], table[0, 5] = 8, 3, rows.data_ptr()
    with pytest.raises(ValueError, match="unit 1 of view 0 lies at 3; there are 3 positions"):
        extension.eliminate_steps(**sizes, table=table.data_ptr(), chosen=8, added=8)


def test_public_names():
    assert set(ops.__all__) <= set(dir(ops))
    assert all(callable(getattr(ops, name)) for name in ops.__all__)


@pytest.mark.skipif(env.triton_interpreted(), reason="there it runs on the CPU")
@pytest.mark.parametrize("op", ["class_wasserstein", "taylor", "project", "gram", "gather"])
def test_triton_is_refused_on_the_cpu(op):
    x = torch.ones(2, 3)
    calls = {
        "class_wasserstein": lambda: ops.class_wasserstein(x, torch.tensor([0, 1]), backend="triton"),
        "taylor": lambda: ops.taylor_many([(x, x, 1)], backend="triton"),
        "project": lambda: ops.project(x, torch.ones(1, 1), backend="triton"),
        "gram": lambda: ops.gram(x, backend="triton"),
        "gather": lambda: ops.gather(x, {}, backend="triton"),
    }
    with pytest.raises(BackendError, match="CUDA tensors"):
        calls[op]()


def test_taylor_many_names_the_job():
    x = torch.ones(2, 3)
    with pytest.raises(InputError, match="job 1"):
        ops.taylor_many([(x, x, 1), (x, x, 0)])
    assert ops.taylor_many([]) == []
