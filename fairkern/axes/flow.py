"""Which operator makes which value of which, and which calls of modules that happens in: what branches are found by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from fairkern.axes.dims import Dim
from fairkern.axes.tracks import Tracks
from fairkern.model.by_tensor import ByTensor


@dataclass(frozen=True)
class Operation:
    """One operator that ran: the values that it read and made, of which size; `flops`: where its facts on them lie."""

    name: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]  # of what it read
    view: bool
    scaled: bool  # a sum that weighs its terms
    flops: tuple[int, int]


class Passing(NamedTuple):
    """A tensor that a module was given or returned: its place, value and size, and what is known of its dimensions."""

    place: Any
    value: int
    size: tuple[int, ...]
    dims: tuple[Dim, ...]


@dataclass
class ModuleRun:
    """One call of a module: operations [start, stop), and the values that came and went.

    `given`: every tensor argument, its number or name being the place. `returned`: what it returned, as a tensor
    (`entries` 0) or in a tuple.
    """

    path: str
    start: int
    given: tuple[Passing, ...]
    stop: int = -1
    entries: int = 0
    returned: tuple[Passing, ...] = ()
    plain: bool = False  # a tensor or a tuple of tensors and None is returned


@dataclass
class Flow:
    """The values of one run. A tensor that is written to holds another value from then on."""

    tracks: Tracks
    operations: list[Operation] = field(default_factory=list)
    runs: list[ModuleRun] = field(default_factory=list)
    results: set[int] = field(default_factory=set)
    sinks: set[int] = field(default_factory=set)  # values that Python looked at
    held: dict[str, int] = field(default_factory=dict)  # values of parameters and buffers, by name
    _of: ByTensor[int] = field(default_factory=ByTensor)
    _open: list[ModuleRun] = field(default_factory=list)
    _count: int = 0

    def value(self, tensor: Tensor) -> int:
        """What a tensor holds; a new value where it has not been seen."""
        known = self._of.get(tensor)
        return self._new(tensor) if known is None else known

    def _new(self, tensor: Tensor) -> int:
        self._of[tensor] = self._count
        self._count += 1
        return self._count - 1

    def hold(self, names: Mapping[str, Tensor]) -> None:
        """These are parameters and buffers."""
        self.held = {name: self.value(tensor) for name, tensor in names.items()}

    def before(self, tensors: Iterable[Tensor]) -> tuple[list[int], list[tuple[int, ...]]]:
        """What an operator is about to read."""
        given = list(tensors)
        return [self.value(t) for t in given], [tuple(t.shape) for t in given]

    def saw(
        self,
        name: str,
        read: tuple[list[int], list[tuple[int, ...]]],
        written: Sequence[Tensor],
        made: Sequence[Tensor],
        flops: tuple[int, int],
        *,
        view: bool,
        scaled: bool,
    ) -> None:
        """An operator ran."""
        values, sizes = read
        if not made and not written:
            self.sinks.update(values)
        changed = [*written, *(other for t in written for other, _ in self.tracks.aliases(t))]
        fresh = [t for t in made if not any(t is w for w in changed)]
        makes = [self._new(t) for t in (*changed, *fresh)]
        self.operations.append(Operation(name, tuple(values), tuple(makes), tuple(sizes), view, scaled, flops))

    def enter(self, path: str, args: Any, kwargs: Any) -> None:
        """A module is called."""
        named = [*enumerate(args), *kwargs.items()]
        given = tuple(self._passing(key, t) for key, t in named if isinstance(t, Tensor))
        run = ModuleRun(path, len(self.operations), given)
        self.runs.append(run)
        self._open.append(run)

    def leave(self, output: Any) -> None:
        """It returns."""
        run = self._open.pop()
        run.stop = len(self.operations)
        listed = isinstance(output, (tuple, list)) and not hasattr(output, "_fields")
        items = list(output) if listed else [output]
        run.entries = len(items) if listed else 0
        run.plain = all(item is None or isinstance(item, Tensor) for item in items)
        run.returned = tuple(self._passing(k, t) for k, t in enumerate(items) if isinstance(t, Tensor))

    def _passing(self, place: int | str, tensor: Tensor) -> Passing:
        return Passing(place, self.value(tensor), tuple(tensor.shape), self.tracks.of(tensor).dims)

    def uses(self) -> Mapping[int, list[int]]:
        """Per value, the operations that read it."""
        found: dict[int, list[int]] = defaultdict(list)
        for number, operation in enumerate(self.operations):
            for value in dict.fromkeys(operation.reads):
                found[value].append(number)
        return found

    def makers(self) -> Mapping[int, int]:
        """Per value, the operation that made it."""
        return {value: number for number, operation in enumerate(self.operations) for value in operation.makes}


def single(model: nn.Module) -> set[str]:
    """Paths of modules that are there once and share no tensor with what is outside them."""
    places: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        places[id(module)].append(path)
    holders: dict[int, list[str]] = defaultdict(list)
    for kind in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in kind:
            holders[id(tensor)].append(name)
    shared = [names for names in holders.values() if len(names) > 1]
    found = set()
    for path, module in model.named_modules():
        inside = f"{path}."
        once = all(len(places[id(m)]) == 1 for m in module.modules())
        own = all(
            all(n.startswith(inside) for n in names) or not any(n.startswith(inside) for n in names) for names in shared
        )
        if path and once and own:
            found.add(path)
    return found
