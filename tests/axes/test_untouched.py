"""Tracing leaves the model and the process as they were, also when the forward pass raises, and says the same twice."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairkern.errors import InputError
from tests.axes.harness import Net, unit_map


def ordinary(m: Net, x: Tensor) -> Tensor:
    return m.b(F.dropout(F.relu(m.bn(m.a(x))), training=m.training))


def caching(m: Net, x: Tensor) -> Tensor:
    m.calls += 1
    m.seen.append(x)
    m.table["last"] = m.latest = m.a(x)
    m.late = torch.zeros(3)
    m.count.add_(1)
    m.total = m.total + 1
    return m.b(m.bn(m.latest))


def writing_parameters(m: Net, x: Tensor) -> Tensor:
    m.a.weight.data.clamp_(-0.01, 0.01)
    with torch.no_grad():
        m.b.weight[:, :2].mul_(3)
        m.bn.weight.copy_(torch.ones(8))
    m.b.bias.data = torch.ones(4)
    m.a.bias.requires_grad_(False)
    return m.b(m.bn(m.a(x)))


def replacing_modules(m: Net, x: Tensor) -> Tensor:
    m.bn = nn.BatchNorm2d(8)
    m.late = nn.Linear(2, 2)
    m.a.bias = nn.Parameter(torch.zeros(8))
    return m.b(m.bn(m.a(x)))


def switching(m: Net, x: Tensor) -> Tensor:
    m.bn.train()
    return m.b(m.bn(m.a(x)))


def drawing(m: Net, x: Tensor) -> Tensor:
    noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
    return m.b(m.bn(m.a(x)) + 0 * noise)


def failing(error: type[BaseException]) -> Callable[..., Tensor]:
    def run(m: Net, x: Tensor) -> Tensor:
        caching(m, x)
        writing_parameters(m, x)
        drawing(m, x)
        switching(m, x)
        raise error("half-way")

    return run


RUNS: dict[str, Callable[..., Tensor]] = {
    "ordinary": ordinary,
    "caching": caching,
    "writing parameters": writing_parameters,
    "replacing modules": replacing_modules,
    "switching modes": switching,
    "drawing random numbers": drawing,
    "raising": failing(RuntimeError),
    "interrupted": failing(KeyboardInterrupt),
}


def net(run: Callable[..., Any]) -> Net:
    torch.manual_seed(0)
    model = Net(
        run,
        a=nn.Conv2d(3, 8, 3),
        bn=nn.BatchNorm2d(8),
        b=nn.Conv2d(8, 4, 1),
        unused=nn.Linear(3, 3),  # so that a second run follows, in train mode
        count=torch.zeros(2),
        total=torch.full((2,), float("nan")),
        calls=0,
        seen=[1],
        table={"first": 1},
        latest=None,
    )
    model.bn.eval()
    model.unused.weight.requires_grad_(False)
    model.a.weight.grad = torch.randn_like(model.a.weight)
    model.a.register_forward_hook(lambda *_: None)
    return model


def state(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {"rng": torch.get_rng_state(), "python": random.getstate()}
    found["numpy"] = np.random.get_state()[1].copy()  # type: ignore[index, union-attr] # noqa: NPY002
    found["fast path"] = torch.backends.mha.get_fastpath_enabled()
    found["grad mode"] = torch.is_grad_enabled()
    for path, module in model.named_modules():
        found[f"{path} mode"] = module.training
        found[f"{path} hooks"] = {k: list(v) for k, v in vars(module).items() if k.endswith("hooks")}
        for name, value in vars(module).items():
            if not name.startswith("_") and name != "run":
                found[f"{path}.{name}"] = list(value) if isinstance(value, (list, dict)) else value
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[f"{name} identity"] = id(tensor)
        found[f"{name} value"] = tensor.detach().clone()
        found[f"{name} needs"] = tensor.requires_grad
        found[f"{name} grad"] = None if tensor.grad is None else tensor.grad.clone()
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, (Tensor, np.ndarray)):
        return np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return bool(a == b)


@pytest.mark.parametrize("run", RUNS)
def test_model_and_process_stay(run: str) -> None:
    model = net(RUNS[run])
    before = state(model)
    raised = {"raising": RuntimeError, "interrupted": KeyboardInterrupt}.get(run)
    with pytest.raises(raised, match="half-way") if raised else nullcontext():
        unit_map(model, [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))])
    after = state(model)
    assert before.keys() == after.keys()
    assert [key for key in before if not same(before[key], after[key])] == []


def test_inputs_stay() -> None:
    model = Net(lambda m, x: m.b(m.a(x.mul(1))), a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    x = torch.randn(4, 3, requires_grad=True)
    before = x.detach().clone()
    unit_map(model, [x])
    assert torch.equal(x, before)
    assert x.grad is None


def test_the_same_twice() -> None:
    model = net(ordinary)
    x = torch.randn(2, 3, 8, 8)
    first, second = unit_map(model, [x]), unit_map(model, [x + 1])
    assert repr(first) == repr(second)


def test_no_activation_survives() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def run(m: Net, x: Tensor) -> Tensor:
        for layer in (m.a, m.bn, m.b):
            gc.disable()  # references alone have to let go
            assert sum(ref() is not None for ref in alive) <= 1
            gc.enable()
            x = layer(x)
            alive.append(weakref.ref(x))
        return x

    unit_map(net(run), [torch.randn(2, 3, 8, 8)])
    gc.collect()
    assert all(ref() is None for ref in alive)


def test_the_map_holds_no_tensor() -> None:
    model = net(ordinary)
    refs = [weakref.ref(p) for p in model.parameters()]
    units = unit_map(model, [torch.randn(2, 3, 8, 8)])
    del model
    gc.collect()
    assert units.groups
    assert all(ref() is None for ref in refs)


def test_errors_of_the_model_pass_through() -> None:
    with pytest.raises(RuntimeError, match=r"shape|size"):
        unit_map(nn.Linear(3, 2), [torch.randn(2, 4)])


def test_a_model_that_catches_its_own_errors() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        try:
            m.a(x[:, :2])
        except RuntimeError:
            x = m.a(x)
        return m.b(x)

    units = unit_map(Net(run, a=nn.Linear(3, 8), b=nn.Linear(8, 2)), [torch.randn(4, 3)])
    assert [g.name for g in units.groups] == ["a"]
    assert [site.module for tap in units.groups[0].taps for site in tap.sites] == ["b"]


@pytest.mark.parametrize("inputs", [3, None, [], {"x": "text"}])
def test_inputs_without_a_tensor(inputs: Any) -> None:
    with pytest.raises(InputError, match="hold no tensor"):
        unit_map(nn.Linear(3, 2), [inputs])


@pytest.mark.parametrize("how", ["half", "autocast"])
def test_in_other_precision(how: str) -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            return m.b(F.relu(m.bn(m.a(x))))

    model = Net(run, a=nn.Conv2d(3, 8, 3), bn=nn.BatchNorm2d(8), b=nn.Conv2d(8, 4, 1))
    dtype = torch.bfloat16 if how == "half" else torch.float32
    units = unit_map(model.to(dtype), [torch.randn(2, 3, 8, 8, dtype=dtype)])
    assert [(g.name, g.units, len(g.axes), len(g.taps)) for g in units.groups] == [("a", 8, 7, 1)]


def test_inputs_elsewhere() -> None:
    with pytest.raises(InputError, match="is on meta"):
        unit_map(nn.Linear(3, 2), [torch.randn(2, 3, device="meta")])
