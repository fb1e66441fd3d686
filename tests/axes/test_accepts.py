"""Wrapped, packed and parametrized models: followed exactly, or refused with what to do instead."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

import fairkern as fk
from fairkern.errors import InputError
from fairkern.prove import difference
from tests.axes.harness import Case, Net, check_exact, check_groups, make

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FREE = "8: a.bias:0 a.weight:0 b.weight:1* @ b"


def plain(first: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(first or nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))


def hooked(hook: Callable[[nn.Module], object]) -> nn.Module:
    conv = nn.Conv2d(3, 8, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # replaced by parametrizations, not gone
        hook(conv)
    return plain(conv)


def scripted(make_one: Callable[[], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))  # type: ignore[arg-type]
        return make_one()


class Packed(Tensor):
    """A class that keeps another tensor inside, as quantised and distributed parameters do."""

    inner: Tensor

    @staticmethod
    def __new__(cls: type[Packed], inner: Tensor) -> Packed:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        made.inner = inner
        return made  # type: ignore[no-any-return]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: object) -> Packed:
        return Packed(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*(a.inner if isinstance(a, Packed) else a for a in args), **(kwargs or {}))
        return Packed(result) if func is torch.ops.aten.detach.default else result


def packed() -> nn.Module:
    model = plain()
    model[0].weight = nn.Parameter(Packed(torch.randn(8, 3, 3, 3)))  # type: ignore[assignment]
    assert is_traceable_wrapper_subclass(model[0].weight)
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "compiled": (lambda: torch.compile(plain()), r"model is compiled .*: pass model\._orig_mod"),  # type: ignore[return-value]
    "compiled inside": (
        lambda: nn.Sequential(torch.compile(plain())),  # type: ignore[arg-type]
        r"model\.0 is compiled .*: pass model\.0\._orig_mod",
    ),
    "data parallel": (lambda: nn.DataParallel(plain()), r"runs on several devices .*: pass model\.module"),
    "scripted": (lambda: scripted(lambda: torch.jit.script(plain())), "is scripted .*: pass the module that it was"),
    "traced": (lambda: scripted(lambda: torch.jit.trace(plain(), X)), "is scripted"),
    "weight norm, as a hook": (
        lambda: hooked(nn.utils.weight_norm),
        r"model\.0 computes a parameter in a hook .*remove_weight_norm\(model\.0\)",
    ),
    "spectral norm, as a hook": (lambda: hooked(nn.utils.spectral_norm), r"remove_spectral_norm\(model\.0\)"),
    "masked by pruning": (
        lambda: hooked(lambda conv: prune.random_unstructured(conv, "weight", 0.3)),
        r"prune\.remove\(model\.0, name\)",
    ),
    "packed": (packed, r"0\.weight is packed or distributed \(Packed\)"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "run the lazy module once"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    build, said = REFUSED[name]
    model = build()
    with pytest.raises(InputError, match=said):
        fk.trace(model, X)


def test_distributed(tmp_path: object) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(InputError, match=r"is distributed .*: pass model\.module"):
            fk.trace(nn.parallel.DistributedDataParallel(plain()), X)
        wrapped, units = nn.parallel.DistributedDataParallel(plain()), fk.trace(plain(), X)
        with pytest.raises(InputError, match=r"is distributed .*: pass model\.module, in all processes"):
            fk.score(wrapped, [(X, torch.zeros(len(X), dtype=torch.int64))], units=units)
        data = [(X, torch.zeros(len(X)))]
        plan = fk.score(
            plain(), data, lambda out, _: out.square().sum(), units=units, class_of=False, ranks=False
        ).plan(keep_params=0.9)
        with pytest.raises(InputError, match=r"is distributed .*: pass model\.module, in all processes"):
            fk.apply(wrapped, plan)
    finally:
        torch.distributed.destroy_process_group()


def test_compiled_in_place_runs_as_it_is() -> None:
    model = plain()
    model.compile()
    assert [g.name for g in fk.trace(model, X).groups] == ["0"]
    assert model._compiled_call_impl is not None


def quantised(model: nn.Sequential) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # to be replaced by another package
        return torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear})


def test_quantised_layers_stay() -> None:
    one = quantised(nn.Sequential(nn.Linear(8, 3)))
    units = fk.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), one), torch.randn(2, 4))
    assert [(g.name, g.units) for g in units.groups] == [("0", 6)]
    assert any(re.search(r"4\.0 is quantised .*prune first", note) for note in units.notes)


def test_nothing_but_quantised_layers() -> None:
    with pytest.raises(InputError, match=r"no axis .*0 is quantised .*prune first"):
        fk.trace(quantised(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))), torch.randn(2, 4))


def standardised(m: Net, x: Tensor) -> Tensor:
    """Weight standardisation as batch norm over a view of the weight, each output channel for itself."""
    w = F.batch_norm(m.w.reshape(1, len(m.w), -1), None, None, weight=m.gain, training=True, momentum=0.0, eps=1e-6)
    return F.conv2d(x, w.reshape_as(m.w), padding=1)


def normalised_linear(dim: int) -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(6, 8), dim=dim)


CASES = {
    "weight norm": Case(
        lambda: Net(
            lambda m, x: m.b(m.a(x).relu()), a=parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), b=nn.Conv2d(8, 4, 1)
        ),
        {
            "a": "8: a.bias:0 a.parametrizations.weight.original0:0 a.parametrizations.weight.original1:0 "
            "b.weight:1* @ b"
        },
    ),
    "weight norm of a depthwise convolution": Case(
        lambda: Net(
            lambda m, x: m.b(m.d(m.a(x))),
            a=nn.Conv2d(3, 8, 1),
            d=parametrizations.weight_norm(nn.Conv2d(8, 8, 3, groups=8)),
            b=nn.Conv2d(8, 4, 1),
        ),
        {
            "a": "8: a.bias:0 a.weight:0 b.weight:1* d.bias:0 d.parametrizations.weight.original0:0 "
            "d.parametrizations.weight.original1:0 @ b"
        },
    ),
    "weight norm along the inputs": Case(
        lambda: Net(lambda m, x: m.b(m.a(x)), a=nn.Linear(5, 6), b=normalised_linear(1)),
        {
            "a": "6: a.bias:0 a.weight:0 b.parametrizations.weight.original0:1* "
            "b.parametrizations.weight.original1:1 @ b"
        },
        {"b.parametrizations.weight.original1:0": "a dimension of the model's output"},
        shape=(2, 5),
    ),
    "weight norm of a consumer": Case(
        lambda: Net(lambda m, x: m.b(m.a(x)), a=nn.Linear(5, 6), b=normalised_linear(0)),
        {"a": "6: a.bias:0 a.weight:0 b.parametrizations.weight.original1:1* @ b"},
        shape=(2, 5),
        renormalised=True,
    ),
    "weights standardised": Case(
        lambda: Net(
            lambda m, x: m.b(standardised(m, m.a(x)).relu()),
            a=nn.Conv2d(3, 6, 1),
            w=nn.Parameter(torch.randn(8, 6, 3, 3)),
            gain=nn.Parameter(torch.rand(8)),
            b=nn.Conv2d(8, 4, 1),
        ),
        {"w": "8: b.weight:1* gain:0 w:0 @ b"},
        {"w:1": "statistics are taken over it", "a.weight:0": "is computed, not a parameter"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    check_groups(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str) -> None:
    check_exact(CASES[name])


def test_attributes_of_a_parametrized_module_follow() -> None:
    model, runs = make(CASES["weight norm of a depthwise convolution"])
    small = fk.apply(model, fk.trace(model, runs[0]).plan(keep_params=0.6))
    assert small.d.groups == small.d.in_channels == small.d.out_channels == len(small.d.weight) < 8


def test_what_a_parametrization_mixes_stays_and_folding_frees_it() -> None:
    model = plain(parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)))
    with pytest.raises(InputError, match=r"remove_parametrizations\(model\.0, 'weight'\)"):
        fk.trace(model, X)
    parametrize.remove_parametrizations(model[0], "weight")
    assert [g.name for g in fk.trace(model, X).groups] == ["0"]


def test_what_a_parametrization_computes_channel_by_channel_goes() -> None:
    """Each kernel is made orthogonal by itself."""
    model = plain(parametrizations.orthogonal(nn.Conv2d(3, 8, 3)))
    units = fk.trace(model, X)
    assert [(g.name, g.units, g.frozen) for g in units.groups] == [("0", 8, None)]
    plan = units.plan(keep_params=0.6)
    with plan.masked(model):
        assert difference(model, fk.apply(model, plan), X) < 1e-4
