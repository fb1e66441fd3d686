#!/usr/bin/env bash
# safetensors: what `load_file` returned changes when its file is overwritten in place, long after it returned.
#
# Guessed: a loader reads; the tensors are in memory of their own, and what becomes of the file afterwards is all one.
# Seen with safetensors 0.8.0 and torch 2.14.1: tensors of safetensors.torch.load_file and safe_open are a private map of
#   the file. Bytes that are written into the same file later (`cp new old`, `rsync --inplace`, a download that goes on)
#   show in them, also in a module that took them by `load_state_dict(assign=True)`. A tensor that was written to since
#   keeps its own page. safetensors.numpy.load_file reads; so does `load_state_dict` without assign, which copies. A file
#   that is renamed over the other one changes nothing.
# Why it matters: a server that loads a checkpoint and a job that copies the next one over it give a model that nobody
#   trained, with no error; so does a sum that is taken of the file before or after it is loaded.
# fairkern: reads files once, into memory of their own, sums up what it read, and replaces files by renaming
#   (fairkern/artefacts/tensors.py, tests/artefacts/test_tensors.py).
#
# Installs safetensors and torch in a temporary folder, runs them, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1 safetensors==0.8.0
cd "$place"
"$place/venv/bin/python" - <<'PYTHON'
import os

import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

for name, value in ("first", 1.0), ("second", 2.0):
    safetensors.torch.save_file({"weight": torch.full((1, 4), value)}, name)
first, second = (open(name, "rb").read() for name in ("first", "second"))
assert len(first) == len(second)


def after_overwriting(load, how):
    with open("model", "wb") as file:
        file.write(first)
    loaded = load()
    if how == "in place":
        with open("model", "r+b") as file:
            file.write(second)
    else:
        with open("next", "wb") as file:
            file.write(second)
        os.replace("next", "model")
    return float(loaded.flatten()[0])


def module(**options):
    made = nn.Linear(4, 1, bias=False)
    made.load_state_dict(safetensors.torch.load_file("model"), **options)
    return made.weight.detach()


found = {
    "torch, in place": after_overwriting(lambda: safetensors.torch.load_file("model")["weight"], "in place"),
    "torch, renamed": after_overwriting(lambda: safetensors.torch.load_file("model")["weight"], "renamed"),
    "numpy, in place": after_overwriting(lambda: safetensors.numpy.load_file("model")["weight"], "in place"),
    "a module, in place": after_overwriting(module, "in place"),
    "a module that assigns, in place": after_overwriting(lambda: module(assign=True), "in place"),
}
print(found)
assert found == {
    "torch, in place": 2.0,
    "torch, renamed": 1.0,
    "numpy, in place": 1.0,
    "a module, in place": 1.0,
    "a module that assigns, in place": 2.0,
}, found
PYTHON
