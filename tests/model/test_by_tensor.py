"""What is known of tensors goes with them."""

import gc
import weakref

import torch

from fairkern.model.by_tensor import ByTensor


def test_tensors_are_told_apart_as_objects():
    a, b = torch.zeros(3), torch.zeros(3)
    known: ByTensor[str] = ByTensor()
    known[a] = "a"
    assert a in known
    assert b not in known
    assert known.get(b) is None
    assert known.get(b, "other") == "other"
    known[b] = "b"
    known[a] = "again"
    assert [(t is a, value) for t, value in known.items()] == [(True, "again"), (False, "b")]
    known.discard(b)
    known.discard(b)
    assert len(known) == 1


def test_an_entry_goes_with_its_tensor():
    known: ByTensor[torch.Tensor] = ByTensor()
    for _ in range(100):  # new tensors come to lie where old ones were
        tensor = torch.zeros(3)
        assert tensor not in known
        assert len(known) <= 1
        known[tensor] = torch.zeros(1)
    del tensor
    assert len(known) == 0
    assert list(known.items()) == []


def test_a_tensor_that_only_torch_holds_keeps_its_entry():
    parameter = torch.ones(2, requires_grad=True)
    product = parameter * parameter
    known: ByTensor[str] = ByTensor()
    known[parameter] = "held by the graph"
    del parameter
    assert [value for _, value in known.items()] == ["held by the graph"]
    (tensor,) = (t for t, _ in known.items())
    assert product.grad_fn is not None
    assert known.get(tensor) == "held by the graph"


def test_nothing_is_kept_alive_by_a_circle():
    gc.disable()
    try:
        tensor, value = torch.zeros(3), torch.zeros(3)
        known: ByTensor[torch.Tensor] = ByTensor()
        known[tensor] = value
        gone = weakref.ref(value)
        del known, value
        assert gone() is None
        del tensor
    finally:
        gc.enable()
