"""Lists of blocks: which of them hand on what they are given once their branches are gone, and what counts them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from fairkern.axes.branches import ZEROS, FoundBranch
from fairkern.axes.flow import Flow, ModuleRun
from fairkern.model.nothing import Nothing
from fairkern.types import Blocks, Numbers, numbered

_SAME = ("view", "_unsafe_view", "reshape", "_reshape_alias", "alias", "clone", "contiguous", "detach")  # in one order
_NUMBER = re.compile(r"idx|index|number|layer|block|depth|id$")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")

Units = Mapping[int, tuple[str, int]]  # by id of a branch: its group's name and its number there


def blocks_of(
    model: nn.Module,
    flow: Flow,
    lists: Mapping[str, tuple[str, ...]],
    kinds: Mapping[str, Mapping[str, str]],
    numbers: Mapping[str, tuple[Numbers, ...]],
    found: Sequence[FoundBranch],
    units: Units,
) -> Iterator[tuple[str, Blocks]]:
    """Lists whose modules hold branches: those that can go whole, or of which the modules are numbered."""
    run = _Run(model, flow, found, units)
    for path, names in lists.items():
        alike = len({type(model.get_submodule(f"{path}.{name}")) for name in names}) == 1
        whole = tuple(run.branches_of(f"{path}.{name}") if alike else () for name in names)
        held = any(branch.paths[0].startswith(f"{path}.") for branch in found)
        counted = numbers.get(path, ()) if held else ()
        if not any(whole) and not counted:
            continue
        known = _config(model, path, len(names))
        counts, rows = [], []
        if known is not None:
            holder, config = known
            fields = vars(config)
            counts = [(holder, f"config.{name}") for name in _counted(path) if fields.get(name) == len(names)]
            rows = [
                (holder, f"config.{name}")
                for name, value in fields.items()
                if "layer" in name and isinstance(value, (list, tuple)) and len(value) == len(names)
            ]
        said = tuple(kinds[path].get(name, "") for name in names)
        yield path, Blocks(names, whole, said, counted, tuple(counts[:1]), tuple(rows))


class _Run:
    """What blocks do in one run."""

    def __init__(self, model: nn.Module, flow: Flow, found: Sequence[FoundBranch], units: Units) -> None:
        self._flow, self._units = flow, units
        self._uses, self._makers = flow.uses(), flow.makers()
        self._runs: dict[str, list[ModuleRun]] = defaultdict(list)
        self._added: dict[int, list[FoundBranch]] = defaultdict(list)
        for run in flow.runs:
            self._runs[run.path].append(run)
        for branch in found:
            self._added[branch.made].append(branch)
        gone = {path for path, module in model.named_modules() if isinstance(module, Nothing) and not module._passes}
        self._zeros = {made.value for path in gone for run in self._runs.get(path, ()) for made in run.returned}

    def branches_of(self, path: str) -> tuple[tuple[str, int], ...]:
        """Those without which a module hands on the first tensor that it is given; none if it does more."""
        if len(self._runs.get(path, ())) != 1:
            return ()
        (run,) = self._runs[path]
        returned = [made for made in run.returned if made.place == 0]
        others = [made for made in run.returned if made.place and any(u >= run.stop for u in self._readers(made.value))]
        if not returned or others or not run.given or run.given[0].size != returned[0].size:
            return ()
        value, gone, done = returned[0].value, [], set[int]()
        while value != run.given[0].value:
            here = self._added.get(value, [])
            before = self._handed_on(value)
            if before is not None:
                done.add(self._makers[value])
                value = before
            elif here and len(here[0].terms) == len(here) + 1 and all(id(b) in self._units for b in here):
                gone += [self._units[id(b)] for b in here]
                done = done.union(here[0].sums, *(b.own | b.gone for b in here))
                value = here[0].stream
            else:
                return ()
        for i in reversed(range(run.start, run.stop)):  # a norm that several branches read
            makes = self._flow.operations[i].makes
            if i not in done and any(u not in done for v in makes for u in self._readers(v)):
                return ()
            done.add(i)
        return tuple(gone)

    def _readers(self, value: int) -> Sequence[int]:
        return self._uses.get(value, ())

    def _handed_on(self, value: int) -> int | None:
        """What has the same values: it was viewed, or what stands where a branch was is added to it; else None."""
        maker = self._makers.get(value, -1)
        if maker < 0:
            return None
        made = self._flow.operations[maker]
        if made.name in _SAME:
            return made.reads[0]
        if made.name not in ("add", "add_") or len(made.reads) != 2:
            return None
        reads = [read for read in made.reads if not self._zero(read)]
        return reads[0] if len(reads) == 1 else None

    def _zero(self, value: int) -> bool:
        while value not in self._zeros:
            maker = self._makers.get(value, -1)
            if maker < 0 or not (self._flow.operations[maker].view or self._flow.operations[maker].name in ZEROS):
                return False
            value = self._flow.operations[maker].reads[0]
        return True


def _config(model: nn.Module, path: str, n: int) -> tuple[str, Any] | None:
    """The innermost module around a list with a configuration that counts its modules, and that."""
    parts = path.split(".")
    for k in range(len(parts) - 1, -1, -1):
        holder = ".".join(parts[:k])
        config = vars(model.get_submodule(holder)).get("config")
        if config is not None and any(vars(config).get(name) == n for name in _counted(path)):
            return holder, config
    return None


def _counted(path: str) -> list[str]:
    """Names of fields that may count the modules of a list; those of an encoder or decoder if it lies in one."""
    other = [side for side in ("encoder", "decoder") if f".{side}." not in f".{path}."]
    return [name for name in _COUNTS if not name.startswith(tuple(other))]


def kinds_of(model: nn.Module, path: str) -> dict[str, str]:
    """What the configuration says of every module of a list, where it has an entry for each."""
    names = list(model.get_submodule(path)._modules)
    found = _config(model, path, len(names))
    said = None if found is None else vars(found[1]).get("layer_types")
    if not isinstance(said, (list, tuple)) or len(said) != len(names):
        return {}
    return dict(zip(names, map(str, said), strict=True))


def numbers_of(model: nn.Module, path: str, names: Sequence[str], kinds: Mapping[str, str]) -> Iterator[Numbers]:
    """Attributes at one path within the modules of a list that hold the number of every one of them, or of those that
    are still there, as a plan has numbered them."""
    entries = [model.get_submodule(f"{path}.{name}") for name in names]
    places = {
        (within, attribute): None
        for entry in entries
        for within, module in entry.named_modules()
        for attribute, value in vars(module).items()
        if _NUMBER.search(attribute) and type(value) is int and not isinstance(module, Nothing)
    }
    for within, attribute in places:
        values = [_held(entry, within, attribute) for entry in entries]
        there = [value is not None for value in values]
        if sum(there) > 1 and values == numbered([kinds.get(name, "") for name in names], there):
            yield Numbers(within, attribute, tuple(values))


def _held(entry: nn.Module, within: str, attribute: str) -> int | None:
    """None where there is none any more."""
    try:
        module = entry.get_submodule(within)
    except AttributeError:
        return None
    value = None if isinstance(module, Nothing) else vars(module).get(attribute)
    return value if type(value) is int else None
