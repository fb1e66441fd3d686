"""Modes of ours: the compiler is not imported for them, and does not look into them."""

import subprocess
import sys

import torch
import torch._dynamo

from fairkern.model.operator_mode import UncompiledMode

_TRACED = """
import sys, torch
from torch import nn
import fairkern as fk
layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
assert fk.trace(layers, torch.ones(1, 3, 6, 6)).proven
print("torch._dynamo" in sys.modules)
"""


class _Counting(UncompiledMode):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        return func(*args, **(kwargs or {}))


def test_a_trace_does_not_import_the_compiler():
    found = subprocess.run([sys.executable, "-c", _TRACED], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_what_is_compiled_does_not_take_in_the_mode():
    compiled: list[str] = []

    def backend(graph, _):
        compiled.append(graph.code)
        return graph.forward

    function = torch.compile(lambda x: torch.relu(x) * 2, backend=backend)
    with _Counting() as mode:
        function(torch.ones(2))
    assert mode.seen >= 2
    assert not any("seen" in code for code in compiled)
