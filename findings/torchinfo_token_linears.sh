#!/usr/bin/env bash
# torchinfo: the multiply-adds of a linear layer are counted once per sample, however many tokens run through it.
#
# Guessed: a counter that is given an input and notes every layer's output shape counts a linear layer once per token, as
#   it counts a convolution once per position.
# Seen with torchinfo 1.8.0: a convolution of 1 x 1 over 14 x 14 positions has 196 times its weights; the linear layer that
#   computes the same of the same numbers, laid out as tokens, has its weights once. The shape it prints is right.
# Why it matters: the figure for a transformer is too small by the number of tokens, and by a factor of its own for each
#   kind of layer: of a net with a convolutional stem nearly all multiply-adds seem to be the stem's, so a plan for half of
#   "the FLOPs" that is checked by it prunes the wrong layers.
# fairkern: costs are counted from the shapes of the products that ran, tokens included (docs/design.md).
#
# Installs torch and torchinfo in a temporary folder, runs them, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1 torchinfo==1.8.0
"$place/venv/bin/python" - <<'PYTHON'
import torch
import torchinfo

images = torch.randn(1, 32, 14, 14)
tokens = images.flatten(2).mT  # the same numbers, [1, 196, 32]
convolution = torch.nn.Conv2d(32, 64, 1, bias=False)
linear = torch.nn.Linear(32, 64, bias=False)
with torch.no_grad():
    linear.weight.copy_(convolution.weight.flatten(1))
    assert torch.allclose(convolution(images).flatten(2).mT, linear(tokens), atol=1e-4), "they compute the same"

seen = {
    name: torchinfo.summary(layer, input_data=x, verbose=0)
    for name, layer, x in (("Conv2d", convolution, images), ("Linear", linear, tokens))
}
for name, found in seen.items():
    print(f"{name}: output {found.summary_list[0].output_size}, multiply-adds {found.total_mult_adds}")
assert seen["Conv2d"].total_mult_adds == 196 * 32 * 64, "the ordinary case"
assert seen["Linear"].summary_list[0].output_size == [1, 196, 64], "the shape is known"
assert seen["Linear"].total_mult_adds == 32 * 64, "and counts for nothing"
PYTHON
