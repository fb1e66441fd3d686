"""`copy.deepcopy` of a model at a fraction of its calls: modules are copied without asking each of their pieces how.

The result is deepcopy's, and so is the memo: whatever has a rule of its own for copies (`__deepcopy__`, `__reduce__`,
`__getstate__`, slots, an entry of `copyreg`) or is none of the plain kinds below is handed to deepcopy with it.
"""

from __future__ import annotations

import copy
import copyreg
import types
import weakref
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function_unary

T = TypeVar("T")

Memo = dict[int, Any]

_AS_THEY_ARE = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        type,
        range,
        type(Ellipsis),
        type(NotImplemented),
        types.BuiltinFunctionType,
        types.FunctionType,
        types.CodeType,
        property,
        weakref.ref,
    }
)
_NUMBERS = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})  # beside floats
_MISSING = object()
_STATES = [getattr(base, "__getstate__", None) for base in (object, nn.Module)]
_OWN_RULES = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__")


def deep_copy(model: T, memo: Memo) -> T:
    """`copy.deepcopy(model, memo)`; raises what that raises."""
    copied: T = _Copier(memo).copied(model)
    return copied


class _Copier:
    """One copy: `memo` as deepcopy keeps it, and what was found out of classes."""

    def __init__(self, memo: Memo) -> None:
        self.memo = memo
        self._plain: dict[Any, bool] = {}

    def copied(self, given: Any) -> Any:
        kind = type(given)
        if kind in _AS_THEY_ARE:
            return given
        found = self.memo.get(id(given), _MISSING)
        return self._new(kind, given) if found is _MISSING else found

    def _new(self, kind: Any, given: Any) -> Any:
        """The copy of what has none yet."""
        if _is_dictionary(kind, given):
            made = self.memo[id(given)] = kind()
            return self._filled(made, given)
        if kind is list:
            listed = self.memo[id(given)] = []
            for value in given:
                listed.append(self.copied(value))  # a list that holds itself finds this one
            return listed
        if kind is tuple:
            return self._tuple(given)
        if kind is set and _AS_THEY_ARE.issuperset(map(type, given)) and kind not in copyreg.dispatch_table:
            self.memo[id(given)] = gathered = set(list(given))  # noqa: C414, in the order that deepcopy leaves
            return gathered
        if isinstance(given, nn.Module) and self._is_plain(kind) and "__deepcopy__" not in vars(given):
            return self._module(kind, given)
        if kind is Tensor and _fills_its_memory(given):
            return self._tensor(given)
        return copy.deepcopy(given, self.memo)

    def _filled(self, made: Any, given: Any) -> Any:
        """A dictionary that gets copies of the entries of another."""
        memo = self.memo
        for key, value in given.items():
            if type(key) is not str:
                key = self.copied(key)
            kind = type(value)
            if kind not in _AS_THEY_ARE:
                found = memo.get(id(value), _MISSING)
                if found is not _MISSING:
                    value = found
                elif _is_dictionary(kind, value) and not value:
                    value = memo[id(value)] = kind()  # most of what a module holds
                else:
                    value = self._new(kind, value)
            made[key] = value
        return made

    def _module(self, kind: Any, given: nn.Module) -> Any:
        held = vars(given)
        state = given.__getstate__() if hasattr(kind, "__getstate__") else held
        if type(state) is not dict:  # of one that holds nothing
            return copy.deepcopy(given, self.memo)
        module = self.memo[id(given)] = kind.__new__(kind)
        # a state that was made for this is gone when it returns, and so is in no memo
        module.__setstate__(self.copied(held) if state is held else self._filled({}, state))
        return module

    def _tuple(self, given: tuple[Any, ...]) -> Any:
        if _AS_THEY_ARE.issuperset(map(type, given)):
            return given
        made = [self.copied(value) for value in given]
        found = self.memo.get(id(given), _MISSING)  # of one that holds itself
        if found is not _MISSING:
            return found
        if all(a is b for a, b in zip(given, made, strict=True)):
            return given
        self.memo[id(given)] = several = tuple(made)
        return several

    def _tensor(self, given: Tensor) -> Any:
        """A tensor and its memory, which others may be views of: deepcopy keeps a memo of these."""
        memories, storage = self.memo.setdefault("torch", {}), given.untyped_storage()  # type: ignore[call-overload]
        if storage._cdata in memories:
            return copy.deepcopy(given, self.memo)
        self.memo[id(given)] = made = given.clone()
        memories[storage._cdata] = made.untyped_storage()
        return made

    def _is_plain(self, kind: Any) -> bool:
        """Whether modules of this class are copied by their state, as `object` and `nn.Module` have it."""
        found = self._plain.get(kind)
        if found is None:
            found = self._plain[kind] = (
                kind not in copyreg.dispatch_table
                and kind.__reduce_ex__ is object.__reduce_ex__
                and kind.__reduce__ is object.__reduce__
                and getattr(kind, "__getstate__", None) in _STATES
                and not issubclass(kind, (dict, list))
                and kind.__getattr__ is nn.Module.__getattr__
                and kind.__getattribute__ is object.__getattribute__
                and not any(hasattr(kind, name) for name in _OWN_RULES)
                and not any(made.__dict__.get("__slots__") for made in kind.__mro__)
            )
        return found


def _is_dictionary(kind: Any, given: Any) -> bool:
    """Whether it is copied by its entries alone."""
    return kind is dict or (kind is OrderedDict and not vars(given) and kind not in copyreg.dispatch_table)


def _fills_its_memory(tensor: Tensor) -> bool:
    """Whether a plain tensor is all of its memory in its order, and nothing else that deepcopy would have to copy."""
    return (
        tensor.device.type in ("cpu", "cuda")
        and tensor.layout is torch.strided
        and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype in _NUMBERS)  # not all others are cloned
        and not has_torch_function_unary(tensor)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and tensor.is_leaf
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg())
        and tensor.grad is None
        and not vars(tensor)
        and tensor.is_contiguous()
        and 0 < tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    )
