"""What a user's own function measures of a model: run in one place, and its numbers looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fairkern import options
from fairkern.errors import InputError
from fairkern.model.untouched import unchanged, valueless
from fairkern.surroundings import stage

Evaluate = Callable[[nn.Module], Any]
"""A function of a model that gives a number, or numbers by name."""

EXPECTED = "a function of a model that gives a number, or numbers by name such as {'top1': 0.93}"
SINGLE = "evaluation"  # the name of a measure that comes without one
OWN = (
    *("method", "seed", "budget", "by", "kept", "params", "flops", "seconds"),
    *("latency_ms", "latency_predicted_ms"),
)  # what reports and tables say beside measures


def check_evaluate(evaluate: object, name: str = "evaluate") -> None:
    """Raises InputError for what is no function; None is none."""
    if evaluate is not None:
        options.function(name, evaluate, EXPECTED)


@stage
def measured(evaluate: Evaluate, model: nn.Module) -> dict[str, float]:
    """What `evaluate(model)` gives, by name: what it names itself, or for a number the name of the function, as
    `{"top1": 0.93}` of `def top1(model)`, and "evaluation" where it has none (a lambda, a method) or is `evaluate`.

    The model is handed over in eval mode, gradients as its caller has them. Modes, buffers, attributes, gradients,
    where the weights lie and the random states of the process are put back, so that each call begins with the same
    ones; weights have to be left alone. Numbers may be of any library, tensors without dimensions of any device.

    Raises InputError for what is no function, gives no numbers (None, NaN, infinity, a truth value), names one as
    reports name theirs, or writes to the weights, and for a lazy module that has not run. What `evaluate` raises passes
    through.
    """
    options.function("evaluate", evaluate, EXPECTED)
    options.instance("model", model, nn.Module, options.MODEL)
    lazy = next((name for name, parameter in model.named_parameters() if is_lazy(parameter)), None)
    if lazy is not None:
        raise InputError(f"{lazy} has no shape yet: run the lazy module once before the model is evaluated")
    with unchanged(model), torch.set_grad_enabled(torch.is_grad_enabled()), _same_weights(model):
        model.eval()
        return measures(evaluate(model), _name_of(evaluate))


def _name_of(evaluate: Evaluate) -> str:
    """What a number is called that a function gives by itself."""
    name = evaluate.__name__ if isinstance(evaluate, FunctionType) else ""
    return name if name.isidentifier() and name not in ("evaluate", *OWN) and name[0] != "_" else SINGLE


def measures(given: Any, single: str = SINGLE) -> dict[str, float]:
    """Numbers by name, of what an evaluation gave; `single`: the name of one that has none. Raises InputError for what
    is none."""
    if not isinstance(given, Mapping):
        return {single: _number("what evaluate gave", given)}
    if not given:
        raise InputError("evaluate gave a dictionary without entries; expected numbers by name, as {'top1': 0.93}")
    for name in given:
        if not isinstance(name, str) or not name:
            raise InputError(f"evaluate gave a measure called {options.short(name)}; expected a name, as {{'top1': …}}")
        if name in OWN:
            raise InputError(
                f"evaluate gave a measure called {name!r}, which reports say themselves: name it otherwise"
            )
    return {name: _number(f"the measure {name!r} that evaluate gave", value) for name, value in given.items()}


def _number(what: str, value: Any) -> float:
    expected = "a finite number, or numbers by name such as {'top1': 0.93}"
    if isinstance(value, torch.Tensor) and value.dim() > 0:
        shape = "×".join(map(str, value.shape))
        raise InputError(f"{what} is a tensor of shape {shape}; expected {expected}: take .item(), or its mean")
    return options.real(what, value, expected)


class _same_weights:
    """Within, a model's weights may be moved, which is put back, but not written to, which is an InputError."""

    def __init__(self, model: nn.Module) -> None:
        held = [(name, p) for name, p in model.named_parameters() if not valueless(p)]
        self._held = [(name, parameter, parameter.data, parameter._version) for name, parameter in held]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for _, parameter, data, _ in self._held:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
        changed = [name for name, parameter, _, version in self._held if parameter._version != version]
        if changed and error is None:
            raise InputError(
                f"evaluate, or the model as it ran, wrote to weights ({options.several(changed)}) that are used "
                "afterwards, and hold what was written now: load them again, and give it a copy.deepcopy(model)"
            )
