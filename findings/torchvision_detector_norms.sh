#!/usr/bin/env bash
# torchvision: a detector built without weights has other norms than one built with them, and takes its state without a word.
#
# Guessed: weights=None and weights_backbone=None leave values random, and nothing else; a checkpoint of the pretrained
#   detector loads into that, strictly, and computes what it computed.
# Seen with torchvision 0.29.1 and torch 2.14.1, fasterrcnn_resnet50_fpn: with weights (of COCO, or of its backbone) its 53
#   norms are FrozenBatchNorm2d, with those of COCO_V1 of eps 0 instead of 1e-5, and 72 parameters are trained; without, they
#   are BatchNorm2d, 189 parameters are trained, and its state has 53 tensors more. load_state_dict of the one in the other
#   reports "All keys matched": BatchNorm2d makes up num_batches_tracked where a state is of its first version, which
#   FrozenBatchNorm2d writes. In eval mode features differ by 1e-4 of the largest; in train mode they are normalised by the
#   batch, and running statistics move. A classifier (resnet18) is the same either way.
# Why it matters: a pruned checkpoint is loaded by building the architecture without weights, and then by cutting it.
# fairkern: a plan knows every tensor, so that such a build is PlanMismatchError; of a function of the library that makes
#   something else without weights the callable is written instead, which is called for who trusts it
#   (fairkern/compact/builds.py, tests/compact/test_builders.py).
#
# Installs torchvision in a temporary folder; nothing is fetched besides, in place of weights states are given that torchvision
# made. Fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1 torchvision==0.29.1
cd "$place"
"$place/venv/bin/python" - <<'PYTHON'
import torch
import torchvision
from torch import nn
from torchvision.models import ResNet50_Weights, WeightsEnum
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

torch.manual_seed(0)
given = {}
WeightsEnum.get_state_dict = lambda self, *args, **kwargs: dict(given)  # in place of what would be fetched

given = torchvision.models.resnet50(weights=None).state_dict()
backbone = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=ResNet50_Weights.IMAGENET1K_V1).eval()
given = backbone.state_dict()
coco = fasterrcnn_resnet50_fpn(weights=FasterRCNN_ResNet50_FPN_Weights.COCO_V1).eval()
bare = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()


def told(model):
    norms = [m for m in model.modules() if isinstance(m, (FrozenBatchNorm2d, nn.BatchNorm2d))]
    kinds = {type(m).__name__ for m in norms}
    trained = sum(p.requires_grad for p in model.parameters())
    return kinds, {m.eps for m in norms}, len(norms), trained, len(model.state_dict())


for name, model in (("weights of the backbone", backbone), ("weights of COCO", coco), ("none", bare)):
    print(f"{name}: {told(model)}")
assert told(backbone) == ({"FrozenBatchNorm2d"}, {1e-5}, 53, 72, 295)
assert told(coco) == ({"FrozenBatchNorm2d"}, {0.0}, 53, 72, 295)
assert told(bare) == ({"BatchNorm2d"}, {1e-5}, 53, 189, 348)

print(f"the state of the one loaded in the other, strictly: {bare.load_state_dict(coco.state_dict())}")
x = torch.randn(2, 3, 64, 64)


def features(model):
    with torch.no_grad():
        return model.backbone(x)["0"]


def apart(one, other):
    return float((one - other).abs().max() / one.abs().max())


whole = features(coco)
in_eval = apart(whole, features(bare))
before = bare.backbone.body.bn1.running_mean.clone()
in_train, frozen_in_train = apart(whole, features(bare.train())), apart(whole, features(coco.train()))
print(f"features apart: {in_eval:.1e} in eval mode, {in_train:.1e} in train mode, of frozen ones {frozen_in_train:.1e}")
assert 1e-6 < in_eval < 1e-2
assert in_train > 1e-2
assert frozen_in_train < 1e-6
assert not torch.equal(before, bare.backbone.body.bn1.running_mean)

plain = torchvision.models.resnet18(weights=None)  # a classifier is what it is
given = plain.state_dict()
filled = torchvision.models.resnet18(weights="DEFAULT")
assert repr(plain) == repr(filled)
assert list(plain.state_dict()) == list(filled.state_dict())
PYTHON
