"""BatchNorm inside the pass: the same values forward, the same gradients, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fairkern.capture.norms import affine_norms


def trained(norm: nn.Module, channels: int) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    norm.running_mean.copy_(torch.randn(channels, generator=generator))
    norm.running_var.copy_(torch.rand(channels, generator=generator) + 0.1)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm.eval().requires_grad_(False)


def through(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of a fixed combination of it."""
    x = x.detach().requires_grad_()
    y = model(x)
    along = torch.linspace(-1, 1, y.numel(), dtype=torch.float32).view(y.shape).to(y.dtype)
    return y.detach(), torch.autograd.grad(y, x, along)[0]


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(5), (7, 5)),
        (nn.BatchNorm1d(5), (7, 5, 3)),
        (nn.BatchNorm2d(5), (2, 5, 3, 4)),
        (nn.BatchNorm2d(5, affine=False), (2, 5, 3, 4)),
        (nn.BatchNorm3d(5, eps=0.1), (2, 5, 3, 2, 2)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients_are_those_of_the_layer(norm, shape, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(trained(norm, 5))
    model.to(dtype if dtype == torch.float64 else torch.float32)
    x = torch.randn(shape).to(dtype)
    for layout in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
        expected = through(model, layout)
        with affine_norms(model):
            assert "forward" in vars(model[0])
            actual = through(model, layout)
        assert torch.equal(actual[0], expected[0])
        assert actual[1].dtype == dtype
        torch.testing.assert_close(actual[1], expected[1])
    model.to(torch.float32)


class _Own(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_other_layers_are_left_alone():
    patched = nn.BatchNorm2d(3).eval()
    patched.forward = torch.relu
    model = nn.ModuleList(
        [nn.BatchNorm2d(3).train(), nn.BatchNorm2d(3, track_running_stats=False).eval(), _Own(3).eval(), patched]
    )
    before = [dict(vars(layer)) for layer in model]
    with affine_norms(model):
        assert [dict(vars(layer)) for layer in model] == before
    assert patched.forward is torch.relu


def test_the_layer_is_itself_again_after_a_failure():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).eval()
    with pytest.raises(ValueError, match="4D"), affine_norms(model):
        model(torch.zeros(2, 3, requires_grad=True))
    assert all("forward" not in vars(layer) for layer in model)
