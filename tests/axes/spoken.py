"""What the rule of one operator says of one call, in lines: dimensions out, what stays, what goes together.

A tensor is written as its dimensions: `2` positions without nodes, `C4` four nodes of that name, `=3` alike, `=0:3`
zeros. Nodes are written by name and place: `C`, `C[1:3]`, `C0C2`; `+` is a node that the rule made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.axes.dims import CONSTANT, Dim, Source, Track, Uniform
from fairkern.axes.graph import Graph
from fairkern.axes.rules._call import Call, FunctionCall, ModuleCall
from fairkern.axes.rules.elementwise import pointwise
from fairkern.axes.rules.registry import RULES
from fairkern.axes.unless import Unless
from fairkern.model.nested import tensors_in
from fairkern.types import Axis, CallSite


@dataclass
class Speech:
    """One call: `tensor` writes its arguments, `of` runs it and gives its lines."""

    graph: Graph = field(default_factory=Graph)
    names: dict[str, np.ndarray] = field(default_factory=dict)
    tracks: dict[int, Track] = field(default_factory=dict)
    still: set[int] = field(default_factory=set)
    training: bool = False
    module: nn.Module | None = None
    entry: Tensor | None = None  # what the module was given
    function: Sequence[Tensor] | None = None  # what the function with the weight `w` was given
    slots: int | None = None
    where: str = ""
    kept: list[Tensor] = field(default_factory=list)

    def __call__(
        self,
        dims: str,
        values: Tensor | None = None,
        *,
        of: str = "",
        factor: str = "",
        still: bool = False,
        points: str = "",
        silent: bool = True,
        same: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """`of`, `factor`: the parameter that the values are, or are a multiple of; `points`: into which nodes."""
        found = [self._dim(word) for word in dims.split()]
        sizes = tuple(n for n, _ in found)
        made = torch.arange(float(np.prod(sizes))).reshape(sizes).to(dtype) if values is None else values
        assert tuple(made.shape) == sizes
        axes = tuple(Axis(of or factor, i) if n != 1 else None for i, n in enumerate(sizes))
        source = Source(of or factor, axes, silent=silent, same=same and bool(of)) if of or factor else None
        self.tracks[id(made)] = Track(
            sizes,
            tuple(d for _, d in found),
            source if of else None,
            source if factor else None,
            indexes=self._nodes_named(points) if points else None,
        )
        if still or of:
            self.still.add(id(made))
        self.kept.append(made)
        return made

    def inside(self, given: Tensor, module: nn.Module | None = None, slots: int | None = None) -> Tensor:
        """What the module that makes the call was given. `slots`: it holds experts, and a token goes to so many."""
        self.entry, self.module, self.slots = given, module, slots
        return given

    def within(self, given: Tensor, module: nn.Module | None = None, slots: int | None = None) -> Speech:
        """As `inside`, for a call that is given something else."""
        self.inside(given, module, slots)
        return self

    def through(self, *given: Tensor) -> Tensor:
        """What the function that is given the weight `w` was given besides, for the fourth time."""
        self.function = given
        return given[0]

    def train(self) -> Speech:
        self.training = True
        return self

    def _dim(self, word: str) -> tuple[int, Dim]:
        name, alike, zero, n = re.fullmatch(r"([A-Z]?)(=?)(0:)?(\d+)", word).groups()  # type: ignore[union-attr]
        if alike:
            return int(n), Uniform(zero=bool(zero))
        if not name:
            return int(n), CONSTANT
        return int(n), self._nodes_named(word)

    def _nodes_named(self, word: str) -> np.ndarray:
        name, n = word[0], int(word[1:])
        if name not in self.names:
            self.names[name] = self.graph.new(n)
        assert len(self.names[name]) == n
        return self.names[name]

    def of(self, operator: Any, *args: Any, **kwargs: Any) -> list[str]:
        """Runs the operator, and asks its rule."""
        defaults = {argument.name: argument.default_value for argument in operator._schema.arguments}
        arguments = {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}
        tensors = list(tensors_in(arguments))
        before = {id(t): self.tracks[id(t)] for t in tensors}
        outputs = list(tensors_in(operator(*args, **kwargs)))
        inside = ModuleCall(
            CallSite("m"),
            self.module,
            None if self.entry is None else self.tracks[id(self.entry)],
            None if self.entry is None else self.tracks[id(self.entry)],
            self.slots,
        )
        given = None if self.function is None else tuple(self.tracks[id(t)] for t in self.function)
        space, name = operator._schema.name.split("::")
        call = Call(
            name=name,
            args=arguments,
            tensors=tensors,
            outputs=outputs,
            graph=self.graph,
            inside=inside,
            function=None if given is None else FunctionCall({"w": 3}, given),
            lookup=lambda t: before[id(t)],
            count_flops=True,
            strides=tensors[0].stride() if name.startswith("as_strided") else (),
            still=lambda many: all(id(t) in self.still for t in many),
            training=self.training,
        )
        known = name if space == "aten" else f"{space}::{name}"
        rule = RULES.get(f"{known}.{operator._overloadname}") or RULES.get(known) or pointwise
        made = rule(call)
        self.where = call.where
        assert [track.sizes for track in made] == [tuple(o.shape) for o in outputs]
        return [*map(self._track, made), *self._facts()]

    def _track(self, track: Track) -> str:
        words = [" ".join(map(self._written, track.dims)) or "()"]
        for sign, source in (("of", track.source), ("times", track.factor)):
            if source is not None:
                axes = ",".join(
                    "-" if a is None else str(a) if isinstance(a, Axis) else "·".join(map(str, a)) for a in source.axes
                )
                marks = "".join(
                    f" {word}"
                    for word, said in (
                        ("changed", not source.same and sign == "of"),
                        ("loud", not source.silent),
                        ("part", source.part),
                    )
                    if said
                )
                words.append(f"{sign} {axes}{marks}")
        if track.indexes is not None:
            words.append(f"into {self._nodes(track.indexes)}")
        for dim, _, unless in track.mixed:
            words.append(f"mixed {self._written(dim)}" + ("" if unless is Unless.LISTED else f" unless {unless.value}"))
        return "; ".join(words)

    def _written(self, dim: Dim) -> str:
        if isinstance(dim, Uniform):
            return "=0" if dim.zero else "="
        return self._nodes(dim) if isinstance(dim, np.ndarray) else "."

    def _nodes(self, nodes: np.ndarray) -> str:
        places = []
        for node in nodes.reshape(-1).tolist():
            name = next((n for n, own in self.names.items() if node in own), "+")
            places.append(
                (name, node - int(self.names[name][0]) if name != "+" else node - sum(map(len, self.names.values())))
            )
        runs = []
        for _, run in groupby(enumerate(places), key=lambda p: (p[1][0], p[1][1] - p[0])):
            stretch = [place for _, place in run]
            (name, first), last = stretch[0], stretch[-1][1]
            whole = name != "+" and (first, last) == (0, len(self.names[name]) - 1)
            runs.append(name if whole else f"{name}{first}" if first == last else f"{name}[{first}:{last + 1}]")
        return "".join(runs)

    def _facts(self) -> list[str]:
        graph, nodes = self.graph, self._nodes
        return [
            *(f"{nodes(e.a)} with {nodes(e.b)}" for e in graph.edges),
            *(f"{nodes(f.nodes)} stays{self._unless(f.unless)}: {self._plain(f.reason)}" for f in graph.freezes),
            *(
                f"{nodes(f.flat)} is {' by '.join(map(nodes, f.factors))}{', first' * bool(f.first)}"
                for f in graph.factors
            ),
            *(f"{nodes(r.nodes)} ranked, {r.k}" for r in graph.rankings),
            *(
                f"{c.weight} reads {nodes(c.nodes)} {c.side.value} {c.dim} {c.site}{' summed' * c.summed}"
                f"{'' if c.whole is None else f' within {nodes(c.whole)}'}"
                for c in graph.contractions
            ),
            *(f"{p.weight} makes {nodes(p.nodes)} {p.dim} {p.site}" for p in graph.productions),
            *(f"apart {nodes(p.nodes)}" for p in graph.products),
            *(f"computed {c.tensor}" for c in graph.computed),
            *(f"flops {f.factor:g} {' '.join(map(nodes, f.dims))}".rstrip() for f in graph.flops),
            *(
                f"grouped {g.weight}: {nodes(g.channels)}{'' if g.groups is None else f' as {nodes(g.groups)}'}"
                for g in graph.grouped_convolutions
            ),
            *(f"group norm {nodes(g.channels)}" for g in graph.group_norms),
            *(f"batch norm {nodes(b.channels)}" for b in graph.batch_norms),
            *(f"given {nodes(g.nodes)}" for g in graph.given_sizes),
            *(f"sliced {start}:{end}" for _, places in graph.slices.values() for start, end in sorted(places)),
            *(f"alike with {nodes(found)}" for lengths in graph.met.values() for found in lengths.values()),
        ]

    def _plain(self, reason: str) -> str:
        """Without the operator and the module."""
        return re.sub(rf" (by|in|of) {re.escape(self.where)}|{re.escape(self.where)} ", "", reason)

    @staticmethod
    def _unless(unless: Unless) -> str:
        return "" if unless is Unless.LISTED else f" unless {unless.name.lower()}"
