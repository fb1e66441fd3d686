from __future__ import annotations

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fairkern.compact import apply, check, masked
from fairkern.compact.descriptors import kept, match, shapes_after, silenced
from fairkern.errors import InputError, PlanMismatchError
from fairkern.prove import difference
from fairkern.types import AttributeChange, Axis, Plan, PlanAxis, Silence
from tests.compact.untouched import assert_untouched, snapshot


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("inplace", [False, True])
def test_pruned_equals_masked(case, share, inplace):
    plan = case.plan(share)
    before = snapshot(case.model)
    with masked(case.model, plan), torch.no_grad():
        expected = case.model(case.inputs)
    assert_untouched(case.model, before)
    small = apply(case.model, plan, inplace=inplace)
    with torch.no_grad():
        found = small(case.inputs)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() / expected.abs().max() < 1e-9
    if inplace:
        assert small is case.model
    else:
        assert_untouched(case.model, before)


def test_masked_differs_from_whole(case):
    """The comparison above would mean nothing if masking changed nothing."""
    with torch.no_grad():
        whole = case.model(case.inputs)
        with masked(case.model, case.plan()):
            cut = case.model(case.inputs)
    assert (whole - cut).abs().max() / whole.abs().max() > 1e-3


def test_shapes_attributes_and_sizes(plain_case):
    plan = plain_case.plan()
    small = apply(plain_case.model, plan)
    assert {n: tuple(t.shape) for n, t in small.state_dict().items()} == shapes_after(plan)
    assert small.conv1.out_channels == small.bn.num_features == small.conv2.in_channels == 4
    assert small.conv2.out_channels == 3
    assert small.fc.in_features == 48
    assert plain_case.model.conv1.out_channels == 8


def test_copy_keeps_flags_types_and_hooks(buffers_case):
    class Marked(nn.Parameter):
        pass

    model = buffers_case.model
    model.b.weight = Marked(model.b.weight.detach())
    calls = []
    model.a.register_forward_hook(lambda *_: calls.append(1))
    model.b.train()
    small = apply(model, buffers_case.plan())
    assert type(small.b.weight) is Marked
    assert not small.a.weight.requires_grad
    assert small.a.bias.requires_grad
    assert not small.scale.requires_grad
    assert small.b.training
    assert not small.a.training
    small(buffers_case.inputs)
    assert calls == [1]
    assert "shift" not in small.state_dict()
    assert small.shift.shape == (4, 1)
    for tensor in small.state_dict().values():
        assert tensor.dtype == torch.float64


def test_memory_format_is_kept(bilinear_case, plain_case):
    plain_case.model.to(memory_format=torch.channels_last)
    for inplace in (False, True):
        small = apply(plain_case.model, plain_case.plan(), inplace=inplace)
        assert small.conv2.weight.is_contiguous(memory_format=torch.channels_last)
        assert not small.conv2.weight.is_contiguous()
    assert apply(bilinear_case.model, bilinear_case.plan()).form.t().is_contiguous()


def test_tied_tensors_stay_tied(tied_case):
    model = tied_case.model
    small = apply(model, tied_case.plan())
    assert small.head.weight is small.embedding.weight
    assert small.head.weight is not model.head.weight
    apply(model, tied_case.plan(), inplace=True)
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.shape == (11, 4)


def test_tied_tensor_under_its_other_name(tied_case):
    plan = tied_case.plan()
    for names in (("head.weight",), ("embedding.weight", "head.weight")):
        axes = tuple(PlanAxis(Axis(name, 1), a.length, a.removed, Silence.ZERO) for name in names for a in plan.axes)
        shapes = {"head.bias": (11,), **dict.fromkeys(names, (11, 8))}
        renamed = Plan(plan.model, plan.groups, axes, plan.attributes, shapes)
        with masked(tied_case.model, renamed):
            expected = tied_case.model(tied_case.inputs)
        assert torch.allclose(apply(tied_case.model, renamed)(tied_case.inputs), expected, rtol=0, atol=1e-12)
    other = (axes[0], PlanAxis(axes[1].axis, 8, axes[1].removed[1:], Silence.ZERO))
    with pytest.raises(PlanMismatchError, match="one tensor here"):
        match(tied_case.model, kept(Plan(plan.model, (), other, (), shapes)))


def test_one_tensor_is_read_once(plain_case, monkeypatch):

    module = sys.modules["fairkern.compact.cutting"]
    seen = []
    gather_many = module.gather_many
    monkeypatch.setattr(module, "gather_many", lambda items, **kw: seen.append(items) or gather_many(items, **kw))
    apply(plain_case.model, plain_case.plan())
    assert len(seen) == 1
    pointers = [weight.data_ptr() for weight, _ in seen[0]]
    assert len(set(pointers)) == len(pointers) == 8
    assert {len(index) for weight, index in seen[0] if weight.shape == (6, 8, 3, 3)} == {2}


def test_inplace_keeps_objects_and_optimizer(plain_case):
    model, plan = plain_case.model, plain_case.plan()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(plain_case.inputs).square().sum().backward()
    objects = {name: id(p) for name, p in model.named_parameters()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    apply(model, plan, inplace=True)
    assert {name: id(p) for name, p in model.named_parameters()} == objects
    for name, index in kept(plan).items():
        if name in grads:
            expected = grads[name]
            for dim, positions in index.items():
                expected = expected.index_select(dim, positions)
            assert torch.equal(model.get_parameter(name).grad, expected)
    optimizer.step()
    optimizer.zero_grad()
    model(plain_case.inputs).square().sum().backward()
    assert model.conv1.weight.grad.shape == (4, 3, 3, 3)


@pytest.mark.parametrize(("at_once", "calls"), [(1, 8), (3000, 4), (1 << 22, 1)])
def test_inplace_cuts_small_tensors_together(plain_case, monkeypatch, at_once, calls):
    model, plan = plain_case.model, plain_case.plan()
    model(plain_case.inputs).square().sum().backward()
    expected = apply(model, plan).state_dict()
    grads = {name: p.grad for name, p in model.named_parameters()}
    seen, module = [], sys.modules["fairkern.compact.cutting"]
    gather_many = module.gather_many
    monkeypatch.setattr(module, "gather_many", lambda items, **kw: seen.append(items) or gather_many(items, **kw))
    monkeypatch.setattr(sys.modules["fairkern.compact.applying"], "_AT_ONCE", at_once)
    small = apply(model, plan, inplace=True)
    values = [items for items in seen if items[0][0].data_ptr() not in {g.data_ptr() for g in grads.values()}]
    assert len(values) == calls
    for items in values:
        assert len(items) == 1 or sum(weight.nbytes for weight, _ in items) <= at_once
    assert all(torch.equal(value, expected[name]) for name, value in small.state_dict().items())
    for name, index in kept(plan).items():
        if name in grads:
            for dim, positions in index.items():
                grads[name] = grads[name].index_select(dim, positions)
            assert torch.equal(small.get_parameter(name).grad, grads[name])


def test_meta(plain_case):
    model = plain_case.model.to("meta")
    for inplace in (False, True):
        small = apply(model, plain_case.plan(), inplace=inplace)
        assert small.conv2.weight.is_meta
        assert small.conv2.weight.shape == (3, 4, 3, 3)


def test_nothing_removed_is_a_copy(plain_case):
    plan = plain_case.plan()
    empty = Plan(plan.model, plan.groups, (), (), plan.shapes)
    small = apply(plain_case.model, empty)
    assert torch.equal(small(plain_case.inputs), plain_case.model(plain_case.inputs))
    assert small.conv1.weight is not plain_case.model.conv1.weight


def test_failing_copy_leaves_the_model(plain_case):
    plain_case.model.extra = torch.randn(2, requires_grad=True) * 2  # not a leaf: deepcopy refuses it
    before = snapshot(plain_case.model)
    with pytest.raises(InputError, match="cannot be copied"):
        apply(plain_case.model, plain_case.plan())
    assert_untouched(plain_case.model, before)
    assert plain_case.model.conv1.out_channels == 8


def test_copy_that_ignores_the_memo_is_noticed(plain_case):
    class Stubborn(type(plain_case.model)):
        def __deepcopy__(self, memo):
            return copy.deepcopy(plain_case.model)

    model = Stubborn()
    plan = plain_case.plan()
    with pytest.raises(PlanMismatchError):
        apply(model, plan)


def test_sparse_tensor_is_refused_before_anything_is_cut(plain_case):
    model = plain_case.model
    model.conv2.weight = nn.Parameter(model.conv2.weight.detach().to_sparse())
    before = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for inplace in (False, True):
        with pytest.raises(InputError, match=r"conv2\.weight"):
            apply(model, plain_case.plan(), inplace=inplace)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == before


def test_check_names_the_first_axis_that_differs(plain_case):
    plan = plain_case.plan()
    other = copy.deepcopy(plain_case.model)
    other.conv2 = nn.Conv2d(8, 7, 3, padding=1, bias=False)
    for act in (lambda: check(other, plan), lambda: apply(other, plan, inplace=True)):
        with pytest.raises(PlanMismatchError, match=r"conv2\.weight dim 0 has 7 positions here, the plan expects 6"):
            act()
    with pytest.raises(PlanMismatchError, match=r"conv2\.weight"), masked(other, plan):
        raise AssertionError("not reached")


@pytest.mark.parametrize("inplace", [False, True])
def test_check_refuses_a_model_that_was_pruned_already(plain_case, inplace):
    plan = plain_case.plan()
    small = apply(plain_case.model, plan, inplace=inplace)
    with pytest.raises(PlanMismatchError, match=r"conv1\.weight dim 0 has 4 .* expects 8.*already"):
        check(small, plan)


def test_check_other_differences(plain_case):
    plan = plain_case.plan()
    model = copy.deepcopy(plain_case.model)
    model.register_buffer("more", torch.zeros(2), persistent=False)
    with pytest.raises(PlanMismatchError, match="more of shape"):
        check(model, plan)
    model = copy.deepcopy(plain_case.model)
    model.bn = nn.Identity()
    with pytest.raises(PlanMismatchError, match=r"bn\.weight of shape \(8,\)"):
        check(model, plan)
    model = copy.deepcopy(plain_case.model)
    model.conv1.weight = nn.Parameter(model.conv1.weight.detach()[..., 0])
    with pytest.raises(PlanMismatchError, match=r"conv1\.weight has shape"):
        check(model, plan)
    model = copy.deepcopy(plain_case.model)
    model.conv1.out_channels = 9
    with pytest.raises(PlanMismatchError, match=r"conv1\.out_channels is 9 here, the plan expects 8"):
        check(model, plan)
    foreign = Plan(plan.model, (), (), (AttributeChange("gone", "size", 2, 1),), plan.shapes)
    with pytest.raises(PlanMismatchError, match="no such module"):
        check(plain_case.model, foreign)
    with pytest.raises(InputError, match="lazy"):
        check(nn.LazyLinear(3), plan)


@pytest.mark.parametrize(
    "axis",
    [
        PlanAxis(Axis("nowhere", 0), 8, np.array([1]), Silence.NONE),
        PlanAxis(Axis("bn.weight", 1), 8, np.array([1]), Silence.NONE),
        PlanAxis(Axis("bn.weight", 0), 9, np.array([1]), Silence.NONE),
        PlanAxis(Axis("bn.weight", 0), 8, np.array([8]), Silence.NONE),
        PlanAxis(Axis("bn.weight", 0), 8, np.array([-1]), Silence.NONE),
        PlanAxis(Axis("bn.weight", 0), 8, np.array([2, 1]), Silence.NONE),
        PlanAxis(Axis("bn.weight", 0), 8, np.array([1, 1]), Silence.NONE),
        PlanAxis(Axis("bn.weight", 0), 8, np.arange(8), Silence.NONE),
    ],
)
def test_plan_that_contradicts_itself(plain_case, axis):
    plan = plain_case.plan()
    broken = Plan(plan.model, plan.groups, (axis,), (), plan.shapes)
    with pytest.raises(PlanMismatchError):
        check(plain_case.model, broken)


def test_descriptors(plain_case):
    plan = plain_case.plan(only=1)
    gone = plan.groups[1].removed
    stays = np.setdiff1d(np.arange(6), gone)
    assert kept(plan).keys() == {"conv2.weight", "fc.weight"}
    assert kept(plan)["conv2.weight"][0].tolist() == stays.tolist()
    assert kept(plan)["fc.weight"][1].tolist() == [16 * u + i for u in stays for i in range(16)]
    assert silenced(plan, Silence.ZERO).keys() == {"fc.weight"}
    assert silenced(plan, Silence.ZERO)["fc.weight"][1].dtype == torch.int64


def test_an_axis_in_two_entries(plain_case):
    plan = plain_case.plan()
    halves = tuple(replace(a, removed=part) for a in plan.axes for part in (a.removed[::2], a.removed[1::2]))
    split = replace(plan, axes=halves)
    for of in (kept, lambda plan: silenced(plan, Silence.ZERO)):
        one, two = of(plan), of(split)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[n][d], two[n][d]) for n in one for d in one[n])


def test_difference_of_pruned_and_whole(plain_case):
    small = apply(plain_case.model, plain_case.plan())
    assert difference(plain_case.model, small, plain_case.inputs) > 1e-3
