#!/usr/bin/env bash
# torch.onnx: a layer of ordinary size that torch.nn.utils.prune has pruned is written with its weight and its mask, and
# multiplied at every run; a small layer is written once, masked.
#
# Guessed: the exporter folds constants (`optimize=True` is its default), so the file holds one tensor a layer, the masked
#   weight, and is as large as that of the unpruned model.
# Seen with torch 2.14.1 and onnxscript 0.7.2: a convolution of 8 channels (576 weights) is folded, one of 64 (36,864) is
#   not: what has more inputs than a limit of the optimiser is left alone. The file of the latter is nearly twice as large
#   as the unpruned model's and has a Mul before the convolution. The exporter before (`dynamo=False`) folds both. After
#   `prune.remove` the file is as guessed.
# Why it matters: masks and the default exporter make a model larger and slower than it was, and a test with a toy layer
#   shows the opposite.
# fairkern: cut weights are smaller tensors without masks; tests/integrations/test_onnx.py counts the numbers in a file.
#
# Installs torch, onnx and onnxscript in a temporary folder, runs them, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2
cat > "$place/masks.py" <<'PYTHON'
import math
import sys
import warnings

import onnx
import torch
from torch import nn
from torch.nn.utils import prune

warnings.filterwarnings("ignore")
PLACE = sys.argv[1]


def net(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3)).eval()


def written(model: nn.Module, dynamo: bool) -> tuple[int, int]:
    """How many numbers the file holds, and how many multiplications it makes."""
    file = f"{PLACE}/model.onnx"
    if dynamo:
        torch.onnx.export(model, (torch.randn(1, 3, 8, 8),), dynamo=True, verbose=False).save(file)
    else:
        torch.onnx.export(model, (torch.randn(1, 3, 8, 8),), file, dynamo=False)
    graph = onnx.load(file).graph
    return sum(math.prod(item.dims) for item in graph.initializer), sum(node.op_type == "Mul" for node in graph.node)


for width in (8, 64):
    model = net(width)
    count = sum(p.numel() for p in model.parameters())
    assert written(model, dynamo=True) == (count, 0)
    prune.ln_structured(model[2], "weight", amount=0.5, n=2, dim=0)
    masked, before = written(model, dynamo=True), written(model, dynamo=False)
    prune.remove(model[2], "weight")
    removed = written(model, dynamo=True)
    print(f"{width} channels, {count} parameters: (numbers, Mul) {masked}; dynamo=False {before}; removed {removed}")
    weights = 9 * width * width
    assert masked == ((count, 0) if width == 8 else (count + weights, 1)), masked
    assert before == removed == (count, 0), (before, removed)
PYTHON
"$place/venv/bin/python" "$place/masks.py" "$place"
