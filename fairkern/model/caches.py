"""Caches and recurrent states: what a model returns for its own next call, and that call.

The one place that says what of an output is a state; the trace, the proof and `difference` ask here.

- What the output holds under the name of an argument of `forward` that was given nothing, where that name speaks of a
  state (`past_key_values`, `cache`, `cache_params`, `state`, `mems`, …); the last states of an encoder, where `forward`
  takes what an earlier call made of it (`encoder_outputs`).
- At any depth an object whose class is called `…Cache`.
- The last items of a tuple or list, as many as `forward` has such arguments, if a second call that is given them runs
  and does not answer what it answers without them. Only that tells a cache from a result where nothing has a name.

All else is a result, which whoever calls the model may read; so is everything, if nothing else is left.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.errors import TimeLimitError
from fairkern.model.generation import can_generate, generated
from fairkern.model.names import speaks_of_state, words
from fairkern.model.nested import as_call, call_with, is_cache, own, tensors_within
from fairkern.model.raised import in_words

_OF_ENCODER = "encoder_last_hidden_state"  # what `encoder_outputs` begins with


@dataclass(frozen=True)
class Calls:
    """How a model is called: on its inputs and, where it returns a state or generates, on from there.

    `named`: what the output holds by name that is a state; `last`: the arguments that take its last items. `step`: what
    goes with the state in a further call, "last" (of every sequence the last place) or "whole" (the same inputs); ""
    where there is no such call. `loop`: the model generates by itself.
    """

    named: frozenset[str] = frozenset()
    last: tuple[str, ...] = ()
    step: str = ""
    loop: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether there is a call after the first."""
        return self.loop or bool(self.step)

    def results(self, output: Any) -> list[Tensor]:
        """The tensors of an output that are no state, also inside objects of its own classes, each once."""
        if self.last:
            kept = list(output[: -len(self.last)])
        else:
            entries = _entries(output)
            kept = [v for k, v in entries.items() if k not in self.named] if entries else [output]
        return list(tensors_within(kept, caches=False)) or list(tensors_within(output))

    def onward(self, model: nn.Module, inputs: Any, output: Any) -> list[Tensor]:
        """What comes of the model's own loop, or of a further call with the state in `output`, which it may write to;
        nothing where there is neither."""
        if self.loop:
            return generated(model, given(model, own(inputs)))
        return self.stepped(model, inputs, self.states(model, output)) if self.step else []

    def states(self, model: nn.Module, output: Any) -> dict[str, Any]:
        """What of an output goes back to the model, by argument."""
        if self.last:
            return dict(zip(self.last, output[-len(self.last) :], strict=True))
        entries = _entries(output)
        if self.named:
            return {name: entries[name] for name in sorted(self.named - {_OF_ENCODER})}
        held = [v for v in (entries.values() if entries else output if _listed(output) else ()) if is_cache(v)]
        takers = [name for name in _parameters(model) if {"cache", "past"} & words(name)]
        return {takers[0]: held[0]} if len(held) == len(takers) == 1 else {}

    def stepped(self, model: nn.Module, inputs: Any, states: Mapping[str, Any]) -> list[Tensor]:
        """The results of a further call."""
        arguments = given(model, own(inputs))
        if self.step == "last":
            arguments = _shortened(arguments, _parameters(model))
        return self.results(call_with(model, {**arguments, **states}))


def calls_of(model: nn.Module, inputs: Any, output: Any, onward: bool = True) -> Calls:
    """How `model` is called on from `output`, which it gave for `inputs`: what looks like a further call is tried.

    `onward=False`: only what of the output is a state.

    Cost: nothing where it returns no state, else one or two calls; with `onward=False` only where nothing else tells a
    state.
    """
    parameters, arguments = _parameters(model), given(model, inputs)
    entries = _entries(output)
    free = [name for name in parameters if speaks_of_state(name) and not _holds(arguments.get(name))]
    named = {name for name in free if _holds(entries.get(name))}
    if "encoder_outputs" in parameters and "encoder_outputs" not in arguments and _OF_ENCODER in entries:
        named.add(_OF_ENCODER)
    calls = Calls(frozenset(named) if named < entries.keys() else frozenset())
    with torch.no_grad():
        if _listed(output) and 0 < len(free) < len(output) and not any(map(is_cache, output)):
            found = _with_step(replace(calls, last=tuple(free)), model, inputs, output)
            return found if found.step and _told_apart(found, model, inputs, output) else calls
        return _with_step(calls, model, inputs, output) if onward else calls


def with_loop(calls: Calls, model: nn.Module, inputs: Any) -> tuple[Calls, list[Tensor], str | None]:
    """The same with the model's own loop, if it has one that runs on these inputs; what that gave, or why it does not.

    Cost: nothing where the model does not generate, else two calls.
    """
    if not can_generate(model):
        return calls, [], None
    calls, results = replace(calls, loop=True), []
    with torch.no_grad():
        problem = _problem(model, lambda: results.extend(calls.onward(model, inputs, None)))
    return (calls, results, None) if problem is None else (replace(calls, loop=False), [], problem)


def given(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """Inputs by the argument of `forward` that they are for; without those that have no name there."""
    call = as_call(model, inputs) or ()
    if isinstance(call, Mapping):
        return dict(call)
    try:
        signature = inspect.signature(model.forward)
        bound = signature.bind_partial(*call)
    except (TypeError, ValueError):
        return {}
    return {
        name: value
        for name, value in bound.arguments.items()
        if signature.parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    }


def given_states(model: nn.Module, inputs: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of caches and states among the inputs, with the argument that they are for."""
    for name, value in given(model, inputs).items():
        if is_cache(value) or (speaks_of_state(name) and name in _parameters(model)):
            yield from ((name, tensor) for tensor in tensors_within(value))


def _with_step(calls: Calls, model: nn.Module, inputs: Any, output: Any) -> Calls:
    """With the first kind of further call that runs, if any does."""
    states = calls.states(model, output)
    for step in ("last", "whole") if states else ():
        tried = replace(calls, step=step)
        if _problem(model, partial(tried.stepped, model, inputs, own(states))) is None:
            return tried
    return calls


def _told_apart(calls: Calls, model: nn.Module, inputs: Any, output: Any) -> bool:
    """Whether a further call answers otherwise with the state than without."""
    found = calls.stepped(model, inputs, own(calls.states(model, output)))
    without = calls.stepped(model, inputs, {})
    shapes = [t.shape for t in found] == [t.shape for t in without]
    return not shapes or any(not torch.equal(a, b) for a, b in zip(found, without, strict=True))


def _problem(model: nn.Module, call: Callable[[], object]) -> str | None:
    """What a call raises, in a line; None if it runs."""
    try:
        call()
    except (TimeLimitError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # somebody else's code, which was not asked for: then there is no such call
        return in_words(error, model)
    return None


def _shortened(arguments: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The last place of the sequence that goes on; without what goes with its places and may be left out."""
    long = {n: v for n, v in arguments.items() if isinstance(v, Tensor) and v.ndim >= 2 and v.shape[1] > 1}
    decoder = [n for n in long if n.startswith("decoder_input")]
    main = next(iter(decoder or long), None)
    if main is None:
        return dict(arguments)

    def stays(name: str) -> bool:
        if "label" in name:
            return False
        parameter = parameters.get(name)
        beside = (
            name in long
            and long[name].shape[:2] == long[main].shape[:2]
            and name.startswith("decoder_") == bool(decoder)
        )
        return not beside or parameter is None or parameter.default is inspect.Parameter.empty

    kept = {n: v for n, v in arguments.items() if n == main or stays(n)}
    return {**kept, main: long[main][:, -1:]}


def _holds(value: Any) -> bool:
    return next(tensors_within(value), None) is not None


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return {}


def _listed(output: Any) -> bool:
    return isinstance(output, (tuple, list)) and not hasattr(output, "_fields")


def _entries(output: Any) -> Mapping[str, Any]:
    """What an output holds by name; empty where nothing in it has one."""
    if isinstance(output, Mapping):
        return output
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    return {} if isinstance(output, (Tensor, tuple, list)) else dict(getattr(output, "__dict__", {}))
