"""Linear layers and convolutions: how their weights lie, in how many groups they read, and which bias they add."""

from __future__ import annotations

from torch import nn

from fairkern.types import Axis


def transposed_linear(module: nn.Module | None) -> bool:
    """Whether this is the `Conv1D` of transformers, a linear layer with its weight transposed: known by name."""
    return type(module).__name__ == "Conv1D"


def groups_of(module: nn.Module) -> int:
    """In how many parts a module's inputs are read apart from each other: the groups of a convolution, else 1."""
    return module.groups if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed else 1


def adds_bias(module: nn.Module) -> bool:
    """A module that adds its `bias` to what it computes, also one that it is given later."""
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or transposed_linear(module)


def output_dim(module: nn.Module, axis: Axis) -> int | None:
    """The dimension of a weight that becomes the output of `module`, if `axis` is its input; None: unknown."""
    last = axis.tensor.rpartition(".")[2]
    if isinstance(module, nn.RNNBase):
        return 0 if last.startswith(("weight_ih", "weight_hh")) and axis.dim == 1 else None
    if last != "weight" or not adds_bias(module):
        return None
    out = made_dim(module)
    return out if axis.dim == 1 - out else None


def made_dim(module: nn.Module) -> int:
    """The dimension of the weight of a linear layer or convolution that becomes its output."""
    flipped = transposed_linear(module) or (isinstance(module, nn.modules.conv._ConvNd) and module.transposed)
    return 1 if flipped else 0


def bias_of(model: nn.Module, axis: Axis) -> tuple[nn.Module, str] | None:
    """The module and the name of the bias that is added to what this axis is contracted to, which may be None there.

    None: the consumer has no bias and can be given none.
    """
    module = model.get_submodule(axis.module)
    if output_dim(module, axis) is None:
        return None
    name = axis.tensor.rpartition(".")[2].replace("weight", "bias", 1)
    return (module, name) if name in module._parameters else None


def give_bias(module: nn.Module) -> None:
    """Register a bias of zeros on a module that has a weight and no bias, trained and placed like its weight."""
    weight = module.get_parameter("weight")
    zeros = weight.new_zeros(weight.shape[made_dim(module)]).detach()
    module.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
