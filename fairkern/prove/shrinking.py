"""A smaller configuration of a model's class: fewer blocks of every kind, smaller sizes that nothing newly joins."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, permutations
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.axes.fakes import faked
from fairkern.compact.built import built_with
from fairkern.deadline import Deadline
from fairkern.errors import InputError
from fairkern.model.fields import configurations
from fairkern.model.fused import dense, fused_experts, running_as
from fairkern.model.nested import call_model, map_tensors, tensors_in
from fairkern.model.raised import in_words
from fairkern.model.tensors import LISTS, memory_of, named_tensors
from fairkern.prove.alike import ENOUGH, NoSibling, aligned, differing
from fairkern.types import ConfigChange

_LEAST = 5  # smaller numbers stay as they are: kernels, experts per token, kinds of tokens
# What a size may become, in this order: many divide by two, three and four, as heads and rotary halves want.
_SMALLER = (20, 24, 28, 32, 36, 40, 48, 60, 64, 72, 80, 96, 112, 128, 160, 192, 256, 384)
_COUNTS = (6, 8, 12, 10, 16, 4)
_WIDE = 64  # numbers from here on are widths, and of a width there has to be enough to tell what goes by its number
_SMALL = {True: 48, False: 8}  # of what is small enough, by whether it is wide
_SMALLEST = 4
_SHARES = (64, 16, 8, 4, 2)  # by which two sizes are divided that depend on each other
_ROUNDS = 4  # over all fields, since one that has shrunk lets others shrink
_ALIGNED = 16  # bytes, of which rows of fused experts have to be multiples for torch's grouped product
_MORE_IDS = 8  # tokens that a loop makes, and places that are counted from two on

Changes = Mapping[str, ConfigChange]


def shrunk(
    model: nn.Module, runs: Sequence[Any], deadline: Deadline, sizes: bool = True
) -> tuple[tuple[ConfigChange, ...], list[Any]]:
    """Changes of the model's configuration by which its class builds the same model in small; and inputs for it, the
    example inputs with numbers that smaller tables have.

    Blocks: of a list of modules whose length is a field of the configuration, so many that of every kind there are
    `ENOUGH` (`alike.py` says what a kind is); lists in the configuration with an entry for each follow. Sizes: every
    other whole number on which shapes depend, fields of one value together, as long as the model is built, has the same
    modules and tensors, and runs on the example inputs (as fake tensors). No two sizes are equal that are not in the
    model, so that a proof on what is built tells at least as much apart.

    Cost: a few hundred models built without numbers, of a few blocks each, milliseconds, and some dozen runs of them.
    Raises NoSibling where there is no configuration, or the model is not what its class builds from it.
    """
    if next(configurations(model), None) is None:
        raise NoSibling("the model has no configuration that its class is built from")
    try:
        plain = built_with(model)
    except Exception as error:  # a class that is built otherwise
        raise NoSibling(f"no model can be built from its configuration ({in_words(error, model, 80)})") from None
    if (other := differing(model, plain)) is not None:
        raise NoSibling(f"a model built from its configuration differs in {other}")
    search = _Search(model, plain, runs, deadline)
    search.fewer_blocks()
    if sizes:
        search.smaller_sizes()
    return tuple(search.changes.values()), [search.other_places(inputs) for inputs in runs]


class _Search:
    def __init__(self, model: nn.Module, plain: nn.Module, runs: Sequence[Any], deadline: Deadline) -> None:
        self._model, self._plain, self._runs, self._deadline = model, plain, runs, deadline
        self.changes: dict[str, ConfigChange] = {}
        self._blocks: set[str] = set()  # fields that count blocks
        self._same = self._smaller_tables = False
        self._fields = dict(_fields(model))
        self._base = plain  # the model with fewer blocks, of its own sizes
        given = [tensor for inputs in runs for tensor in tensors_in(inputs)]
        self._lengths = {n for tensor in given for n in tensor.shape}
        self._places = 0  # how many a table has to have that is looked up
        self.looked_up: set[int] = set()  # example inputs, by id, that say which places of tables are looked up
        self.special = frozenset(_tokens(model, self._fields))
        self._tables = {m.num_embeddings for m in plain.modules() if isinstance(m, nn.Embedding)}

    def _with(self, *changes: ConfigChange) -> dict[str, ConfigChange]:
        return {**self.changes, **{change.name: change for change in changes}}

    def _built(self, changes: Changes) -> nn.Module | None:
        """The model with these changes; None where it is refused, or not the same in small."""
        self._deadline.check("looking for a smaller configuration")
        try:
            built = built_with(self._model, changes.values())
            aligned(self._base, built)
        except NoSibling:
            return None
        except Exception:  # fields that do not fit together
            return None
        return built if self._holds_all(built) else None

    def _holds_all(self, built: nn.Module) -> bool:
        """Whether tables still have the places that the inputs look up."""
        return all(
            module.num_embeddings >= self._places
            for module in built.modules()
            if isinstance(module, nn.Embedding) and module.num_embeddings not in self._tables
        )

    def _works(self, model: nn.Module) -> bool | None:
        """Whether it runs on the inputs; None where that cannot be told without values."""
        try:
            experts = running_as(model.eval(), dict.fromkeys(fused_experts(model), dense))
            with torch.no_grad(), faked(model, self._runs) as runs, experts:
                for inputs in runs:
                    call_model(model, inputs)
        except InputError:
            return None
        except Exception:
            return False
        return True

    def _look_up(self, model: nn.Module) -> None:
        """Finds the example inputs that tables are looked up by, and so how many places these need."""
        heard: set[int | None] = set()

        def hear(module: nn.Module, args: tuple[Any, ...]) -> None:
            heard.update(memory_of(tensor) for tensor in tensors_in(args))

        handles = [m.register_forward_pre_hook(hear) for m in model.modules() if isinstance(m, nn.Embedding)]
        known: dict[int | None, int] = {}
        with contextlib.suppress(Exception), torch.no_grad(), faked(model.eval(), self._runs) as runs:
            for inputs, given in zip(runs, self._runs, strict=True):
                known |= {memory_of(a): id(b) for a, b in zip(tensors_in(inputs), tensors_in(given), strict=True)}
                call_model(model, inputs)
        for handle in handles:
            handle.remove()
        whole = [
            t
            for inputs in self._runs
            for t in tensors_in(inputs)
            if not t.is_floating_point() and not t.is_complex() and t.dtype != torch.bool and t.numel()
        ]
        self.looked_up = {known[memory] for memory in heard if memory in known} & {id(t) for t in whole}
        others = [int(t.max()) for t in whole if id(t) not in self.looked_up]
        self._places = _range(self.special, self._lengths, others)[1]

    def other_places(self, inputs: Any) -> Any:
        """The inputs, with others of the places that a smaller table has where they go beyond it; tokens that the
        configuration knows, and small numbers, stay."""
        first, end = _range(self.special, self._lengths, ())

        def moved(tensor: Tensor) -> Tensor:
            if id(tensor) not in self.looked_up or not self._smaller_tables:
                return tensor
            stays = tensor < first
            for token in self.special:
                stays |= tensor == token
            return torch.where(stays, tensor, first + tensor % (end - first - _MORE_IDS))

        return map_tensors(inputs, moved)

    def fewer_blocks(self) -> None:
        """Sets every field that is the length of a list to the least with which there are enough of every kind."""
        lengths = {len(m) for _, m in self._plain.named_modules() if isinstance(m, LISTS) and len(m) > ENOUGH}
        for name, value in self._fields.items():
            if type(value) is not int or value not in lengths:
                continue
            now = self._built(self.changes)
            modules = sum(1 for _ in now.modules()) if now is not None else 0
            for n in range(ENOUGH, value):
                rows = (
                    ConfigChange(other, held, type(held)(kept))  # type: ignore[arg-type]
                    for other, held in self._fields.items()
                    if isinstance(held, (list, tuple)) and len(held) == value and _shares(name, other)
                    for kept in (held[:n],)
                )
                tried = self._with(ConfigChange(name, value, n), *rows)
                built = self._built(tried)
                if built is None:
                    continue
                if sum(1 for _ in built.modules()) >= modules:
                    break  # it is as large as the length of a list, and is none
                if self._works(built) is not False:
                    self.changes = tried
                    self._blocks.add(name)
                    break

    def smaller_sizes(self) -> None:
        """Makes sizes smaller, the small ones first, until none can be any more."""
        built = self._built(self.changes)
        assert built is not None
        self._base = now = built
        self._look_up(built)
        for _ in range(_ROUNDS):
            before = self.changes
            for names in self._together():
                now = self._smaller(names, now)
                if len(names) > 1 and not self.changes.keys() & set(names):  # they cannot go together
                    for name in names:
                        now = self._smaller([name], now)
            stuck = [name for names in self._together() for name in names if name not in self.changes]
            for pair in combinations(stuck, 2):
                if not self.changes.keys() & set(pair):
                    now = self._in_proportion(pair, now)
            if self.changes == before:
                break
        tables = (m.num_embeddings for m in now.modules() if isinstance(m, nn.Embedding))
        self._smaller_tables = not self._tables.issuperset(tables)

    def _in_proportion(self, names: Sequence[str], now: nn.Module) -> nn.Module:
        """Divides sizes by one number."""
        for share in _SHARES:
            if all(self._fields[name] % share == 0 and self._fields[name] > share * _SMALLEST for name in names):
                made = self._taken({name: self._fields[name] // share for name in names}, now)
                if made is not None:
                    return made
        return now

    def _together(self) -> list[list[str]]:
        """Whole numbers of the configuration, those of one value together; small ones first."""
        of_value: dict[int, list[str]] = defaultdict(list)
        for name, value in self._fields.items():
            if type(value) is int and value >= _LEAST and name not in self._blocks:
                of_value[value].append(name)
        return [of_value[value] for value in sorted(of_value)]

    def _smaller(self, names: Sequence[str], now: nn.Module) -> nn.Module:
        """Gives fields that have one value another, the first that will do."""
        first, value = self._fields[names[0]], max(self._value(name) for name in names)
        wide = first >= _WIDE
        if value <= _SMALL[wide]:
            return now
        listed = (*_SMALLER, *_COUNTS) if wide else (*_COUNTS, *_SMALLER)
        divisors = (first // q for q in range(min(first // _SMALLER[0], 512), 1, -1) if first % q == 0)
        for n in dict.fromkeys((*listed, self._places, self._places + 1, *divisors)):
            if n < value:
                made = self._taken(dict.fromkeys(names, n), now)
                if made is not None:
                    return made
                if self._same:
                    break
        return now

    def _taken(self, sizes: Mapping[str, int], now: nn.Module) -> nn.Module | None:
        """The model with these sizes, which it keeps from then on; None where that is not what is looked for."""
        tried = self._with(*(ConfigChange(name, self._fields[name], n) for name, n in sizes.items()))
        built = self._built(tried)
        self._same = built is not None and _count(built) == _count(now)  # no shape depends on it
        if built is None or _count(built) >= _count(now) or self._coincides(built, tried) or self._odd_rows(built):
            return None
        if self._works(built) is False:
            return None
        self.changes = tried
        return built

    def _value(self, name: str) -> int:
        change = self.changes.get(name)
        return self._fields[name] if change is None else change.after

    def _coincides(self, built: nn.Module, changes: Changes) -> bool:
        """Whether two sizes are equal that are not in the model; a size and a length of the inputs too."""
        there = named_tensors(built)
        whole = {n for name, n in self._fields.items() if type(n) is int and n > 1 and name not in changes}
        was: dict[int, set[int]] = {n: {n} for n in (*self._lengths, *whole)}
        for name, tensor in named_tensors(self._base).items():
            for n, small in zip(tensor.shape, there[name].shape, strict=True):
                was.setdefault(small, set()).add(n)
        for change in changes.values():
            if type(change.after) is int and change.name not in self._blocks:
                was.setdefault(change.after, set()).add(change.before or 0)
        return any(len(found) > 1 for found in was.values()) or self._derived(changes, {*self._lengths, *whole})

    def _odd_rows(self, built: nn.Module) -> bool:
        """Whether fused experts have rows that their grouped product does not take, and had others before.

        `_works` runs them one by one, since there is nothing to go by how many tokens each gets.
        """
        was = dict(self._model.named_parameters())
        return any(
            n * was[name].element_size() % _ALIGNED and not before * was[name].element_size() % _ALIGNED
            for path in fused_experts(built)
            for name, p in built.get_submodule(path).named_parameters(path)
            for n, before in zip(p.shape[1:], was[name].shape[1:], strict=True)
        )

    def _derived(self, changes: Changes, fixed: set[int]) -> bool:
        """Whether what is left of a size by another (the size of a head) is a number that stays, and was not before."""
        after = {c.name: c.after for c in changes.values() if type(c.after) is int and c.name not in self._blocks}
        for (a, b), (m, n) in zip(permutations(after, 2), permutations(after.values(), 2), strict=True):
            if m % n == 0 and m // n in fixed and self._fields[a] != self._fields[b] * (m // n):
                return True
        return False


def _fields(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, config, _ in configurations(model):
        for name, value in vars(config).items():
            if not name.startswith("_"):
                yield prefix + name, value


def _tokens(model: nn.Module, fields: Mapping[str, Any]) -> Iterator[int]:
    """Tokens that the configuration knows."""
    own = vars(getattr(model, "generation_config", None) or object.__new__(_Nothing))
    for name, value in (*fields.items(), *own.items()):
        if re.search(r"_(id|ids|index|token)$", name):
            yield from (n for n in (value if isinstance(value, (list, tuple)) else [value]) if type(n) is int)


class _Nothing:
    """What has no attributes."""


def _range(special: Iterable[int], lengths: Iterable[int], others: Iterable[int]) -> tuple[int, int]:
    """From which number on places of a table are as good as any other, and how many it has to have."""
    first = max([*special, *lengths, *others, 0]) + 1
    return first, first + 8 * _MORE_IDS


def _shares(name: str, other: str) -> bool:
    """Whether two fields are of one configuration."""
    return name.rpartition(".")[0] == other.rpartition(".")[0]


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
