"""Where compensation may give a bias to weights that have none: anywhere, nowhere, or where the format has a place."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from fairkern.compact.built import built_with
from fairkern.compact.config import follow_config
from fairkern.model.described import described
from fairkern.model.fields import bias_fields, configurations
from fairkern.model.linear import adds_bias, bias_of, give_bias
from fairkern.model.raised import in_words
from fairkern.model.tensors import named_tensors
from fairkern.options import choose, flag
from fairkern.plans.renaming import Renaming
from fairkern.plans.serving import unlike_deci
from fairkern.types import Axis, ConfigChange, Plan, UnitMap


class Biases(enum.Enum):
    """Whether weights that have no bias get one: where what the model ships in has a place, anywhere, nowhere."""

    AUTO = "auto"
    ADDED = True
    NONE = False

    @classmethod
    def given(cls, value: Any) -> Biases:
        """The member that a caller names. Raises InputError."""
        if isinstance(value, str):
            return choose(cls, "biases", value)
        return cls(flag("biases", value, "'auto', True or False"))


@dataclass(frozen=True)
class Flag:
    """A truth value of the configuration, and the biases that a model built with `change` has besides."""

    change: ConfigChange
    biases: tuple[str, ...]


class Places:
    """The places for biases of one model that a plan cuts. Nothing is looked for before it is asked for.

    `AUTO` goes by what the model ships in. Of a model that is served as `deci` or `gguf` (`plan.request["serve"]`)
    the output projections of attention and the down projections of MLPs have a place, if it is one that deci can
    hold: other architectures of llama.cpp read no biases there. Of a model that its class makes from its
    configuration, what a field of that configuration gives biases; of any other, all.
    """

    def __init__(self, model: nn.Module, plan: Plan, units: UnitMap, asked: Biases) -> None:
        self._model, self._plan, self._units, self.asked = model, plan, units, asked
        served = plan.request.get("serve")
        self._served = served if isinstance(served, str) and served.partition(":")[0] in ("deci", "gguf") else None

    def why_not(self, axis: Axis) -> str:
        """Why what contracts this axis, and has no bias, is given none; empty where it may be given one."""
        if self.asked is Biases.ADDED:
            return ""
        if self.asked is Biases.NONE:
            return "biases=False"
        if self._served is not None:
            why = unlike_deci(self._units)
            return why or ("" if axis.tensor in self._last else f"{self._served} has no place for a bias there")
        if isinstance(self._flags, str) or any(_bias(axis) in found.biases for found in self._flags):
            return ""
        return "the configuration has no field that gives it one"

    def flags(self, given: Iterable[Axis]) -> tuple[Flag, ...]:
        """The fields that have to be set so that a model built from the configuration has the biases that these axes'
        weights are given, as far as there are any. Of several that give one, the one that brings the fewest."""
        wanted, found = self._new(given), list[Flag]()
        if not wanted or isinstance(self._flags, str):
            return ()
        for candidate in sorted(self._flags, key=lambda f: (len(f.biases), f.change.name)):
            if wanted.intersection(candidate.biases):
                found.append(candidate)
                wanted.difference_update(candidate.biases)
        return tuple(found)

    def unplaced(self, given: Iterable[Axis], flags: Iterable[Flag]) -> tuple[str, ...]:
        """Biases that these axes' weights are given and a model built from the configuration will not have, with these
        fields set: loaded by it, they are dropped. None where the configuration does not describe the model anyway."""
        new = self._new(given)
        if not new or isinstance(self._flags, str):
            return ()
        return tuple(sorted(new - {name for found in flags for name in found.biases}))

    def brought(self, given: Iterable[Axis]) -> set[str]:
        """Biases that a model has which it had not, where these axes' weights are given one."""
        return self._new(given) | {name for found in self.flags(given) for name in found.biases}

    def _new(self, given: Iterable[Axis]) -> set[str]:
        """Biases that the model has not."""
        return {_bias(axis) for axis in given} - self._plan.shapes.keys()

    @property
    def rule(self) -> str:
        """By what it was decided, for a report."""
        if self.asked is not Biases.AUTO:
            return "anywhere" if self.asked is Biases.ADDED else "none is added"
        if self._served is not None:
            why = unlike_deci(self._units)
            return f"none is added: {why}" if why else f"at output and down projections, for {self._served}"
        if "_flags" not in vars(self):
            return "none to add"
        if isinstance(self._flags, str):
            return f"anywhere: {self._flags}"
        return "where the configuration has a field for them"

    @cached_property
    def _last(self) -> frozenset[str]:
        """Weights that read heads or neurons of a layer: what an attention or MLP ends with."""
        groups = (self._units.groups[g] for g in self._units.prunable)
        return frozenset(a.axis.tensor for g in groups if g.kind in ("head", "neuron") for a in g.axes if a.consumer)

    @cached_property
    def _flags(self) -> tuple[Flag, ...] | str:
        """Fields that give biases; or why the model's format is not that of its configuration."""
        return flags_of(self._model)


def flags_of(model: nn.Module) -> tuple[Flag, ...] | str:
    """Truth values of the configuration with "bias" in their name that, turned round, give modules a bias and do
    nothing else; as a text, why the model is not described by a configuration.

    Found by building the model on the meta device as it is and with each of them turned round: no field is known by
    its name. One that also changes other tensors, classes or plain attributes of modules is left out, since what else
    it does is not known. Cost: building the model without its numbers, once and once for each field.
    """
    if next(configurations(model), None) is None:
        return "the model has no configuration"
    try:
        plain = built_with(model)
    except Exception as error:  # a class that is built otherwise
        return f"no model can be built from the configuration ({in_words(error, model, 80)})"
    missing = next((n for n in named_tensors(model).keys() - named_tensors(plain).keys() if not _is_bias(n)), None)
    if missing is not None:
        return f"a model built from the configuration has no {missing}"
    return tuple(_flags(model, plain))


def _flags(model: nn.Module, plain: nn.Module) -> Iterator[Flag]:
    before = described(plain)
    for change in (ConfigChange(name, value, not value) for name, value in bias_fields(model).items()):
        try:
            turned = built_with(model, [change])
        except Exception:  # a configuration that refuses it has no place there
            continue
        brings = tuple(name for name in named_tensors(turned) if name not in before.tensors)
        linear = all(_is_bias(name) and adds_bias(turned.get_submodule(name.rpartition(".")[0])) for name in brings)
        if brings and linear and described(turned, leave_out=brings) == before:
            yield Flag(change, brings)


def give_biases(small: nn.Module, plan: Plan, given: Iterable[Axis]) -> None:
    """Give the model that was cut a bias of zeros where these axes' weights, by their names before, have none."""
    renaming = Renaming(plan)
    for axis in given:
        later = renaming.after(axis.tensor)
        place = None if later is None else bias_of(small, Axis(later, axis.dim))
        if place is not None and place[0]._parameters[place[1]] is None:
            give_bias(place[0])


def fulfil(small: nn.Module, plan: Plan, flags: Sequence[Flag]) -> None:
    """Set the fields in the configuration of the model that was cut, and give it zeros for what else they bring."""
    renaming = Renaming(plan)
    for name in (name for found in flags for name in found.biases):
        later = renaming.after(name)
        if later is not None:
            module = small.get_submodule(later.rpartition(".")[0])
            if module._parameters.get("bias") is None:
                give_bias(module)
    if flags:
        follow_config(small, [found.change for found in flags])


def _bias(axis: Axis) -> str:
    return f"{axis.module}.bias".lstrip(".")


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"
