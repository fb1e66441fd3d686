#!/usr/bin/env bash
# torch.distributed.checkpoint: what it raises is no Exception, so that `except Exception` around a load does not hold.
#
# Guessed: a checkpoint that does not fit is reported by a RuntimeError, as load_state_dict does, or an error of the
#   library's own that derives from Exception.
# Seen with torch 2.14.1, with and without several processes: tensors of another size, or a name that is not there, raise
#   CheckpointException, which derives from BaseException like KeyboardInterrupt; the ValueError that says what is wrong is
#   inside of it, by the number of the process, and is not its cause.
# Why it matters: "load this one, or else the one before", retries, and job runners that write errors down all catch
#   Exception. After pruning, sizes differ, so this is the error that comes: the program ends as if it had been interrupted.
# fairkern: plans and pruned weights are ordinary safetensors files; InputError says which tensor does not fit.
#
# Installs torch in a temporary folder, runs it, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1
"$place/venv/bin/python" - "$place/checkpoint" 2>&1 <<'PYTHON' | grep --invert-match --ignore-case warn
import logging
import sys

import torch
import torch.distributed.checkpoint as dcp

logging.disable()
folder = sys.argv[1]
dcp.save({"weight": torch.ones(8, 4)}, checkpoint_id=folder, no_dist=True)
whole = {"weight": torch.zeros(8, 4)}
dcp.load(whole, checkpoint_id=folder, no_dist=True)
assert whole["weight"].eq(1).all(), "the ordinary case"

for name, state in (("half of its rows", {"weight": torch.zeros(4, 4)}), ("another name", {"bias": torch.zeros(4)})):
    came = None
    try:
        try:
            dcp.load(state, checkpoint_id=folder, no_dist=True)
        except Exception as error:
            came = error
    except BaseException as error:
        said = [f"{type(inner).__name__}: {inner}" for inner, *_ in error.failures.values()]
        print(f"{name}: {[kind.__name__ for kind in type(error).__mro__]}, by process: {said}")
        assert type(error).__name__ == "CheckpointException" and not isinstance(error, Exception)
        assert error.__cause__ is None
    else:
        raise AssertionError(f"{name}: {came!r} was caught as an Exception, or nothing was raised")
PYTHON
