#!/usr/bin/env bash
# timm: its text of pruned shapes, with nothing pruned, makes another model of some of its own, and their weights load.
#
# Guessed: adapt_model_from_string with the shapes of the model itself gives the model back: with the model's weights,
#   loaded strictly, it computes the same, whatever kinds of Conv2d, BatchNorm2d and Linear it is made of; a model that the
#   text cannot say is refused.
# Seen with timm 1.0.31 and torch 2.14.1: resnet18, efficientnet_b0 and ecaresnet26t come back as they were. Of
#   resnetv2_50x1_bit every StdConv2d becomes a plain Conv2d, which does not standardise its weights: all weights load, and
#   the outputs are more than half away from the model's. Of resnext50_32x4d 32 groups become depthwise convolutions;
#   there at least the weights do not fit.
# Why it matters: who writes such a text for a pruned model of another family ships a model that loads without a word
#   and answers otherwise.
# fairkern: to_text lets timm read what it wrote, compares layer by layer, and refuses with the reason
#   (tests/integrations/test_timm_format.py).
#
# Installs both in a temporary folder, runs them, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.14.1 timm==1.0.31
"$place/venv/bin/python" - <<'PYTHON'
import timm
import torch
from timm.models import adapt_model_from_string


def read_back(name: str) -> tuple[float, list[str]]:
    """How far what timm makes of a model's own shapes is from the model, and the layers that are of another class."""
    torch.manual_seed(0)
    model, x = timm.create_model(name, num_classes=10).eval(), torch.randn(2, 3, 64, 64)
    text = "***".join(f"{key}:{list(tensor.shape)}" for key, tensor in model.state_dict().items())
    same = adapt_model_from_string(model, text).eval()
    same.load_state_dict(model.state_dict())  # strict
    pairs = zip(model.modules(), same.modules(), strict=True)
    other = {f"{type(a).__name__} as {type(b).__name__}" for a, b in pairs if type(a).__name__ != type(b).__name__}
    with torch.no_grad():
        expected = model(x)
        return float((same(x) - expected).norm() / expected.norm()), sorted(other)


for name in ("resnet18", "efficientnet_b0", "ecaresnet26t"):
    found = read_back(name)
    print(name, found)
    assert found == (0.0, []), found
away, other = read_back("resnetv2_50x1_bit")
print("resnetv2_50x1_bit", away, other)
assert other == ["StdConv2d as Conv2d"], other
assert away > 0.5, away
try:
    read_back("resnext50_32x4d")
except RuntimeError as error:
    print("resnext50_32x4d", str(error).splitlines()[1].strip())
    assert "layer1.0.conv2.weight" in str(error), error
else:
    raise AssertionError("the weights of grouped convolutions fit")
PYTHON
