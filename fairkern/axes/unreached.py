"""What the example inputs did not reach: parameters that stay, and what other inputs may let them meet."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from fairkern.axes.facts import Contraction
from fairkern.axes.solver import components
from fairkern.axes.tracing import Tracing
from fairkern.errors import InputError
from fairkern.model.tensors import LISTS, named_tensors, runner
from fairkern.options import near, with_parents
from fairkern.types import Axis, CallSite

_SHOWN = 3  # names in a note


def named_unused(model: nn.Module, unused: str | Iterable[str]) -> frozenset[str]:
    """The parameters that these names or `fnmatch` patterns, of parameters or of modules, stand for.

    Raises InputError for one that is not a string or stands for no parameter.
    """
    patterns = [unused] if isinstance(unused, str) else list(unused)
    if not patterns:
        return frozenset()
    parts = {name: set(with_parents(name)) for name, _ in model.named_parameters()}
    known = sorted(set().union(*parts.values()))
    found: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InputError(f"unused={pattern!r} is not a name; expected for example ['fc', 'embeddings.mask_token']")
        hit = {name for name, own in parts.items() if any(fnmatch.fnmatchcase(part, pattern) for part in own)}
        if not hit:
            raise InputError(f"unused={pattern!r} matches no parameter and no module with any{near(pattern, known)}")
        found |= hit
    return frozenset(found)


def freeze_unreached(model: nn.Module, tracing: Tracing) -> None:
    """Parameters that no run read stay, and so do axes that other inputs may let them meet.

    What those are goes by whose code could read the parameter, and what passed through that code:

    - A module that no code called holds nothing: whoever calls it after a cut is told by its sizes. Two things say that
      other inputs call it, and then it holds what it may read in the code that would: others of its list were called
      (an expert, a head for large images), or train mode could not be looked at.
    - A parameter of a module that was called (a mask token, a branch by a flag) holds what it may read in the code of
      that module. A vector that fits one stream there alone goes along with it instead: whether it is added, put in, or
      multiplied and summed, what is left of it fits what is left of the stream. So does a tensor of the shape of
      others of its module that were read and that go together (biases per head).
    - What the caller says is unused holds nothing.
    """
    reached = tracing.reached | tracing.reached_training
    missed = sorted(tracing.parameters - reached)
    called = sorted(tracing.unused & reached)
    if called:
        raise InputError(f"unused= takes in {called[0]}, which the example inputs reach")
    if not missed:
        return
    unread = _Unread(model, tracing)
    for name in missed:
        if not (name not in tracing.unused and unread.goes_along(name)):
            for nodes in tracing.tensors[name]:
                if nodes is not None:
                    tracing.graph.freeze(nodes, "is not reached by the example inputs")
            if name not in tracing.unused:
                unread.hold(name)
    tracing.notes.extend(unread.notes(missed))


@dataclass
class _Unread:
    """Where parameters that no run read may be read."""

    model: nn.Module
    tracing: Tracing
    along: list[str] = field(default_factory=list)  # those that go along with a stream

    def __post_init__(self) -> None:
        self.shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(self.model).items()}
        self.modules = dict(self.model.named_modules())
        self._labels: np.ndarray | None = None

    def goes_along(self, name: str) -> bool:
        """Joins a vector with the stream that it fits, and another tensor with those that are like it; False where it
        fits none or several."""
        graph, scopes = self.tracing.graph, self.tracing.scopes
        owner = runner(self.model, name.rpartition(".")[0])
        long = [(dim, nodes) for dim, nodes in enumerate(self.tracing.tensors[name]) if nodes is not None]
        if not scopes.called(owner):
            return False
        if len(long) > 1:
            return self._goes_with_sibling(name, owner)
        if not long:
            return False
        (dim, nodes) = long[0]
        streams = [stream for stream in scopes.streams(owner) if len(stream) == len(nodes)]
        if self._labels is None:
            self._labels = components(graph.edges, graph.nodes)
        if len({self._labels[stream].tobytes() for stream in streams}) != 1:
            return False
        self._join(name, owner, dim, streams[0])
        self.along.append(name)
        return True

    def _goes_with_sibling(self, name: str, owner: str) -> bool:
        """Joins a tensor, by its last dimensions, with the tensors of its module that were read and have that shape
        (`[heads, size]`, beside a bias per head); False where there is none, or they do not go together."""
        path, shape, tensors = name.rpartition(".")[0], self.shapes[name], self.tracing.tensors
        beside = [
            (other, tuple(self.shapes[other]))
            for other in sorted(self.tracing.reached & tensors.keys())
            if other.rpartition(".")[0] == path and len(self.shapes[other]) > 1
        ]
        alike = [(other, size) for other, size in beside if shape[-len(size) :] == size and len(set(size)) == len(size)]
        lines = [[nodes for nodes in tensors[other] if nodes is not None] for other, _ in alike]
        if not alike or any(len(line) != len(alike[0][1]) for line in lines):
            return False
        if self._labels is None:
            self._labels = components(self.tracing.graph.edges, self.tracing.graph.nodes)
        if any(len({self._labels[nodes].tobytes() for nodes in same}) != 1 for same in zip(*lines, strict=True)):
            return False
        first = len(shape) - len(lines[0])
        for dim, nodes in enumerate(tensors[name]):
            if dim >= first:
                self._join(name, owner, dim, lines[0][dim - first])
            elif nodes is not None:
                self.tracing.graph.freeze(nodes, "is not reached by the example inputs")
        self.along.append(name)
        return True

    def _join(self, name: str, owner: str, dim: int, stream: np.ndarray) -> None:
        graph, nodes = self.tracing.graph, self.tracing.tensors[name][dim]
        assert nodes is not None
        graph.join(nodes, stream)
        # silenced with its units, lest the masked model sum over what the cut one has not; heard nowhere
        axis, site = Axis(name, dim), CallSite(owner)
        graph.contractions.append(Contraction(axis, nodes, None, -1, site, "an unread branch", training=True))

    def hold(self, name: str) -> None:
        """Freezes what the parameter may read in the code that may read it."""
        module = self.modules.get(name.rpartition(".")[0])
        for code in sorted(self._readers(name)):
            for stream in self.tracing.scopes.streams(code):
                if _may_read(module, self.shapes[name], len(stream)):
                    reason = f"may be read by {name}, which the example inputs do not reach"
                    self.tracing.graph.freeze(stream, reason)
                    self.tracing.held[reason] = self._named(name), code

    def _readers(self, name: str) -> set[str]:
        """Whose code would read this parameter on other inputs, as far as the runs tell."""
        scopes = self.tracing.scopes
        path = runner(self.model, name.rpartition(".")[0])
        if scopes.called(path):
            return {path}
        if scopes.touched(path):
            return scopes.users(path)
        listed = False
        while not scopes.touched(path) and path:
            path = path.rpartition(".")[0]
            listed = isinstance(self.modules[path], LISTS)
        if listed:
            return scopes.users(path)
        if self.tracing.training:
            return set()
        return {path} if scopes.called(path) else scopes.users(path)

    def notes(self, missed: Sequence[str]) -> Iterator[str]:
        """What was made of these parameters, and what would make more of them."""
        missed = [name for name in missed if name not in self.tracing.unused]
        idle = [name for name in missed if not self._readers(name)]
        if idle:
            tops = list(dict.fromkeys(map(self._named, idle)))
            values, whole = (sum(math.prod(self.shapes[n]) for n in names) for names in (idle, self.tracing.parameters))
            yield (
                f"{_listed(tops)}, with {values} of {whole} parameters, not called by the example inputs: stays as it "
                "is and holds nothing else back; in a cut model it fails on its sizes, unless inputs that call it are "
                "given as more="
            )
        if self.along:
            yield (
                f"{_listed(self.along)}, not reached by the example inputs: goes along with what it "
                "fits there; give inputs that reach it as more= to have that proven"
            )

    def _named(self, name: str) -> str:
        """The outermost module around a parameter of which no code called or read anything, or the parameter."""
        path, found = name.rpartition(".")[0], name
        while path and not self.tracing.scopes.touched(path):
            path, found = path.rpartition(".")[0], path
        return found


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def remedies(tracing: Tracing, reasons: Collection[str]) -> Iterator[str]:
    """Where one of these reasons is that a parameter may be read: a note on all such, since behind the first that is
    told others may hold the same; and what would free it."""
    if tracing.held.keys() & set(reasons):
        names = list(dict.fromkeys(name for name, _ in tracing.held.values()))
        where = _listed(list(dict.fromkeys(code or "the model" for _, code in tracing.held.values())))
        yield (
            f"{_listed(names)}, not reached by the example inputs: holds what it may read in the code of {where}; to "
            f"free that, give inputs that reach it as more=, or unused={names} if none does"
        )


def note_train_only(model: nn.Module, tracing: Tracing) -> None:
    """Auxiliary heads: nothing is heard of them in eval mode, so that nothing says which of their units matter."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    heads = [name for name in sizes if name in tracing.reached_training - tracing.reached]
    if heads:
        count, total = sum(sizes[name] for name in heads), sum(sizes.values())
        tracing.notes.append(
            f"{count} of {total} parameters are reached in train mode only, first {heads[0]}: units of theirs are not "
            "cut; a model that is not trained further can do without these modules"
        )


def _may_read(module: nn.Module | None, shape: tuple[int, ...], n: int) -> bool:
    """Whether a tensor of this shape may meet a dimension of `n` positions, going by sizes alone."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return n in (module.in_channels, module.out_channels)
    if len(shape) == 2:  # a matrix may follow a flatten
        return any(size % n == 0 for size in shape)
    return n in shape
