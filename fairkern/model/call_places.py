"""Where a module's own code makes a call, told alike in every run: of a trace, of a cut model, of one being compiled.

A place is the way from the module's `forward` to the call: "view.2" is the second `view` that `forward` names,
"windows.1/view.1" the first `view` in the function `windows` where that is first named. It says nothing of lines, so
that a plan outlives other edits of the code. Two calls may have one place (`f(x)` where `f` names a function).
"""

from __future__ import annotations

import dis
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from types import CodeType, FrameType
from typing import Any, TypeVar

import torch
from torch import nn

Recomputed = Callable[[FrameType, int], None]  # a frame, and how many labels lie inside
_Function = TypeVar("_Function", bound=Callable[..., Any])


# What a frame is on the way from a call to the module that made it.
_OWN = 0
_PASSED = 1  # machinery that may run or not
_MODULE = 2  # the call of a module: the code inside is that module's own
_BEGIN = 3  # the code inside belongs to whoever marked it
_RECOMPUTES = 4  # machinery that may make its calls again in the backward pass
_COMPILES = 5  # an instruction of a frame that torch.compile follows

_MODULE_CALL = nn.Module._call_impl.__code__
_BACKWARD = torch.autograd.function.BackwardCFunction.apply.__code__
_begins = {id(_BACKWARD)}
_kinds: dict[int, tuple[int, CodeType]] = {}  # by identity: the code is kept, so that no other gets it
_RESUMED = "torch_dynamo_resume_in_"
_labels: dict[tuple[int, int, str], str] = {}
_places: dict[tuple[str, ...], str] = {}
_instructions: dict[int, tuple[list[int], list[Any], CodeType]] = {}


def begins(function: _Function) -> _Function:
    """Marks a function: places are told from what it calls on."""
    _begins.add(id(function.__code__))
    return function


def way(name: str, recomputed: Recomputed | None = None) -> tuple[list[str], bool]:
    """The labels of the call of `name` that is under way, innermost first, and whether what `begins` was come to.

    It ends there, or at the call of a module. `recomputed` hears of every call on the way that may be made again in a
    backward pass. Cost: a microsecond or two.
    """
    labels: list[str] = []
    resumed = False
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        code, last = frame.f_code, frame.f_lasti
        known = _kinds.get(id(code))
        kind = _kind(code, frame) if known is None else known[0]
        if kind == _PASSED:
            continue
        if kind == _COMPILES:
            follows = frame.f_locals["self"]
            code, last = follows.f_code, follows.current_instruction.offset
            kind = _kind(code, follows)
        if kind == _OWN:
            if not resumed:
                labels.append(_label(code, last, name))
            name = code.co_name
            resumed = name.startswith(_RESUMED)  # the second half of a function, which the first one calls
            if resumed:
                name = name.removeprefix(_RESUMED).rpartition("_at_")[0]
        elif kind in (_BEGIN, _MODULE):
            return labels, kind == _BEGIN
        elif kind == _RECOMPUTES and recomputed is not None:
            recomputed(frame, len(labels))
    return labels, False


def place(labels: Sequence[str]) -> str:
    """The place that labels, innermost first, stand for.

    A function that calls `forward` without naming it (a decorator's) is left out, and what calls that.
    """
    key = tuple(labels)
    found = _places.get(key)
    if found is None:
        outer = (i for i, label in enumerate(labels) if label.startswith("forward@"))
        found = _places[key] = "/".join(reversed(labels[: max(outer, default=len(labels))]))
    return found


def within(place: str) -> str:
    """The call's own function and which of its calls it is, wherever the function is called from."""
    *outer, call = place.split("/")
    return f"{outer[-1].replace('@', '.').rpartition('.')[0] if outer else 'forward'}/{call}"


def place_of(name: str) -> str:
    """The place of the call of `name` that is under way. torch.compile takes what it says as it compiles."""
    return place(way(name)[0])


place_of._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compiler's own way imports the compiler


def _kind(code: CodeType, holder: Any) -> int:
    known = _kinds.get(id(code))
    if known is None:
        module = str(holder.f_globals.get("__name__", ""))
        known = _kinds[id(code)] = (_found(code, module), code)
    return known[0]


def _found(code: CodeType, module: str) -> int:
    package = module.partition(".")[0]
    if id(code) in _begins:
        return _BEGIN
    if code is _MODULE_CALL:
        return _MODULE
    function = code.co_name in ("forward", "backward") and code.co_varnames[:1] == ("ctx",)  # of an autograd.Function
    if function or module == "torch.utils.checkpoint":
        return _RECOMPUTES
    if module == "torch._dynamo.symbolic_convert" and code.co_name == "step":
        return _COMPILES
    if code.co_name == "__torch_function__" or package in ("functools", "contextlib"):
        return _PASSED
    if package == "torch" and (not module.startswith("torch.nn.modules.") or module == "torch.nn.modules.module"):
        return _PASSED
    if package == "fairkern" and not module.startswith(("fairkern.model.replacements", "fairkern.demo")):
        return _PASSED
    return _OWN


def _label(code: CodeType, last: int, name: str) -> str:
    """Which call of `name` the instruction at `last` is: "name.k", the k-th that is named; "name@k", after k calls."""
    key = (id(code), last, name)
    label = _labels.get(key)
    if label is None:
        if id(code) not in _instructions:
            found = list(dis.get_instructions(code))
            values = [_value(i) for i in found]
            _instructions[id(code)] = ([i.offset for i in found], values, code)
        offsets, values, _ = _instructions[id(code)]
        here = bisect_right(offsets, last) - 1  # `last` may lie in the cache behind an instruction
        named = sum(_names(value, name) for value in values[: here + 1])
        calls = sum(value is _CALL for value in values[:here])
        label = _labels[key] = f"{name}.{named}" if named else f"{name}@{calls}"
    return label


_CALL = object()


def _value(instruction: dis.Instruction) -> Any:
    """The name that an instruction loads or stands for."""
    name = instruction.opname
    if name.startswith("CALL_INTRINSIC"):  # of the interpreter's own, from Python 3.12 on
        return None
    if name.startswith("CALL"):
        return _CALL
    if name.startswith("LOAD"):
        return instruction.argval
    if name in ("BINARY_SUBSCR", "BINARY_SLICE") or (name == "BINARY_OP" and instruction.argrepr == "[]"):
        return "__getitem__"
    return "__setitem__" if name in ("STORE_SUBSCR", "STORE_SLICE") else None


def _names(value: Any, name: str) -> bool:
    return value == name if isinstance(value, str) else isinstance(value, tuple) and name in value
