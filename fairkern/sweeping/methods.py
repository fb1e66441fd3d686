"""Methods that a sweep compares: options of planning under a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fairkern.allocate import Allocation, Planning, PlanningOptions
from fairkern.allocate.signals import ACTIVATION, L1, L2, RANDOM, RESIDUAL, SIGNALS, TAYLOR, WASSERSTEIN, is_function
from fairkern.errors import InputError
from fairkern.options import meant, short

DEFAULT = "default"
_ALONE: dict[str, Allocation | None] = {  # how a signal is spread over the groups where nothing else is said
    L1: Allocation.UNIFORM,  # what layers do not share a scale of
    L2: Allocation.UNIFORM,
    ACTIVATION: Allocation.UNIFORM,
    RANDOM: Allocation.UNIFORM,
    TAYLOR: Allocation.GLOBAL,  # in the currency of the loss
    WASSERSTEIN: Allocation.TOD,
    RESIDUAL: None,  # "priced" or "global", as plans by it are
}
_EXAMPLE = "['tod', 'residual', 'uniform-l1', {'name': 'mine', 'allocation': 'global', 'removal': function}]"
_EXPECTED = f"names, functions of a group, or options of planning with a name, for example {_EXAMPLE}"


@dataclass(frozen=True, eq=False)
class Method:
    """`planning`: options of `Scores.plan`."""

    name: str
    planning: Mapping[str, Any]


def methods_of(given: Any, common: Mapping[str, Any]) -> tuple[Method, ...]:
    """One for each that is given, `common` options of planning beneath its own, in the order given.

    A name is "default", what `prune` does by itself, "tod", the paper's method, a signal, or an allocation and a signal
    with a hyphen between them. A function gives the scores of a group's units, and is spread uniformly. A dictionary
    holds options of `Scores.plan`, and its `name`. A dictionary whose values are any of these names them by its keys.

    Raises InputError for what is none of these, for options that are wrong, and for a name that comes twice.
    """
    if isinstance(given, str) or is_function(given):
        given = [given]
    elif isinstance(given, Mapping):
        given = [given] if "name" in given else [_named(name, spec) for name, spec in given.items()]
    if not isinstance(given, Iterable) or getattr(given, "ndim", None) == 0:
        raise InputError(f"methods={short(given)} is a {type(given).__name__}; expected {_EXPECTED}")
    found = [_method(f"methods[{k}]", spec, common) for k, spec in enumerate(given)]
    if not found:
        raise InputError(f"methods= names none; expected {_EXPECTED}")
    names = [method.name for method in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"methods= has {twice!r} twice, which rows would not tell apart: give each a name of its own")
    return tuple(found)


def _named(name: Any, spec: Any) -> dict[str, Any]:
    """An entry of a dictionary of methods as one with its name."""
    if isinstance(spec, Mapping):
        return {"name": name, **spec}
    if isinstance(spec, str):
        return {"name": name, **_of_name(f"methods[{name!r}]", spec)}
    return {"name": name, **_of_function(f"methods[{name!r}]", spec)}


def _method(where: str, spec: Any, common: Mapping[str, Any]) -> Method:
    name: Any
    if isinstance(spec, str):
        name, own = spec, _of_name(where, spec)
    elif isinstance(spec, Mapping):
        name, own = spec.get("name"), {key: value for key, value in spec.items() if key != "name"}
        if not isinstance(name, str) or not name:
            raise InputError(f"{where} is a dictionary without a name; add 'name', as in {_EXAMPLE}")
        _check_keys(f"{where} ({name!r})", own)
    else:
        own = _of_function(where, spec)
        name = getattr(spec, "__name__", type(spec).__name__)
    planning = {**common, **own}
    Planning(**planning)
    return Method(name, planning)


def _of_name(where: str, name: str) -> dict[str, Any]:
    if name == DEFAULT:
        return {}
    if name == Allocation.TOD.value:
        return {"allocation": name}
    allocation, hyphen, signal = name.partition("-")
    kinds = [kind.value for kind in Allocation]
    if hyphen and allocation in kinds and signal in SIGNALS:
        return {"allocation": allocation, "removal": signal}
    if name in SIGNALS:
        kind = _ALONE[name]
        return {"removal": name} if kind is None else {"allocation": kind.value, "removal": name}
    known = [DEFAULT, Allocation.TOD.value, *SIGNALS, *(f"{a}-{s}" for a in kinds for s in SIGNALS)]
    raise InputError(
        f"{where}={name!r} is no method; expected 'default', 'tod', the signals {', '.join(SIGNALS)}, and these with "
        f"an allocation before ({', '.join(kinds)}), as 'uniform-l1'{meant(name, known)}"
    )


def _of_function(where: str, spec: Any) -> dict[str, Any]:
    if not is_function(spec):
        kind = f"the class {spec.__name__}" if isinstance(spec, type) else f"a {type(spec).__name__}"
        raise InputError(f"{where} is {kind}; expected a name, a function of a group, or options with a name")
    return {"allocation": Allocation.UNIFORM.value, "removal": spec}


def _check_keys(where: str, own: Mapping[Any, Any]) -> None:
    known = sorted(PlanningOptions.__annotations__)
    for key in own:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"options of planning are {', '.join(known)}"
            raise InputError(f"{where} has {short(key)}, which is no option of planning; {hint}")
