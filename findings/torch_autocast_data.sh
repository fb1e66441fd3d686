#!/usr/bin/env bash
# torch: within one autocast region a weight that was changed through `.data` goes on with its old values.
#
# Guessed: autocast casts a weight when it is used, or notices that it has changed since (tensors have version counters).
# Seen with torch 2.14.1 on a CPU, bfloat16: a layer is called, its weight is zeroed through `.data` (or by a copy of other
#   weights, as load_state_dict makes it), and it is called again: the result is that of the old weight. After
#   torch.clear_autocast_cache() it is zero. So it is under no_grad as well, where nothing needs the cast any more.
# Why it matters: masks that are put on and taken off, weights that are averaged, swapped or loaded while a validation loop
#   runs under one autocast are compared with what they were before, without a word.
# fairkern: masks, cuts in place and compensation clear that cache on entering and on leaving (tests/test_autocast.py).
#
# Installs torch in a temporary folder, runs it, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1
"$place/venv/bin/python" - <<'PYTHON'
import contextlib

import torch
from torch import nn


def second(change: str, *, clear: bool = False, gradients: bool = True) -> bool:
    """Whether the second call in one region gives zero, after the weight has become zero."""
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 4, bias=False), torch.randn(2, 8)
    with torch.autocast("cpu", torch.bfloat16), contextlib.nullcontext() if gradients else torch.no_grad():
        layer(x)
        if change == "data":
            layer.weight.data.zero_()
        else:
            layer.load_state_dict({"weight": torch.zeros(4, 8)})
        if clear:
            torch.clear_autocast_cache()
        return bool((layer(x) == 0).all())


found = {
    "data": second("data"),
    "state": second("state"),
    "cleared": second("data", clear=True),
    "no_grad": second("data", gradients=False),
}
print(found)
assert found == {"data": False, "state": False, "cleared": True, "no_grad": False}, found
PYTHON
