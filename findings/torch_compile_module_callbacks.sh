#!/usr/bin/env bash
# torch.compile: once anything was compiled, Python code of the compiler runs as any module goes, and Ctrl-C is lost in it.
#
# Guessed: what was compiled is marked; modules that the compiler never sees are made and dropped as before, in C.
# Seen with torch 2.14.1: after one plain function was compiled, every nn.Module made later in the process, of whatever
#   class, is followed by a weak reference whose callback is Python: dropping 10 modules is 20 calls, and still is after
#   `torch.compiler.reset()`. An interrupt that comes within one is printed as ignored, and the loop goes on.
# Why it matters: whoever builds and drops copies of models by the hundred (a search, a proof on a copy, a sweep) spends a
#   share of the time in there: some Ctrl-C, or a scheduler's signal that raises, does nothing, and works in the same
#   program where nothing was compiled.
# fairkern: signals wait while such a callback runs, and strike right after (tests/test_interrupts.py).
#
# Installs torch in a temporary folder, runs it, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1
"$place/venv/bin/python" - <<'PYTHON'
import signal
import sys
from types import FrameType

import torch
from torch import nn

signal.signal(signal.SIGINT, signal.default_int_handler)
ignored: list[type] = []
sys.unraisablehook = lambda what: ignored.append(what.exc_type)


def dropping(*, interrupt: bool = False) -> tuple[int, bool]:
    """How many Python functions run as 10 modules go, and whether a Ctrl-C in the last of them was heard."""
    modules = [nn.Identity() for _ in range(10)]
    calls = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call"
        if interrupt and event == "call" and calls == 20:
            signal.raise_signal(signal.SIGINT)

    sys.setprofile(count)
    try:
        modules.clear()
    except KeyboardInterrupt:
        return calls, True
    finally:
        sys.setprofile(None)
    return calls, False


before, _ = dropping()
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
after, _ = dropping()
torch.compiler.reset()
reset, _ = dropping()
_, heard = dropping(interrupt=True)
print(f"Python calls as 10 modules go: {before} before, {after} after a function was compiled, {reset} after a reset")
print(f"a Ctrl-C in one of them: {'heard' if heard else 'lost'}, ignored: {[kind.__name__ for kind in ignored]}")
assert (before, after, reset) == (0, 20, 20)
assert not heard
assert ignored == [KeyboardInterrupt]
PYTHON
