"""Sizes that a module's own code passes to views, splits and the like, put right while the module runs.

The module's class becomes a subclass of itself whose `forward` runs the original one under a function mode. The mode
looks where in its code the module makes a size-taking call (its submodules say when they run, by hooks) and gives the
calls that a plan lists the smaller numbers. Copies, pickles, compiles and exports as the module does; what gradient
checkpointing calls again runs under the mode again.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType, FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fairkern.compact.recomputed import OwnCalls, Under, enter, leave, under
from fairkern.compact.symbolic import Proxy, traced
from fairkern.errors import InputError
from fairkern.model.call_places import begins, place, place_of, way, within
from fairkern.model.in_graphs import written_by
from fairkern.model.replacements import leave_modes_out
from fairkern.model.size_calls import BY_NAME, Asked, SizeFunction, size_function
from fairkern.model.unscripted import Unscripted
from fairkern.plans.renaming import Renaming
from fairkern.types import Passed, Plan, SiteNumber, SizeChange


@dataclass(frozen=True)
class _Table:
    """What one plan changes in a module.

    `changes`: by place and number of the call. `seen`: the places that its trace saw, None where that is not known.
    `alike`: by call within its function, what is changed wherever that function is called from; None where it depends.
    `sizes`: those that change. `asked`: some are answers to the code's own questions.
    """

    changes: Mapping[tuple[str, int | None], tuple[SizeChange, ...]]
    seen: frozenset[str] | None
    alike: Mapping[str, tuple[SizeChange, ...] | None]
    sizes: tuple[int, ...]
    asked: bool

    @classmethod
    def of(cls, changes: Mapping[tuple[str, int | None], Sequence[SizeChange]], seen: Iterable[str] | None) -> _Table:
        by_call = {call: tuple(entries) for call, entries in changes.items()}
        counted = {at for at, number in by_call if number is not None}
        alike: dict[str, tuple[SizeChange, ...] | None] = {}
        for at in seen or ():
            entries = by_call.get((at, None), ())
            same = alike.setdefault(within(at), entries)
            if at in counted or same is None or _sizes(same) != _sizes(entries):
                alike[within(at)] = None
        sizes = sorted({change.before for entries in by_call.values() for change in entries})
        asked = any(BY_NAME[change.function].kind == "asked" for entries in by_call.values() for change in entries)
        return cls(by_call, None if seen is None else frozenset(seen), alike, tuple(sizes), asked)

    def at(self, place: str, number: int, total: int) -> tuple[SizeChange, ...] | None:
        """What the call changes; None where that is not known."""
        if self.seen is not None and place not in self.seen:
            return self.alike.get(within(place))
        always, counted = self.changes.get((place, None), ()), self.changes.get((place, number), ())
        return (*always, *counted, *self.changes.get(("", total), ()))


def _sizes(changes: Sequence[SizeChange]) -> list[tuple[int, int, int, bool]]:
    return [(change.place, change.before, change.after, change.outright) for change in changes]


@dataclass
class _Sites:
    """What a module's calls are given instead, one table per plan that cut it, in order.

    `given`: None, or per number of a call what the code passed on its own account (see `learn`).
    """

    tables: tuple[_Table, ...] = ()
    given: dict[SiteNumber, set[int]] | None = field(default=None, compare=False)

    @property
    def answers(self) -> bool:
        return any(table.asked for table in self.tables)


_UNCOMPILED = (
    "its code divides sizes that it asks for, and is answered with those before the cut; compile without "
    "fullgraph=True, and export with strict=False"
)


class SizedForward(Unscripted):
    """Marks the subclasses made here; `_original` is the class that the module had."""

    _original: ClassVar[Any]
    _fairkern_sites: _Sites

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(2)
        assert isinstance(reduced, tuple)
        return (_remade, (self._original, self._fairkern_sites.answers), *reduced[2:])


def _remade(original: Any, answers: bool = False) -> nn.Module:
    made = _sized(original, answers)
    return made.__new__(made)


@functools.cache
def _sized(original: Any, answers: bool) -> Any:
    """The subclass, under the name of the original: other code knows modules by the name of their class.

    One that answers its code's questions is not compiled: no mode hears there what is asked.
    """

    @functools.wraps(original.forward)
    @begins
    def forward(self: SizedForward, *args: Any, **kwargs: Any) -> Any:
        mode = _Substitution(self._fairkern_sites)
        tracer = written_by(args, kwargs)
        if tracer is not None:
            with traced(tracer, mode), mode:
                return original.forward(self, *args, **kwargs)
        with mode:
            return original.forward(self, *args, **kwargs)

    run = torch.compiler.disable(forward, reason=_UNCOMPILED) if answers else forward
    names = {"forward": run, "_original": original, "__module__": original.__module__, "__doc__": original.__doc__}
    return type(original.__name__, (SizedForward, original), {**names, "__qualname__": original.__qualname__})


class _Substitution(OwnCalls):
    """`calls`: by place how many calls came by, and under "" how many in all. `outside`: the labels of what called
    the code that runs under this mode, where that is not all of `forward`."""

    def __init__(self, sites: _Sites, calls: Mapping[str, int] | None = None, outside: Sequence[str] = ()) -> None:
        super().__init__()
        self.sites = sites
        self.calls = dict(calls or {})
        self.outside = outside
        self.running = 0
        self.inside = False  # a function that was seen here is running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        function = size_function(func)
        if function is None or self.running:
            return func(*args, **kwargs)
        if isinstance(function, Asked):
            answer = func(*args, **kwargs)
            return self.answered(function, args, kwargs) if self.sites.answers else answer
        args, kwargs = self.substituted(function, args, kwargs)
        self.inside = True
        try:
            return func(*args, **kwargs)
        finally:
            self.inside = False

    def substituted(self, function: SizeFunction, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of a size-taking call that is under way, with the sizes that are left."""
        counts = function.kind != "spans"  # those had no sites when plans counted calls
        if not counts and not function.numbers(args, kwargs):
            return args, kwargs
        at = self._place(function.name)
        if at is None:
            return args, kwargs
        number, total = self.calls.get(at, 0), self.calls.get("", 0)
        self.calls[at] = number + 1
        self.calls[""] = total + counts
        for table in self.sites.tables:
            changes = table.at(at, number, total if counts else -1)
            numbers = list(function.numbers(args, kwargs))
            if changes is None:
                _check_unseen(table, function, args, numbers, at)
            elif changes:
                for change in changes:
                    if not self._learned(change, function, numbers):
                        numbers[change.place] = _number(change, function, numbers)
                if numbers:
                    args, kwargs = function.with_numbers(args, kwargs, numbers)
        return args, kwargs

    def answered(self, function: Asked, args: Any, kwargs: Any) -> Any:
        """The sizes of a tensor as they were before the cut, for code that divides them by numbers of its own."""
        numbers = list(function.numbers(args, kwargs))
        for change in self.answers(function):
            numbers[change.place] = _number_before(change, function, numbers)
        return function.answer(args, kwargs, numbers)

    def answers(self, function: Asked) -> list[SizeChange]:
        """What is other in the answer to the question that is under way: of the last cut first."""
        at = self._place(function.name) if self.sites.answers else None
        if at is None:
            return []
        number = self.calls.get(at, 0)
        self.calls[at] = number + 1
        return [change for table in reversed(self.sites.tables) for change in table.at(at, number, -1) or ()]

    def _place(self, name: str) -> str | None:
        """Where the module's code makes the call that is under way; None where it is a submodule's."""
        if torch.compiler.is_compiling():
            return place_of(name)
        again: list[tuple[FrameType, int]] = []
        labels, own = way(name, lambda *call: again.append(call))
        if not own:
            return None
        labels += self.outside
        for frame, inside in again:
            under(frame, functools.partial(_Substitution, self.sites, dict(self.calls), labels[inside:]))
        return place(labels)

    def later(self, function: FunctionType) -> Callable[..., Any]:
        """A function that the module's code calls now and that runs later: then under this mode, if it has sites."""
        labels, own = way(function.__name__)
        labels += self.outside
        at = f"{place(labels)}/"
        changes = (key for table in self.sites.tables for key, _ in table.changes)
        if not own or not any(key.startswith(at) for key in changes):
            return function
        return Under(function, functools.partial(_Substitution, self.sites, dict(self.calls), labels))

    def _learned(self, change: SizeChange, function: SizeFunction, numbers: list[Any]) -> bool:
        """Whether the number is right by itself, or the cut led the module to another call: while learning only."""
        learned = self.sites.given
        if learned is None:
            return False
        given = numbers[change.place] if _fits(change, function, numbers) else change.after
        learned.setdefault(change.number, set()).add(given)
        return given == change.after


def _fits(change: SizeChange, function: SizeFunction, numbers: list[Any]) -> bool:
    return function.name == change.function and change.place < len(numbers)


def _number(change: SizeChange, function: SizeFunction, numbers: list[Any]) -> Any:
    """A number that was computed from the old size keeps its multiple: a batch folded into heads, say. In place of one
    that may be the size of something else the new size is given outright; a multiple of that would be larger."""
    before, after = change.before // change.common, change.after // change.common
    if not _fits(change, function, numbers):
        raise _other(change, function, numbers)
    number = numbers[change.place]
    known = _known(number)
    if known is not None and (known > change.before if change.outright else known % before):
        raise _other(change, function, numbers)
    return change.after if change.outright else number // before * after


def _number_before(change: SizeChange, function: SizeFunction, numbers: list[Any]) -> Any:
    before, after = change.before // change.common, change.after // change.common
    if not _fits(change, function, numbers) or _known(numbers[change.place]) % after:
        raise _other(change, function, numbers)
    return numbers[change.place] // after * before


def _known(number: Any) -> Any:
    """A number's value; None where it stands for one in a graph of `torch.fx`, which has none yet."""
    if isinstance(number, Proxy):
        return None
    if not isinstance(number, Tensor):
        return number
    with warnings.catch_warnings():  # a size in torch.jit.trace: to look at it changes nothing in what is traced
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return int(number)


def _other(change: SizeChange, function: SizeFunction, numbers: list[Any]) -> InputError:
    call = change.at or f"call {change.call}"
    return InputError(
        f"{change.module or 'the model'}: {call} is {function.name}{tuple(numbers)} here; when it was traced it was "
        f"{change.function} with {change.before} in place {change.place}. Trace and prune with inputs (and in the "
        "mode) that take the same path through its code"
    )


def _check_unseen(table: _Table, function: SizeFunction, args: Any, numbers: list[Any], at: str) -> None:
    """InputError where a call that no trace saw may be given a size that has changed, and would not fail by itself.

    That is a view that is to infer a size, a split into equal parts, a slice. A number that repeats a size of the
    tensor, in front or behind, is right; of what stands for one in a graph the sizes are not known.
    """
    given = args[0] if args and isinstance(args[0], (Tensor, Proxy)) else None
    sizes = (int, torch.SymInt, Proxy, *((Tensor,) if torch.jit.is_tracing() else ()))
    if given is None or not all(isinstance(n, sizes) and not isinstance(n, bool) for n in numbers):
        return
    if function.kind in ("filled", "groups"):
        return
    numbers = [0 if known is None else known for known in map(_known, numbers)]
    first, last, fails = 0, len(numbers), False
    if function.kind == "shape" and isinstance(given, Tensor):
        shape = tuple(map(_known, given.shape))
        fails = -1 not in numbers and math.prod(numbers) != math.prod(shape)
        while first < min(len(numbers), len(shape)) and numbers[first] == shape[first]:
            first += 1
        while last > first and len(numbers) - last < len(shape) and numbers[last - 1] == shape[last - 1 - len(numbers)]:
            last -= 1
    infers = {"split": len(numbers) == 1, "spans": True}.get(function.kind, -1 in numbers)
    for number in numbers[first:last] if fails or infers else ():
        size = next((size for size in table.sizes if number > 0 and number % size == 0), None)
        if size is not None:
            module = next(iter(table.changes.values()))[0].module or "the model"
            raise InputError(
                f"{module}: {at} is {function.name}{tuple(numbers)}, a call that was not made when it was traced, and "
                f"{number} may count what has been cut ({size} before). Trace and prune with further example inputs "
                "(`more=`) that take this path through its code; if that is taken only while this graph is written, "
                "write it in another way (torch.export)"
            )


def install(model: nn.Module, changes: Iterable[SizeChange], seen: Mapping[str, Iterable[str]] | None = None) -> None:
    """Make the modules of `model` run with these numbers.

    `seen`: for a module the places in its code where the trace saw it make size-taking calls, if that is known.
    """
    by_module: dict[str, dict[tuple[str, int | None], list[SizeChange]]] = defaultdict(lambda: defaultdict(list))
    for change in changes:
        by_module[change.module][change.at, change.call].append(change)
    for path, calls in by_module.items():
        module = model.get_submodule(path)
        original: Any = type(module)
        tables: tuple[_Table, ...] = ()
        if isinstance(module, SizedForward):
            original, tables = module._original, module._fairkern_sites.tables
        sites = _Sites((*tables, _Table.of(calls, (seen or {}).get(path))))
        module.__class__ = _sized(original, sites.answers)
        assert isinstance(module, SizedForward)
        module._fairkern_sites = sites
        leave_modes_out(module)
        for inner in module.modules():
            if inner is not module and enter not in inner._forward_pre_hooks.values():
                inner.register_forward_pre_hook(enter)
                inner.register_forward_hook(leave)


def learn(model: nn.Module) -> None:
    """From now on leave a number that already is what it should be, and remember what each call was given."""
    for module in model.modules():
        if isinstance(module, SizedForward):
            module._fairkern_sites.given = {}


def learned(model: nn.Module, plan: Plan) -> dict[SiteNumber, Passed]:
    """Of each number of the plan that was passed since `learn`: what the calls passed by themselves.

    The right one comes from the shape of a tensor that has been cut; to scale it again would be wrong.
    """
    found, renaming = {}, Renaming(plan)
    for change in plan.sites:
        module = model.get_submodule(renaming.after(change.module) or "")
        assert isinstance(module, SizedForward)
        given = (module._fairkern_sites.given or {}).get(change.number)
        if given is not None:
            known = Passed.BEFORE if given <= {change.before, change.after} else Passed.OTHER
            found[change.number] = Passed.RIGHT if given == {change.after} else known
    return found
