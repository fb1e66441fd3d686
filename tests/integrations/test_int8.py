"""int8 after the cut, by what is maintained: torchao, of a module and of an exported graph.

(`torch.ao.quantization` is deprecated, and says that it will be removed.)
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.integrations.models import cut

pytest.importorskip("torchao")


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ["vit", "swin", "views"])  # its quantizer refuses torchvision's ResNets, cut or not
def test_exported_graph(name: str) -> None:
    """Weights and activations, calibrated: every convolution and linear layer of the graph."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    made = cut(name)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        program = torch.export.export(made.small, (made.x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        prepared = prepare_pt2e(program.module(), quantizer)
        prepared(made.x), prepared(made.more)
        quantised = convert_pt2e(prepared)
        assert 0 < far(quantised(made.more), made.small(made.more)) < 0.2
    held = [tensor for tensor in quantised.state_dict().values() if tensor.dtype == torch.int8]
    cut_shapes = set(made.shapes.values())
    assert held
    assert {tuple(tensor.shape) for tensor in held if tensor.ndim > 1} <= cut_shapes


@pytest.mark.parametrize("name", ["vit", "swin", "llama", "views", "divided"])
def test_linear_layers_of_a_module(name: str) -> None:
    """Weights of a module's linear layers: it is still the module, with its size sites."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    made = cut(name)
    quantised = copy.deepcopy(made.small)
    quantize_(quantised, Int8WeightOnlyConfig())
    changed = [m for m in quantised.modules() if isinstance(m, nn.Linear) and type(m.weight) is not nn.Parameter]
    assert changed
    with torch.no_grad():
        assert 0 < far(quantised(made.more), made.small(made.more)) < 0.05
