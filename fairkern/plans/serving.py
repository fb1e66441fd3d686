"""What those who serve a model ask of a plan: which groups move together, which stay, and whether a plan suits them.

No family of models is known by name. What ties layers is which field of the configuration counts them
(`UnitMap.config`), what tells them apart is the place of a module in a list (`model.layers.3`).
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from fairkern.errors import InputError
from fairkern.options import meant, near, short
from fairkern.types import AxisGroup, Blocks, ConfigField, IndexArray, UnitMap

_PLAIN = ("f32", "f16", "bf16")
_BLOCKS_OF_32 = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4")
_BLOCKS_OF_256 = (
    *("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s"),
    *("q5_k_m", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "iq3_s", "iq3_m"),
    *("iq4_xs", "tq1_0", "tq2_0"),
)
BLOCKS = {
    **dict.fromkeys(_PLAIN, 1),
    **dict.fromkeys(_BLOCKS_OF_32, 32),
    "nvfp4": 64,
    "q1_0": 128,
    **dict.fromkeys(_BLOCKS_OF_256, 256),
}
"""Per type of GGUF how many weights along a contraction share their scales; a row is a whole number of blocks."""

YES = "yes"


class Server(enum.Enum):
    """Who loads what is left."""

    HF = "hf"  # transformers: every layer is built from one configuration
    VLLM = "vllm"  # a configuration per layer, but one number of query heads
    GGUF = "gguf"  # llama.cpp, in the model's own architecture or as deci
    DECI = "deci"  # llama.cpp's architecture whose layers have lengths of their own


@dataclass(frozen=True)
class Serving:
    """What was asked for as `serve=`: a server, and the block that the quantisation of its weights takes."""

    server: Server
    name: str
    block: int


@dataclass(frozen=True)
class Tie:
    """Groups that lose equal shares: a whole number of `grain` parts, each 1 / grain of every group.

    `parts`: how many of them may go; None: any number. `same`: the same units of every group go, which are of one
    number (the branches of a block).
    """

    groups: tuple[int, ...]
    grain: int
    parts: IndexArray | None = None
    same: bool = False


@dataclass(frozen=True)
class Constraints:
    """What a server asks: which groups move together, which stay (by index, with why), and what multiple of its units
    has to stay of a group that is cut."""

    ties: tuple[Tie, ...] = ()
    stays: Mapping[int, str] = field(default_factory=dict)
    multiples: Mapping[int, int] = field(default_factory=dict)

    def said(self, serve: str | None) -> dict[int, str]:
        """Why groups stay, as a plan for `serve=` says it."""
        return {g: f"{why} (serve={serve!r})" for g, why in self.stays.items()}


def serving(value: Any) -> Serving | None:
    """What `serve=` names. Raises InputError for what no server is called, or a type that GGUF does not have."""
    if value is None:
        return None
    known = [server.value for server in Server]
    name, colon, kind = value.lower().partition(":") if isinstance(value, str) else ("", "", "")
    if name not in known or (colon and name != Server.GGUF.value):
        raise InputError(
            f"serve is {short(value)}; expected one of {', '.join(map(repr, known))}, 'gguf:TYPE' as in 'gguf:q8_0', "
            f"or None{meant(name, known) if name not in known else ''}"
        )
    if colon and kind not in BLOCKS:
        raise InputError(
            f"serve={value!r} names a type that GGUF does not have{near(kind, [*BLOCKS])}; give one of those"
        )
    return Serving(Server(name), f"{name}{colon}{kind}", BLOCKS[kind] if colon else 1)


def constraints(units: UnitMap, asked: Serving | None) -> Constraints:
    """What a plan of this map has to keep to.

    Raises:
        InputError: the server cannot load anything that is cut from this model; says what would be needed.
    """
    if asked is None:
        return Constraints()
    if not _counting(units):
        notes = [note for note in units.notes if "configuration" in note]
        raise InputError(
            f"serve={asked.name!r} goes by the fields of a configuration that count units, and none of {units.model}'s "
            f"does{''.join(f' ({note})' for note in notes[:1])}: give a transformers model whose map was proven "
            "(verify=True), or leave out serve="
        )
    other = unlike_deci(units)
    if asked.server is Server.DECI and other:
        raise InputError(
            f"serve='deci' cannot load what is cut from {units.model}: {other}; use serve='hf', or 'gguf' with all "
            "layers equal"
        )
    if asked.server is Server.VLLM:
        found = _tied(units, _by_layer_but_heads)
    elif asked.server is Server.HF or other:
        found = _in_whole_layers(units, _tied(units, _anywhere))
    else:
        found = _free(units)
    return _in_blocks(units, found, asked.block)


def serves(units: UnitMap, removed: Sequence[IndexArray]) -> dict[str, str]:
    """Per server "yes", or why it cannot load what is left when these units go (per group of the map)."""
    cut = [g for g, gone in enumerate(removed) if gone.size]
    if not _counting(units):
        return {server.value: "no field of a configuration counts what can be cut" for server in Server}
    alike = _uncounted(units, [g for g in cut if g not in units.branched]) or _not_admitted(units, removed)
    hf = alike or _several_values(units, removed, _anywhere) or _parts_of_layers(units, removed)
    vllm = alike or _several_values(units, removed, _by_layer_but_heads)
    deci = unlike_deci(units) or _outside_deci(units, cut)
    gguf = f"only as deci, since {hf}, and {deci}" if hf and deci else YES
    return {"hf": hf or YES, "vllm": vllm or YES, "gguf": gguf, "deci": deci or YES}


def layer_of(name: str) -> str:
    """The layer that a module lies in: its path up to the first number; empty outside of all lists."""
    found = re.match(r"(?:.*?\.)?\d+(?=\.|$)", name)
    return found.group() if found else ""


def shares(units: UnitMap, counted: ConfigField, removed: Sequence[int]) -> dict[int, Fraction]:
    """Per group of a field the value that would be right for it when so many of its units go."""
    kept = {g: units.groups[g].units - int(removed[g]) for g in counted.groups}
    return {g: Fraction(counted.size * n, units.groups[g].units) for g, n in kept.items()}


def _counting(units: UnitMap) -> list[ConfigField]:
    """Fields that change with their groups (the size of a head does not)."""
    return [f for f in units.config if not f.fixed]


def _anywhere(group: AxisGroup) -> str:
    """One number of a field holds for all layers."""
    return ""


def _by_layer_but_heads(group: AxisGroup) -> str:
    """A layer has a number of its own, but for heads."""
    return "" if group.kind == "head" else layer_of(group.name)


def _tied(units: UnitMap, place: Callable[[AxisGroup], str]) -> Constraints:
    """Groups of a field in one place move together, and with what another field ties to them."""
    sets: list[tuple[set[int], list[ConfigField]]] = []
    for counted in _counting(units):
        by_place: dict[str, set[int]] = {}
        for g in counted.groups:
            by_place.setdefault(place(units.groups[g]), set()).add(g)
        for members in by_place.values():
            touching = [item for item in sets if item[0] & members]
            sets = [item for item in sets if item not in touching]
            merged = members.union(*(item[0] for item in touching))
            sets.append((merged, [*(f for item in touching for f in item[1]), counted]))
    stays = {
        g: f"no field of the configuration counts its {plural(units.groups[g].kind)}"
        for g in units.prunable
        if g not in units.branched and not any(g in members for members, _ in sets)
    }
    ties = []
    for members, fields in sets:
        frozen = min((g for g in members if units.groups[g].frozen is not None), default=None)
        if frozen is not None:
            why = f"{fields[0].name} counts {units.groups[frozen].name} as well, which stays"
            stays |= dict.fromkeys(members.intersection(units.prunable), why)
        else:
            ties.append(_tie(units, members, fields))
    return Constraints(tuple(sorted(ties, key=lambda tie: tie.groups)), stays)


def _tie(units: UnitMap, members: Iterable[int], fields: Sequence[ConfigField]) -> Tie:
    groups = tuple(sorted(members))
    grain = math.gcd(*(units.groups[g].units for g in groups), *(f.size for f in fields))
    parts = np.arange(1, grain)
    bound = [(f.size, f.admitted) for f in fields if f.admitted is not None]
    for size, admitted in bound:
        parts = parts[np.isin(size - parts * (size // grain), admitted)]
    return Tie(groups, grain, parts if bound else None)


def _in_whole_layers(units: UnitMap, found: Constraints) -> Constraints:
    """Branches go with all others of their layer, where one number counts the layers; else they stay."""
    ties = [Tie(groups, units.groups[groups[0]].units, same=True) for groups in _layers(units)]
    others = units.branched.intersection(units.prunable).difference(*(tie.groups for tie in ties))
    stays = dict.fromkeys(sorted(others), "every layer is built with all its branches")
    return Constraints((*found.ties, *ties), {**found.stays, **stays})


def _layers(units: UnitMap) -> list[tuple[int, ...]]:
    """Groups whose units are the branches of the layers of a list, unit k of each of them those of layer k."""
    number = {units.groups[g].axes[0].axis.tensor: g for g in units.branched}
    found = []
    for held in _counted_blocks(units):
        groups = {number[name] for own in held.branches for name, _ in own}
        every = {(name, k) for k in range(len(held.names)) for name in number if number[name] in groups}
        alike = every == {(name, unit) for k, own in enumerate(held.branches) for name, unit in own if unit == k}
        if groups and alike and all(units.groups[g].frozen is None for g in groups):
            found.append(tuple(sorted(groups)))
    return found


def _counted_blocks(units: UnitMap) -> list[Blocks]:
    """Lists of which a configuration says how many modules they have."""
    return [held for held in units.blocks.values() if any("config." in f"{name}." for _, name in held.counts)]


def _parts_of_layers(units: UnitMap, removed: Sequence[IndexArray]) -> str:
    """A branch that goes and leaves its layer there."""
    gone = {(units.groups[g].axes[0].axis.tensor, unit) for g in units.branched for unit in removed[g].tolist()}
    whole = {branch for held in _counted_blocks(units) for own in held.branches if gone >= {*own} for branch in own}
    alone = sorted(gone - whole)
    if not alone:
        return ""
    name, unit = alone[0]
    return f"every layer is built with all its branches, and of one only {units.branches[name][unit].last.module} goes"


def _free(units: UnitMap) -> Constraints:
    """Heads, the widths of feed-forward parts and whole parts are free by layer; all else stays."""
    outside = "deci has numbers per layer for heads and feed-forward widths only"
    stays = dict.fromkeys(_not_of_layers(units, units.prunable), outside)
    return Constraints(stays=stays)


def _in_blocks(units: UnitMap, found: Constraints, block: int) -> Constraints:
    """What is left of every contraction is a whole number of blocks; what has no smaller such number stays, and so does
    what moves with it."""
    multiples = {}
    for g in units.prunable if block > 1 else ():
        widths = {a.positions.shape[1] for a in units.groups[g].axes if a.consumer}
        multiples[g] = math.lcm(*(block // math.gcd(block, width) for width in widths))
    why = f"no smaller number of its units fills blocks of {block} weights"
    whole = [g for g, multiple in multiples.items() if 1 < multiple >= units.groups[g].units]
    stays = dict.fromkeys(whole, why)
    for tie in found.ties:
        first = next((g for g in tie.groups if g in whole), None)
        if first is not None:
            stays = dict.fromkeys(tie.groups, f"{why} in {units.groups[first].name}") | stays
    ties = tuple(tie for tie in found.ties if stays.keys().isdisjoint(tie.groups))
    return Constraints(ties, {**stays, **found.stays}, multiples)


def _uncounted(units: UnitMap, cut: Iterable[int]) -> str:
    counted = {g for f in _counting(units) for g in f.groups}
    missing = [units.groups[g] for g in cut if g not in counted]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return (
        f"no field of the configuration counts the {plural(missing[0].kind)} of {missing[0].name}{more}"
        if missing
        else ""
    )


def _several_values(units: UnitMap, removed: Sequence[IndexArray], place: Callable[[AxisGroup], str]) -> str:
    counts = [gone.shape[-1] for gone in removed]
    for counted in _counting(units):
        values = shares(units, counted, counts)
        by_place: dict[str, set[Fraction]] = {}
        for g, value in values.items():
            by_place.setdefault(place(units.groups[g]), set()).add(value)
        for where, found in by_place.items():
            if len(found) > 1 or next(iter(found)).denominator > 1:
                least, most = (f"{float(v):g}" for v in (min(found), max(found)))
                what = f"{least} to {most}" if least != most else least
                return f"{counted.name} is one whole number{f' in {where}' if where else ''}, and {what} would be right"
    return ""


def _not_admitted(units: UnitMap, removed: Sequence[IndexArray]) -> str:
    counts = [gone.shape[-1] for gone in removed]
    for counted in _counting(units):
        for value in sorted(set(shares(units, counted, counts).values())):
            if value != counted.size and counted.admitted is not None and value not in counted.admitted:
                return f"the configuration refuses {counted.name}={value}; it admits {listed(counted.admitted)}"
    return ""


def listed(values: Sequence[int]) -> str:
    """Numbers in a few words."""
    shown = [str(v) for v in sorted(values, reverse=True)]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:7], "…"]) or "none"


def unlike_deci(units: UnitMap) -> str:
    """Why the architecture deci cannot hold this model; empty where its tensors look like what deci holds.

    Deci is Llama with numbers per layer: in a layer two norms without biases, attention of four matrices (fused ones
    are taken apart), a gated feed-forward part of three. Other things than tensors (how positions are told, where norms
    are applied) are not seen here: that is for who writes the file.
    """
    if any(kind.startswith("expert") for kind in _kinds(units)):
        return "deci has no experts"
    matrices: dict[str, int] = {}
    norms: dict[str, int] = {}
    for name, shape in units.shapes.items():
        where, module = layer_of(name), name.rpartition(".")[0]
        if not where or not name.endswith(".weight"):
            continue
        if len(shape) == 1:
            norms[where] = norms.get(where, 0) + 1
            if f"{module}.bias" in units.shapes:
                return f"deci's norms have no biases, and {module} has one"
        else:
            matrices[where] = matrices.get(where, 0) + 1
    for layer, count in matrices.items():
        if norms.get(layer, 0) != 2:
            return f"a layer of deci has 2 norms, and {layer} has {norms.get(layer, 0)}"
        if count > 7:
            return f"a layer of deci has 7 matrices, and {layer} has {count}"
    for group in units.groups:
        if group.kind == "neuron" and layer_of(group.name) and not _gated(group, units):
            return f"deci's feed-forward parts are gated, and {group.name} is not"
    return ""


def _gated(group: AxisGroup, units: UnitMap) -> bool:
    """A unit is made by two rows: of two matrices, or of one that is both."""
    made = [a for a in group.axes if not a.consumer and len(units.shapes.get(a.axis.tensor, ())) > 1]
    return sum(a.positions.shape[1] for a in made) == 2


def plural(kind: str) -> str:
    """Units of a kind: heads, branches."""
    return f"{kind}es" if kind.endswith("ch") else f"{kind}s"


def _kinds(units: UnitMap) -> set[str]:
    return {group.kind for group in units.groups} | {kept.kind for kept in units.kept}


def _not_of_layers(units: UnitMap, groups: Iterable[int]) -> list[int]:
    """Groups of which deci has no number per layer."""

    def fine(g: int) -> bool:
        group = units.groups[g]
        if g in units.branched:
            return all(layer_of(branch.last.module) for a in group.axes for branch in units.branches[a.axis.tensor])
        return group.kind in ("head", "neuron") and bool(layer_of(group.name))

    return [g for g in groups if not fine(g)]


def _outside_deci(units: UnitMap, cut: Iterable[int]) -> str:
    outside = _not_of_layers(units, cut)
    return f"deci has no number per layer for the units of {units.groups[outside[0]].name}" if outside else ""
