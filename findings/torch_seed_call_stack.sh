#!/usr/bin/env bash
# torch: what manual_seed costs depends on how deep in calls it is made: milliseconds where it seeds one generator.
#
# Guessed: setting a seed takes microseconds, whoever calls; as long as no GPU is used, one generator is seeded.
# Seen with torch 2.14.1, where no GPU has been used yet: tens of microseconds from the top of a program, and several
#   times as much for every further hundred calls around it (2 ms below 500 calls), where the generator itself is seeded in
#   one. The seed is noted for devices that may come to be used, each time with the whole call stack written out in words.
# Why it matters: what has to draw alike in every pass seeds before each of them (dropout that shall be the same twice, a
#   proof by two passes), and is called from a trainer, a notebook or a test runner: some hundred calls below the top, this
#   costs more than a small model's forward pass.
# fairkern: generators of devices in use are seeded, and no others (tests/model/test_process.py).
#
# Installs torch in a temporary folder, runs it, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1
CUDA_VISIBLE_DEVICES= "$place/venv/bin/python" - <<'PYTHON'
import time
from collections.abc import Callable

import torch


def below(calls: int, function: Callable[[], float]) -> float:
    return below(calls - 1, function) if calls else function()


def microseconds(seed: Callable[[int], object]) -> float:
    best = float("inf")
    for _ in range(200):
        began = time.perf_counter()
        seed(0)
        best = min(best, time.perf_counter() - began)
    return best * 1e6


top = microseconds(torch.manual_seed)
deep = {calls: below(calls, lambda: microseconds(torch.manual_seed)) for calls in (100, 500)}
generator = below(500, lambda: microseconds(torch.default_generator.manual_seed))
print(f"manual_seed: {top:.0f} us, {deep[100]:.0f} us below 100 calls, {deep[500]:.0f} us below 500; the generator: {generator:.1f} us")

torch.manual_seed(0)
one = torch.rand(3)
torch.default_generator.manual_seed(0)
assert torch.equal(one, torch.rand(3)), "the same numbers are drawn"
assert generator < 10 < top, "the ordinary case"
assert deep[100] > 3 * top and deep[500] > 3 * deep[100], "it grows with the calls around it"
PYTHON
