#!/usr/bin/env bash
# torch: a CPU tensor that is indexed with a meta tensor gives a CPU tensor of whatever lies in memory, and no error.
#
# Guessed: meta tensors have no values, so an operator that is given one beside a CPU tensor raises for mixed devices, as
#   addition does, or gives a meta tensor.
# Seen with torch 2.14.1: indexing, index_select, gather, scatter and embedding with an index on meta, attention with a
#   mask on meta and a convolution with a bias on meta give CPU tensors of the right shape that nobody has written to
#   (NaN here, where torch is told to fill those); `x.add_(y)` with `y` on meta changes nothing. `x + y`, `x @ y`,
#   torch.cat and a linear layer with a bias on meta raise.
# Why it matters: within `with torch.device("meta")`, or after set_default_device("meta"), a model with values that makes
#   its positions in its forward (`self.table(torch.arange(n))`) returns noise, which looks like an untrained model.
# fairkern: stages leave a default device of meta (tests/test_surroundings.py).
#
# Installs torch in a temporary folder, runs it, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1
"$place/venv/bin/python" - <<'PYTHON'
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

torch.use_deterministic_algorithms(True)  # fills what is not written with NaN
x, image, tokens = torch.ones(3), torch.ones(1, 1, 3), torch.ones(1, 1, 2, 2)
index, vector = torch.tensor([0, 2], device="meta"), torch.ones(3, device="meta")
calls: dict[str, Callable[[], Tensor]] = {
    "index": lambda: x[index],
    "index_select": lambda: x.index_select(0, index),
    "gather": lambda: x.gather(0, index),
    "scatter": lambda: x.scatter(0, index, torch.zeros(2)),
    "embedding": lambda: F.embedding(index, torch.ones(3, 2)),
    "attention": lambda: F.scaled_dot_product_attention(tokens, tokens, tokens, torch.zeros(2, 2, device="meta")),
    "convolution": lambda: F.conv1d(image, torch.ones(1, 1, 2), torch.ones(1, device="meta")),
    "add_": lambda: x.clone().add_(vector),
    "add": lambda: x + vector,
    "matmul": lambda: x @ vector,
    "cat": lambda: torch.cat([x, vector]),
    "linear": lambda: F.linear(image, torch.ones(2, 3), torch.ones(2, device="meta")),
}


def given(call: Callable[[], Tensor]) -> str:
    try:
        made = call()
    except RuntimeError:
        return "raises"
    return f"{made.device.type}, {'not written' if made.isnan().all() else made.tolist()}"


found = {name: given(call) for name, call in calls.items()}
print(found)
silent = ("index", "index_select", "gather", "scatter", "embedding", "attention", "convolution")
expected = dict.fromkeys(silent, "cpu, not written") | {"add_": "cpu, [1.0, 1.0, 1.0]"}
assert found == expected | dict.fromkeys(("add", "matmul", "cat", "linear"), "raises"), found
PYTHON
