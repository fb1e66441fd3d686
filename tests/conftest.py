"""Before torch is imported: threads that wait for each other sleep, and Ctrl-C is heard.

OpenMP lets them spin, and where two processes share the cores, most of the time goes into that: tests of small networks
take several times as long. Benchmarks, which run alone, keep what OpenMP does by itself.

Every test begins with the same random state, whatever ran before it: what it draws doesn't depend on its neighbours.

What PYTEST_ADDOPTS says is for this run, not for those that tests start.

A shell that starts a command in the background has it ignore SIGINT, which tests of interrupts send.
"""

from __future__ import annotations

import os
import signal

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.pop("PYTEST_ADDOPTS", None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    import torch  # after what is set above

    torch.manual_seed(0)
