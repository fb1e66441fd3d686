"""A model as its configuration would have it built anew, with the numbers that it holds."""

from __future__ import annotations

from torch import Tensor, nn

from fairkern.compact.built import built_with


def rebuilt(model: nn.Module) -> nn.Module:
    """What the model's own configuration builds, sharing the model's tensors, in eval mode: what loading it would give.

    Raises what the class raises, and AttributeError or KeyError where the model lacks something that is built.
    """
    made = built_with(model)
    for path, module in made.named_modules():
        source = model.get_submodule(path)
        for held, given in (
            (module._parameters, source._parameters),
            (module._buffers, source._buffers),
            (vars(module), vars(source)),
        ):
            for name, value in list(held.items()):
                if isinstance(value, Tensor) and value.is_meta:
                    held[name] = given[name]
    if hasattr(model, "generation_config"):
        vars(made)["generation_config"] = model.generation_config
    return made.eval()
