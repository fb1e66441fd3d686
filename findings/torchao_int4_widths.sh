#!/usr/bin/env bash
# torchao: quantize_ to int4 leaves a linear layer as it was, without a word, where its width is no multiple of the group.
#
# Guessed: a layer that cannot be quantised raises, or is named in a warning: torchao's other configuration with groups
#   raises "divisible by block_size" for the very same layer.
# Seen with torchao 0.18.0: Int4WeightOnlyConfig returns, and the weight is a Parameter with the same numbers in bfloat16; there is no
#   warning and no line in the log at its standard level. Whether the device can hold int4 at all is not even looked at, as it
#   is for a layer that fits.
# Why it matters: structured pruning makes such widths (300 of 512): of a pruned model nearly all layers that read pruned
#   units may stay in 16 bits, and the memory that was saved on paper is not.
# fairkern: `round_to=` gives widths that a group divides (docs/guide/deploy.md, "int8").
#
# Installs torch and torchao in a temporary folder, runs them on a CPU, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1 torchao==0.18.0
CUDA_VISIBLE_DEVICES= "$place/venv/bin/python" - <<'PYTHON'
import logging
import warnings

import torch
from torch import nn
from torchao.quantization import Int4WeightOnlyConfig, Int8DynamicActivationIntxWeightConfig, quantize_

said: list[str] = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger().addHandler(handler)


def tried(width: int, config: object) -> str:
    model = nn.Sequential(nn.Linear(width, 64)).to(torch.bfloat16)
    before = model[0].weight
    try:
        quantize_(model, config)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    after = model[0].weight
    same = type(after) is nn.Parameter and after.dtype is torch.bfloat16 and torch.equal(after, before)
    return "left as it was" if same else "quantised"


with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    fits, odd = (tried(width, Int4WeightOnlyConfig(group_size=32)) for width in (320, 300))
    other = tried(300, Int8DynamicActivationIntxWeightConfig())
print(f"int4, 320 wide: {fits[:70]}")
print(f"int4, 300 wide: {odd}; warnings that name it: {[str(w.message) for w in warned if '300' in str(w.message)]}")
print(f"intx, 300 wide: {other}")
assert fits != "left as it was", "a layer that fits is taken, or what is missing is said"
assert odd == "left as it was"
assert "divisible by block_size" in other
assert not [line for line in (*said, *(str(w.message) for w in warned)) if "300" in line or "skip" in line.lower()]
PYTHON
