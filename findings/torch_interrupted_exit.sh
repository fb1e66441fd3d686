#!/usr/bin/env bash
# torch: Ctrl-C during the last operation of `with torch.no_grad():` leaves gradients off for the rest of the process.
#
# Guessed: that is what `with` is for; whatever is raised inside, __exit__ puts the state back.
# Seen with torch 2.14.1 on CPython 3.11: a signal that comes during `a @ b` (an operator, after which Python does not look
#   for signals) is raised at the first instruction of the next function. Where the block ends there, that function is
#   no_grad.__exit__ itself, which then does nothing: gradients stay off, every time. After `torch.matmul(a, b)` (a call)
#   Python looks at once, inside the block, and all is put back. torch.random.fork_rng, made by contextlib from a
#   generator, puts its state back only when the traceback has been dropped, which a notebook keeps.
# Why it matters: whoever stops a validation loop in a notebook goes on without gradients; and what any __exit__ written
#   in Python is to put back (masked weights, hooks) may stay as it is for good.
# fairkern: while it works, a handler looks where it is called, and lets the interrupt wait while something is entered or
#   left (fairkern/interrupts.py, tests/test_interrupts.py).
#
# Installs torch in a temporary folder, runs it, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1
"$place/venv/bin/python" - <<'PYTHON'
import os
import signal
import threading

import torch

torch.set_num_threads(1)
a = torch.randn(4000, 4000)  # half a second and more
state = torch.get_rng_state()


def send() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def after(block: str) -> tuple[bool, bool]:
    """Whether gradients are on, and the random state is as it was, once the interrupt has been caught."""
    later = threading.Timer(0.1, send)
    later.start()
    try:
        if block == "operator":
            with torch.no_grad():
                _ = a @ a
        elif block == "call":
            with torch.no_grad():
                _ = torch.matmul(a, a)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                _ = a @ a
    except KeyboardInterrupt:
        later.join()
        return now()
    raise AssertionError("no interrupt")


def now() -> tuple[bool, bool]:
    return torch.is_grad_enabled(), torch.equal(torch.get_rng_state(), state)


found = {}
for block in ("call", "operator", "fork_rng"):
    found[block] = after(block)
    if block == "fork_rng":
        found["later"] = now()
    torch.set_grad_enabled(True)
print(found)
assert found == {
    "call": (True, 0, True),
    "operator": (False, 0, True),
    "call": (True, True),
    "operator": (False, True),
    "fork_rng": (True, False),
    "later": (True, True),
}, found
PYTHON
