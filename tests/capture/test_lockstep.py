"""Passes that move through two models together: where they stop, what they leave, how they end."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.capture.joint import joint_moments, reading_points
from fairkern.capture.lockstep import Walk
from fairkern.compensate.refit import other_taps
from tests.axes.harness import Net

Batches = list[tuple[Tensor, Tensor]]


def chain(run: Callable[[nn.Module, Tensor], Tensor] | None = None) -> nn.Module:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(5, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 3)}
    run = run or (lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x))))))
    return Net(run, **layers).double().eval()


def data(*sizes: int) -> Batches:
    x = torch.randn(sum(sizes), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return list(zip(x.split(list(sizes)), (torch.arange(len(x)) % 3).split(list(sizes)), strict=True))


def started(model: nn.Module, changed: nn.Module, loader: Batches) -> tuple[list[str], object]:
    units = fk.trace(model, loader[0][0])
    points = reading_points(model, loader, units, other_taps(model, units))
    return [p.name for p in points], joint_moments(model, changed, loader, units, points)


def test_every_layer_is_met_in_order_and_moments_are_those_of_all_batches() -> None:
    model, changed, loader = chain(), chain(), data(7, 12, 1)
    with torch.no_grad():
        changed.a.weight += 0.1
    names, steps = started(model, changed, loader)
    assert names == ["a:input", "b:input", "c:input"]
    found = dict(steps)
    assert list(found) == names
    assert found["a:input"] is None  # nothing differs there
    x = torch.cat([batch for batch, _ in loader])
    with torch.no_grad():
        a, b = (torch.relu(m.a(x)).numpy() for m in (model, changed))
    joint = found["b:input"]
    assert joint.count == 20
    np.testing.assert_allclose(joint.cross, a.T @ b, rtol=1e-12)
    np.testing.assert_allclose(joint.gram, b.T @ b, rtol=1e-12)
    np.testing.assert_allclose(joint.total, a.sum(0), rtol=1e-12)
    np.testing.assert_allclose(joint.changed, b.sum(0), rtol=1e-12)


def test_a_weight_changed_at_its_point_holds_for_the_rest_of_the_pass() -> None:
    model, changed, loader = chain(), chain(), data(9, 4)
    with torch.no_grad():
        changed.a.weight += 0.1
    for name, joint in started(model, changed, loader)[1]:
        if name == "b:input":
            with torch.no_grad():
                changed.b.weight.zero_()
                changed.b.bias.fill_(2.0)
        if name == "c:input":
            np.testing.assert_array_equal(joint.gram, np.full((8, 8), 4.0 * 13))


def test_a_walk_that_is_given_up_leaves_no_thread_and_no_hook() -> None:
    model, changed, loader = chain(), chain(), data(9, 4)
    with torch.no_grad():
        changed.a.weight += 0.1
    before = threading.active_count()
    steps = started(model, changed, loader)[1]
    next(steps)
    assert threading.active_count() == before + 4
    steps.close()
    assert threading.active_count() == before
    assert not any(m._forward_pre_hooks for net in (model, changed) for m in net.modules())


def test_what_the_model_raises_passes_through() -> None:
    class Own(Exception):
        pass

    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = torch.relu(m.a(x))
        if len(x) == 4 and m.fails:
            raise Own
        return m.c(torch.relu(m.b(h)))

    model, changed, loader = chain(run), chain(run), data(9, 4)
    model.fails, changed.fails = False, True
    with torch.no_grad():
        changed.a.weight += 0.1
    before = threading.active_count()
    with pytest.raises(Own):
        list(started(model, changed, loader)[1])
    assert threading.active_count() == before


def test_batches_that_go_different_ways_are_refused() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = torch.relu(m.a(x))
        return m.c(torch.relu(m.b(h) if len(x) > 4 else h))

    model, changed = chain(run), chain(run)
    with pytest.raises(fk.InputError, match="one after the other"):
        list(started(model, changed, data(9, 4))[1])
    units = fk.trace(model, data(9)[0][0])
    points = reading_points(model, data(9), units, [])
    with pytest.raises(fk.InputError, match="do not reach b:input"):
        list(joint_moments(model, changed, data(4, 3), units, points))


@pytest.mark.parametrize("written", [False, True])
def test_what_is_read_again_is_summed_once_unless_it_was_written_to(written: bool) -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = m.norm(m.b(torch.relu(m.a(x))))
        first = m.q(h)
        return m.c(first * m.k(h.mul_(2) if written else h))

    torch.manual_seed(0)
    layers = {"a": nn.Linear(5, 8), "b": nn.Linear(8, 8), "norm": nn.LayerNorm(8), "q": nn.Linear(8, 4)}
    model = Net(run, **layers, k=nn.Linear(8, 4), c=nn.Linear(4, 3)).double().eval()
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.a.weight += 0.1
    names, steps = started(model, changed, data(9, 4))
    assert {"q:input", "k:input"} <= set(names)
    found = dict(steps)
    assert (found["q:input"] is found["k:input"]) is not written
    if written:
        torch.testing.assert_close(found["k:input"].gram, 4 * found["q:input"].gram)


def test_a_layer_that_runs_twice_is_not_among_those_beside_the_taps() -> None:
    model = chain(lambda m, x: m.c(torch.relu(m.b(m.b(torch.relu(m.a(x)))))))
    units = fk.trace(model, data(3)[0][0])
    others = [tap for tap in other_taps(model, units) if tap.sites[0].module == "b"]
    points = reading_points(model, data(3), units, others)
    assert sum(p.blocks == () for p in points) == 0


def test_what_several_layers_read_is_met_once_and_let_go_of() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = torch.relu(m.a(x))
        return m.d(m.b(h) + m.c(h))

    torch.manual_seed(0)
    layers = {"a": nn.Linear(5, 8), "b": nn.Linear(8, 4), "c": nn.Linear(8, 4), "d": nn.Linear(4, 3)}
    model, loader = Net(run, **layers).double().eval(), data(6, 3)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.a.weight += 0.1
    names, steps = started(model, changed, loader)
    met = []
    for name, _ in steps:
        met.append(name)
        held = [len(w._listener.heard) for w in gc.get_objects() if type(w) is Walk and w._thread.is_alive()]
        assert held == [1] * 4
    assert met == names
    assert len(met) == len(set(met)) == 3  # b and c read one tap


def test_passes_that_switch_modes_and_draw_at_random_do_not_see_those_of_others() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        m.train()
        read = torch.relu(m.a(x[torch.randperm(len(x))[:3]]))
        assert m.training
        out = m.c(torch.relu(m.b(read * torch.rand(()).double())))
        assert m.training
        m.eval()
        return out

    model = chain(run)
    changed = copy.deepcopy(model)
    loader, state = data(4, 6, 5), torch.get_rng_state()
    names, moments = started(model, changed, loader)
    with torch.no_grad():
        changed.b.weight[0] = 0.0  # so that only what follows differs
    found = dict(moments)
    assert set(found) == set(names)
    assert [name for name, joint in found.items() if joint is not None] == ["c:input"]
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
