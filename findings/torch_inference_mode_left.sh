#!/usr/bin/env bash
# torch: leaving inference mode for a moment turns gradients on, also within no_grad.
#
# Guessed: `with torch.inference_mode(False)` changes nothing where inference mode is off; and where it is on, what the
#   code around that has chosen (no_grad) holds again.
# Seen with torch 2.14.1: within no_grad, and within no_grad around inference_mode, is_grad_enabled() is True inside of
#   inference_mode(False), and what is computed there has a graph; afterwards it is False again.
# Why it matters: a library that leaves inference mode to make a tensor that can be trained records the graphs of all
#   that it calls there, loaders and metrics of a validation loop included, and keeps their activations.
# fairkern: stages leave inference mode and enter no_grad beside it (tests/test_surroundings.py).
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

weight = torch.ones(2, requires_grad=True)


def graph(*around: contextlib.AbstractContextManager[object]) -> tuple[bool, bool]:
    """Whether gradients are on inside of inference_mode(False), and whether what is computed there has a graph."""
    with contextlib.ExitStack() as stack:
        for one in around:
            stack.enter_context(one)
        before = torch.is_grad_enabled()
        with torch.inference_mode(False):
            found = torch.is_grad_enabled(), (2 * weight).requires_grad
        assert torch.is_grad_enabled() == before
        return found


found = {
    "no_grad": graph(torch.no_grad()),
    "no_grad, inference_mode": graph(torch.no_grad(), torch.inference_mode()),
    "no_grad inside": graph(torch.inference_mode(False), torch.no_grad()),
}
print(found)
assert found == dict.fromkeys(found, (True, True)), found
PYTHON
