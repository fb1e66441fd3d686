"""A finished trace: what was seen of a model, for whoever solves it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fairkern.axes.flow import Flow
from fairkern.axes.graph import Graph
from fairkern.axes.scopes import Scopes
from fairkern.axes.smaller import Step
from fairkern.deadline import Deadline
from fairkern.model.fused import FusedExperts


@dataclass
class Tracing:
    """A finished trace: the graph, the nodes of every parameter and buffer, and what was not reached."""

    graph: Graph
    tensors: dict[str, tuple[np.ndarray | None, ...]]  # name -> nodes per dimension (None: size 0 or 1)
    parameters: frozenset[str]
    deadline: Deadline
    reached: set[str] = field(default_factory=set)
    reached_training: set[str] = field(default_factory=set)
    training: bool = True  # whether train mode, if anything was looked for there, ran to its end
    unused: frozenset[str] = frozenset()  # parameters that no input ever reaches, as the caller says
    sites: bool = True  # whether sizes that modules' code passes on were written down
    held: dict[str, tuple[str, str]] = field(default_factory=dict)  # reason -> what may read, in whose code
    scopes: Scopes = field(default_factory=Scopes)
    unknown: set[str] = field(default_factory=set)  # operators without a rule that met tracked positions
    notes: list[str] = field(default_factory=list)
    fused: dict[str, FusedExperts] = field(default_factory=dict)  # experts, by path of the module that holds them
    slots: dict[str, int] = field(default_factory=dict)  # to how many of them a token is sent at most
    calls: Counter[str] = field(default_factory=Counter)  # by module path: the most in one run of eval mode
    picked: set[str] = field(default_factory=set)  # modules that were given places that an index picked, as experts are
    widths: dict[str, int] = field(default_factory=dict)  # last dimension of what a module returned
    depth: bool = False  # whether branches of residual blocks are looked for
    flows: list[Flow] = field(default_factory=list)  # then: the values of every run in eval mode
    operators: dict[str, dict[str, None]] = field(default_factory=dict)  # by module: what its own code called, in order
    steps: list[Step] | None = None  # what ran in the run that is followed; None where nobody asks
    smaller: list[Any] = field(default_factory=list)  # per run, inputs on which the model does the same, or its own
    places: set[int] = field(default_factory=set)  # then: the sizes along which no units lie
