"""Sizes that a module's own code passes to views, splits and the like, put right while the module runs.

The module's class becomes a subclass of itself whose `forward` runs the original one under a function mode. The
mode counts the size-taking calls that the module makes itself (its submodules say when they run, by hooks) and
gives the calls that a plan lists the smaller numbers. Copies, pickles, compiles and exports as the module does.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn
from torch.overrides import _get_current_function_mode_stack

from fairkern.errors import InputError
from fairkern.model.own_modes import OwnMode
from fairkern.model.replacements import leave_modes_out
from fairkern.model.size_calls import SizeFunction, size_function
from fairkern.plans.renaming import Renaming
from fairkern.types import Plan, SizeChange

_Table = Mapping[int, tuple[SizeChange, ...]]  # by the number of the call


@dataclass
class _Sites:
    """What a module's calls are given instead, one table per plan that cut it, in order.

    `given`: None, or per call and place the number that the code passed on its own account (see `learn`).
    """

    tables: tuple[_Table, ...] = ()
    given: dict[tuple[int, int], set[int]] | None = field(default=None, compare=False)


class SizedForward(nn.Module):
    """Marks the subclasses made here; `_original` is the class that the module had."""

    _original: ClassVar[Any]
    _fairkern_sites: _Sites

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(2)
        assert isinstance(reduced, tuple)
        return (_remade, (self._original,), *reduced[2:])


def _remade(original: Any) -> nn.Module:
    made = _sized(original)
    return made.__new__(made)


@functools.cache
def _sized(original: Any) -> Any:
    """The subclass, under the name of the original: other code knows modules by the name of their class."""

    @functools.wraps(original.forward)
    def forward(self: SizedForward, *args: Any, **kwargs: Any) -> Any:
        with _Substitution(self._fairkern_sites):
            return original.forward(self, *args, **kwargs)

    names = {"forward": forward, "_original": original, "__module__": original.__module__, "__doc__": original.__doc__}
    return type(original.__name__, (SizedForward, original), {**names, "__qualname__": original.__qualname__})


class _Substitution(OwnMode):
    def __init__(self, sites: _Sites) -> None:
        super().__init__()
        self.sites = sites
        self.count = 0
        self.running = 0  # submodules that are running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        function = size_function(func)
        if function is None or self.running:
            return func(*args, **kwargs)
        k = self.count
        self.count += 1
        for table in self.sites.tables:
            if k in table:
                numbers = list(function.numbers(args, kwargs))
                for change in table[k]:
                    if not self._learned(change, function, numbers):
                        numbers[change.place] = _number(change, function, numbers)
                if numbers:
                    args, kwargs = function.with_numbers(args, kwargs, numbers)
        return func(*args, **kwargs)

    def _learned(self, change: SizeChange, function: SizeFunction, numbers: list[Any]) -> bool:
        """Whether the number is right by itself, or the cut led the module to another call: while learning only."""
        learned = self.sites.given
        if learned is None:
            return False
        given = numbers[change.place] if _fits(change, function, numbers) else change.after
        learned.setdefault((change.call, change.place), set()).add(given)
        return given == change.after


def _fits(change: SizeChange, function: SizeFunction, numbers: list[Any]) -> bool:
    return function.name == change.function and change.place < len(numbers)


def _number(change: SizeChange, function: SizeFunction, numbers: list[Any]) -> Any:
    """A number that was computed from the old size keeps its multiple: a batch folded into heads, say."""
    before, after = change.before // change.common, change.after // change.common
    if not _fits(change, function, numbers) or numbers[change.place] % before:
        raise InputError(
            f"{change.module or 'the model'}: call {change.call} is {function.name}{tuple(numbers)} here; when it "
            f"was traced it was {change.function} with {change.before} in place {change.place}. Trace and prune "
            "with inputs (and in the mode) that take the same path through its code"
        )
    return numbers[change.place] // before * after


def install(model: nn.Module, changes: Iterable[SizeChange]) -> None:
    """Make the modules of `model` run with these numbers."""
    by_module: dict[str, dict[int, list[SizeChange]]] = defaultdict(lambda: defaultdict(list))
    for change in changes:
        by_module[change.module][change.call].append(change)
    for path, calls in by_module.items():
        module = model.get_submodule(path)
        if not isinstance(module, SizedForward):
            original: Any = type(module)
            module.__class__ = _sized(original)
            assert isinstance(module, SizedForward)
            module._fairkern_sites = _Sites()
        table = {call: tuple(entries) for call, entries in calls.items()}
        module._fairkern_sites = _Sites((*module._fairkern_sites.tables, table))
        leave_modes_out(module)
        for inner in module.modules():
            if inner is not module and _enter not in inner._forward_pre_hooks.values():
                inner.register_forward_pre_hook(_enter)
                inner.register_forward_hook(_leave)


def _enter(module: nn.Module, args: Any) -> None:
    modes: list[Any] = _get_current_function_mode_stack()
    for mode in modes:
        if isinstance(mode, _Substitution):
            mode.running += 1


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    modes: list[Any] = _get_current_function_mode_stack()
    for mode in modes:
        if isinstance(mode, _Substitution):
            mode.running -= 1


def learn(model: nn.Module) -> None:
    """From now on leave a number that already is what it should be, and remember what each call was given."""
    for module in model.modules():
        if isinstance(module, SizedForward):
            module._fairkern_sites.given = {}


def needless(model: nn.Module, plan: Plan) -> set[tuple[str, int, int]]:
    """(module, call, place) of changes that every call since `learn` had made on its own account.

    Such a number comes from the shape of a tensor that has been cut; to scale it again would be wrong.
    """
    found, renaming = set(), Renaming(plan)
    for change in plan.sites:
        module = model.get_submodule(renaming.after(change.module) or "")
        assert isinstance(module, SizedForward)
        given = (module._fairkern_sites.given or {}).get((change.call, change.place))
        if given == {change.after}:
            found.add((change.module, change.call, change.place))
    return found
