#!/usr/bin/env bash
# torch: FlopCounterMode sees no attention on a CPU, and nothing at all of an encoder layer in eval mode.
#
# Guessed: torch's own counter counts every product of torch's own modules, the same on every device and in every mode; what
#   it cannot count, it names.
# Seen with torch 2.14.1: (1) of scaled_dot_product_attention the two products count on the meta device, and count zero on a
#   CPU, where another operator runs that has no entry. (2) nn.TransformerEncoderLayer counts its linear layers in train
#   mode; in eval mode without gradients, where one fused operator runs, the total is 0. Nothing is said in either case.
# Why it matters: pruning is judged by FLOPs before and after. Counted in the mode in which models are measured, a
#   transformer has none, or its heads cost nothing, so that a plan that takes heads seems to save their projections alone.
# fairkern: costs are counted while an operator is traced into its products (docs/design.md), and tests that hold
#   them against this counter give it the missing entries (tests/axes/harness.py).
#
# Installs torch in a temporary folder, runs it, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1
"$place/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


tokens, heads, width = 10, 4, 8
attention = 2 * 2 * heads * tokens * tokens * width  # two products, two operations a multiply-add
for device in ("meta", "cpu"):
    q, k, v = torch.randn(3, 1, heads, tokens, width, device=device)
    found = counted(lambda: nn.functional.scaled_dot_product_attention(q, k, v))
    print(f"attention on {device}: {found} of {attention}")
    assert found == {"meta": attention, "cpu": 0}[device]

layer = nn.TransformerEncoderLayer(32, heads, 64, dropout=0.0, batch_first=True)
x = torch.randn(1, tokens, 32)
linear = 2 * tokens * 32 * (3 * 32 + 32 + 2 * 64)
for training in (True, False):
    found = counted(lambda: layer.train(training)(x))
    print(f"an encoder layer, {'train' if training else 'eval'} mode: {found}; its linear layers alone are {linear}")
    assert found >= linear if training else found == 0
with torch.no_grad():
    assert torch.allclose(layer.train()(x), layer.eval()(x), atol=1e-5), "both modes compute the same"
PYTHON
