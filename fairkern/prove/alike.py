"""Two models that one class makes of two configurations: which block of the one stands for which of the other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fairkern.model.nested import elements
from fairkern.model.tensors import LISTS

_HOLDERS = (*LISTS, nn.Sequential)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
ENOUGH = 3  # blocks of a kind: the first, the last, and one that has others of its kind on both sides


class NoSibling(Exception):
    """Why there is no smaller model that speaks for a model."""


@dataclass(frozen=True)
class Alike:
    """For every list of the model that is longer than the sibling's: which of the sibling's entries stands for which of
    its own. Everything else has one name in both."""

    entries: Mapping[str, Mapping[str, str]]  # by path of the list, in the model; by name of the entry

    def name(self, path: str) -> str:
        """What a module or tensor of the model, by its path, is called in the sibling."""
        parts = path.split(".")
        found = []
        for k, part in enumerate(parts):
            held = self.entries.get(".".join(parts[:k]))
            found.append(part if held is None else held.get(part, part))
        return ".".join(found)

    def blocks(self, path: str) -> Iterator[tuple[str, str]]:
        """The lists that a path leads through, by their name in the sibling, and the model's entry that it leads to."""
        parts = path.split(".")
        for k in range(1, len(parts)):
            at = ".".join(parts[:k])
            if at in self.entries:
                yield self.name(at), parts[k]

    def its_blocks(self, path: str) -> Iterator[tuple[str, str]]:
        """The same of a path of the sibling."""
        parts, lists = path.split("."), {self.name(at) for at in self.entries}
        for k in range(1, len(parts)):
            if (at := ".".join(parts[:k])) in lists:
                yield at, parts[k]


def aligned(model: nn.Module, sibling: nn.Module) -> Alike:
    """Which entries of the sibling's lists stand for which of the model's.

    Both have the same modules, but for the number of entries of lists, of the same classes; tensors of the same names
    and number of dimensions, tied alike; and plain attributes that are equal unless they are numbers. Of every kind of
    entry (by all of these) the sibling has as many as the model, or `ENOUGH`: the first stands for the first, the last
    for the last, one between them for those between. Raises NoSibling, with what differs.
    """
    kinds = _Kinds()
    entries: dict[str, dict[str, str]] = {}
    waiting = [("", "", model, sibling)]
    while waiting:
        path, other, mine, its = waiting.pop()
        if kinds.own(mine) != kinds.own(its):
            raise NoSibling(f"{path or 'the model'} is another module in it")
        names, its_names = tuple(mine._modules), tuple(its._modules)
        if names == its_names:
            pairs = {name: name for name in names}
        elif isinstance(mine, _HOLDERS):
            pairs = entries[path] = _paired(path, mine, its, kinds)
        else:
            raise NoSibling(f"{path or 'the model'} has other modules in it")
        for name, its_name in pairs.items():
            child, its_child = mine._modules[name], its._modules[its_name]
            if child is None or its_child is None:
                if child is not its_child:
                    raise NoSibling(f"{path}.{name} is not in both")
                continue
            waiting.append((f"{path}.{name}".lstrip("."), f"{other}.{its_name}".lstrip("."), child, its_child))
    alike = Alike(entries)
    if {frozenset(map(alike.name, names)) for names in _tied(model)} != set(map(frozenset, _tied(sibling))):
        raise NoSibling("other tensors are tied in it")
    return alike


def _paired(path: str, mine: nn.Module, its: nn.Module, kinds: _Kinds) -> dict[str, str]:
    """The sibling's entry that stands for each of the model's."""
    of_kind, its_of_kind = kinds.sorted(mine), kinds.sorted(its)
    pairs: dict[str, str] = {}
    for kind, names in of_kind.items():
        there = its_of_kind.get(kind, ())
        if len(there) < min(len(names), ENOUGH) or len(there) > len(names):
            raise NoSibling(f"it has {len(there)} of {len(names)} modules like {path}.{names[0]}")
        for k, name in enumerate(names):
            left = len(names) - k
            pairs[name] = there[-left] if left < 2 or len(there) == len(names) else there[min(k, len(there) - 2)]
    if its_of_kind.keys() - of_kind.keys():
        raise NoSibling(f"{path} has modules of another kind in it")
    return {name: pairs[name] for name in mine._modules}


class _Kinds:
    """What modules are, but for sizes."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[nn.Module, Hashable]] = {}

    def own(self, module: nn.Module) -> Hashable:
        """A module without those that it holds."""
        return (
            type(module),
            tuple(sorted(_plain(module))),
            tuple((name, *_form(tensor)) for name, tensor in module._parameters.items()),
            tuple((name, *_form(tensor)) for name, tensor in module._buffers.items()),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            "forward" in vars(module),
        )

    def whole(self, module: nn.Module) -> Hashable:
        """A module and all that it holds, entries of lists in whatever number."""
        known = self._known.get(id(module))
        if known is None:
            inner = [(name, self.whole(child)) for name, child in module._modules.items() if child is not None]
            if isinstance(module, _HOLDERS):
                kinds = [kind for _, kind in inner]
                inner = [("", kind) for k, kind in enumerate(kinds) if not k or kind != kinds[k - 1]]
            known = self._known[id(module)] = (module, hash((self.own(module), tuple(inner))))
        return known[1]

    def sorted(self, holder: nn.Module) -> dict[Hashable, list[str]]:
        """The entries of a list by kind."""
        found: dict[Hashable, list[str]] = defaultdict(list)
        for name, entry in holder._modules.items():
            found[None if entry is None else self.whole(entry)].append(name)
        return found


def _plain(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Public attributes that say what a module does: truth values, texts, None, and of all else the class."""
    for name, value in vars(module).items():
        if name in _OF_EVERY_MODULE or name == "forward" or name.startswith("_"):  # marks of a library for itself
            continue
        if isinstance(value, (bool, str, type(None))):
            yield name, repr(value)
        else:
            yield name, "a number" if isinstance(value, (int, float)) else type(value).__qualname__


def _form(tensor: Tensor | None) -> tuple[Any, ...]:
    return () if tensor is None else (tensor.ndim, tuple(n == 1 for n in tensor.shape))


def _tied(model: nn.Module) -> list[Sequence[str]]:
    """Names that lead to one tensor, where there are several."""
    found: dict[object, list[str]] = defaultdict(list)
    held: Iterable[tuple[str, Tensor]] = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    for name, tensor in held:
        if tensor.numel():
            found[id(tensor) if tensor.is_meta else elements(tensor)].append(name)
    return [names for names in found.values() if len(names) > 1]


def differing(model: nn.Module, other: nn.Module) -> str | None:
    """What one model has and another, of the same sizes, has not: modules, shapes, plain attributes, numbers too; None
    where there is nothing."""
    mine, its = dict(model.named_modules()), dict(other.named_modules())
    if mine.keys() != its.keys():
        return sorted(mine.keys() ^ its.keys())[0]
    kinds = _Kinds()
    for path, module in mine.items():
        twin = its[path]
        if kinds.own(module) != kinds.own(twin):
            return path or "the model"
        for held, there in ((module._parameters, twin._parameters), (module._buffers, twin._buffers)):
            for name, tensor in held.items():
                found = there[name]
                if tensor is not None and found is not None and tensor.shape != found.shape:
                    return f"{path}.{name}".lstrip(".")
        numbers = Counter({name: n for name, n in vars(module).items() if type(n) is int})
        if numbers != Counter({name: n for name, n in vars(twin).items() if type(n) is int}):
            return path or "the model"
    return None
