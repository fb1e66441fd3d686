from __future__ import annotations

from contextlib import ExitStack, nullcontext
from copy import deepcopy
from itertools import permutations

import pytest
import torch

from fairkern.compact import masked
from fairkern.compact.cutting import gather_dense
from fairkern.compact.descriptors import silenced
from fairkern.errors import PlanMismatchError
from fairkern.types import Silence
from tests.compact.untouched import assert_untouched, snapshot


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_everything_comes_back(case, error):
    plan = case.plan(0.7)
    before = snapshot(case.model)
    with pytest.raises(error) if error else nullcontext(), masked(case.model, plan) as model:
        assert model is case.model
        for name, index in silenced(plan, Silence.ZERO).items():
            for dim, positions in index.items():
                assert not model.get_parameter(name).index_select(dim, positions).any()
        if error:
            raise error
    assert_untouched(case.model, before)


def test_signed_zeros_and_nan_come_back_bitwise(plain_case):
    with torch.no_grad():
        plain_case.model.fc.weight.view(-1)[::3] = -0.0
        plain_case.model.fc.weight.view(-1)[1::3] = float("nan")
    before = snapshot(plain_case.model)
    with masked(plain_case.model, plain_case.plan(0.7)):
        pass
    assert_untouched(plain_case.model, before)


def test_nested_and_entered_again(bilinear_case):
    model = bilinear_case.model
    before = snapshot(model)
    outer, inner = masked(model, bilinear_case.plan(0.4)), masked(model, bilinear_case.plan(0.7, seed=1))
    for _ in range(2):
        with outer:
            between = snapshot(model)
            with inner, inner:
                pass
            assert_untouched(model, between)
        assert_untouched(model, before)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_what_has_an_origin_comes_back_from_there(case, error, monkeypatch):
    """Nothing is saved of a copy in float64: the model itself holds its numbers."""
    model, plan = case.model, case.plan(0.7)
    double = deepcopy(model).double()
    own = dict(model.named_parameters())
    silent = silenced(plan, Silence.ZERO)
    names = sorted(name for name in own if name in silent)
    origins = {id(double.get_parameter(name)): own[name].detach() for name in names[1:]}
    saved = []
    monkeypatch.setattr(
        "fairkern.compact.mask.gather_dense", lambda jobs, backend: saved.extend(jobs) or gather_dense(jobs, backend)
    )
    before = snapshot(double)
    with pytest.raises(error) if error else nullcontext(), masked(double, plan, origins=origins):
        assert {data.data_ptr() for data, _ in saved} == {double.get_parameter(names[0]).data_ptr()}
        for name, index in silent.items():
            for dim, positions in index.items():
                assert not double.get_parameter(name).index_select(dim, positions).any()
        if error:
            raise error
    assert_untouched(double, before)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_masks_are_left_in_any_order(bilinear_case, order):
    """As by tasks of one thread that take turns: those that are on silence what they do, and nothing else."""
    model = bilinear_case.model
    before, untouched = snapshot(model), deepcopy(model)
    plans = [bilinear_case.plan(share, seed=seed) for seed, share in enumerate((0.4, 0.7, 0.6))]
    masks = [masked(model, plan) for plan in plans]
    for mask in masks:
        mask.__enter__()
    for number, one in enumerate(order):
        masks[one].__exit__(None, None, None)
        reference = deepcopy(untouched)
        with ExitStack() as stack:
            for other in sorted(order[number + 1 :]):
                stack.enter_context(masked(reference, plans[other]))
            for name, tensor in reference.state_dict().items():
                assert torch.equal(tensor, model.state_dict()[name]), name
    assert_untouched(model, before)


def test_changes_to_what_stays_are_kept(plain_case):
    model, plan = plain_case.model, plain_case.plan(only=0)
    dim, gone = next(iter(silenced(plan, Silence.ZERO)["conv2.weight"].items()))
    was = model.conv2.weight.detach().clone()
    with masked(model, plan), torch.no_grad():
        model.conv2.weight.add_(1)
    expected = (was + 1).index_copy(dim, gone, was.index_select(dim, gone))
    assert torch.equal(model.conv2.weight, expected)


def test_failure_on_entry_restores(plain_case, monkeypatch):
    before = snapshot(plain_case.model)
    fill = torch.Tensor.index_fill_
    calls = []

    def failing(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return fill(self, *args)

    monkeypatch.setattr(torch.Tensor, "index_fill_", failing)
    with pytest.raises(MemoryError), masked(plain_case.model, plain_case.plan()):
        raise AssertionError("not reached")
    assert len(calls) == 2
    assert_untouched(plain_case.model, before)


def test_backward_works_inside(plain_case):
    plan = plain_case.plan()
    with masked(plain_case.model, plan):
        plain_case.model(plain_case.inputs).sum().backward()
    dim, gone = next(iter(silenced(plan, Silence.ZERO)["fc.weight"].items()))
    assert plain_case.model.fc.weight.grad.index_select(dim, gone).any()


def test_other_model_is_refused_untouched(plain_case, tied_case):
    before = snapshot(plain_case.model)
    with pytest.raises(PlanMismatchError), masked(plain_case.model, tied_case.plan()):
        raise AssertionError("not reached")
    assert_untouched(plain_case.model, before)
