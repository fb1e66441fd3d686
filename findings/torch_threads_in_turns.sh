#!/usr/bin/env bash
# torch: a forward pass costs more as soon as Python threads take turns with it, though never two of them run at once.
#
# Guessed: threads of which one runs at a time, each waiting for its turn, cost a switch per turn: some microseconds.
# Seen with torch 2.14.1 on Linux, two threads within operators: sixteen passes that take turns layer by layer needed 1.0
#   to 2.5 times as long as one after the other, mostly 1.5 to 1.7, and wait (voluntary context switches) two or
#   three times more at every turn than the turns themselves make them wait. Every Python thread that runs an operator
#   brings a pool of workers of its own; once there are more of these in a process than processors, none of them keeps
#   looking for work, and each parallel region has to wake a worker and be woken by it. With one thread within operators
#   there is no such cost.
# Why it matters: pipelines that move several batches, or an original and its pruned copy, through a model layer by layer
#   in threads; servers with a thread per request. Neither a profile of operators nor the load shows why they are slower.
# fairkern: sequential compensation walks that way; docs/performance.md counts it, and says what it costs.
#
# Installs torch in a temporary folder, runs it, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1
env -u OMP_NUM_THREADS -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT "$place/venv/bin/python" - <<'PYTHON'
import os
import queue
import resource
import statistics
import threading
import time

import torch
from torch import nn

PASSES = max(16, os.cpu_count() or 1)
layers = [nn.Conv2d(3, 32, 3)]
for _ in range(20):
    layers += [nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
layers = [layer.eval() for layer in layers]
x = torch.randn(16, 3, 32, 32)


@torch.no_grad()
def one_after_the_other() -> None:
    for _ in range(PASSES):
        h = x
        for layer in layers:
            h = layer(h)


def in_turns() -> None:
    go, come = [queue.SimpleQueue() for _ in range(PASSES)], queue.SimpleQueue()

    @torch.no_grad()
    def walk(turn: queue.SimpleQueue) -> None:
        h = x
        for layer in layers:
            turn.get()
            h = layer(h)
            come.put(None)

    threads = [threading.Thread(target=walk, args=(turn,)) for turn in go]
    for thread in threads:
        thread.start()
    for _ in layers:
        for turn in go:
            turn.put(None)
            come.get()  # nobody else runs meanwhile
    for thread in threads:
        thread.join()


def measured(run) -> tuple[float, int]:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw, time.perf_counter()
    run()
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before


def compared(threads: int) -> tuple[float, float]:
    """The time in turns by that of passes one after the other, and how often somebody waits more for every turn."""
    torch.set_num_threads(threads)
    rounds = [(measured(one_after_the_other), measured(in_turns)) for _ in range(8)][1:]
    time_ratio = min(turns[0] for _, turns in rounds) / min(plain[0] for plain, _ in rounds)
    handed = PASSES * len(layers)
    waits = statistics.median(turns[1] - plain[1] for plain, turns in rounds) / handed
    print(f"{threads} within operators: in turns {time_ratio:.2f} of the time, {waits:.2f} waits more per turn")
    return time_ratio, waits


two, one = compared(2), compared(1)
assert one[0] < 1.2, "the ordinary case: turns alone cost next to nothing"
assert two[1] > one[1] + 1, "with two they wait for more than for their turns"
PYTHON
