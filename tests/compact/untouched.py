"""Whether a model is, byte for byte, what it was."""

from __future__ import annotations

from torch import nn


def snapshot(model: nn.Module) -> dict[str, tuple]:
    """What must not change: identity, memory, version, requires_grad, gradient, strides, bytes."""
    return {
        name: (id(t), t.data_ptr(), t._version, t.requires_grad, id(t.grad), t.stride(), t.detach().numpy().tobytes())
        for name, t in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    }


def assert_untouched(model: nn.Module, before: dict[str, tuple]) -> None:
    after = snapshot(model)
    assert after.keys() == before.keys()
    for name, was in before.items():
        now = after[name]
        assert now == was, name
