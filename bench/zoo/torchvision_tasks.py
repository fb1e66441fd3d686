"""torchvision's detectors, segmenters and video models, with the batches of its own training loops."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.zoo.entry import Batches, Entry

_PLAIN: dict[str, Any] = {"weights": None, "weights_backbone": None}
_SMALL: dict[str, Any] = {"min_size": 64, "max_size": 96}

DETECTORS: dict[str, dict[str, Any]] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": _SMALL,
    "fasterrcnn_resnet50_fpn_v2": _SMALL,
    "retinanet_resnet50_fpn_v2": _SMALL,
    "fcos_resnet50_fpn": _SMALL,
    "ssdlite320_mobilenet_v3_large": {},
    "ssd300_vgg16": {},
    "maskrcnn_resnet50_fpn": _SMALL,
    "keypointrcnn_resnet50_fpn": {**_SMALL, "num_keypoints": 3},
}
_PICKS = {"ssd": "head", "rcnn": "roi_heads.box_predictor"}  # where boxes of equal scores compete for what is returned
SEGMENTERS = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50")
VIDEOS: dict[str, tuple[int, ...]] = {
    "r3d_18": (2, 3, 4, 32, 32),
    "mc3_18": (2, 3, 4, 32, 32),
    "r2plus1d_18": (2, 3, 4, 32, 32),
    "s3d": (2, 3, 14, 224, 224),
    "swin3d_t": (2, 3, 4, 64, 64),
    "mvit_v2_s": (2, 3, 16, 224, 224),
}


def models() -> Iterator[Entry]:
    found = importlib.import_module("torchvision.models")
    for name, options in DETECTORS.items():
        made = partial(_detector, found.detection, name, options)
        picks = next((module for kind, module in _PICKS.items() if kind in name), "")
        yield Entry("torchvision", name, made, _boxed, learn=_losses, decides_after=picks)
    for name in SEGMENTERS:
        yield Entry("torchvision", name, partial(_segmenter, found.segmentation, name), _pixels)
    for name, shape in VIDEOS.items():
        yield Entry("torchvision", name, partial(_video, found.video, name, shape), _clips)


def _detector(package: Any, name: str, options: Mapping[str, Any]) -> tuple[nn.Module, tuple[list[Tensor]]]:
    model = getattr(package, name)(**_PLAIN, num_classes=3, **options).eval()
    return model, ([torch.rand(3, 64, 64), torch.rand(3, 64, 64)],)


def _boxed(inputs: tuple[list[Tensor]]) -> Batches:
    """Lists of images and of what is on them: the model has the losses, in train mode."""
    (images,) = inputs
    boxes = torch.tensor([[10.0, 10, 60, 60], [5, 5, 30, 40]])
    targets = [
        {
            "boxes": boxes,
            "labels": torch.tensor([1, 2]),
            "masks": torch.randint(0, 2, (2, *image.shape[1:]), dtype=torch.uint8),
            "keypoints": torch.rand(2, 3, 3) * 30 + 10,
        }
        for image in images
    ]
    return [(images, targets)] * 2, None


def _losses(model: nn.Module, inputs: tuple[list[Tensor]]) -> Any:
    ((images, targets), *_), _ = _boxed(inputs)
    return model(images, targets)


def _segmenter(package: Any, name: str) -> tuple[nn.Module, Tensor]:
    return getattr(package, name)(**_PLAIN, num_classes=4).eval(), torch.randn(2, 3, 64, 64)


def _pixels(images: Tensor) -> Batches:
    def loss(output: Mapping[str, Tensor], y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output["out"], y)

    return [(images, torch.randint(0, 4, (len(images), *images.shape[2:])))] * 2, loss


def _video(package: Any, name: str, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    return getattr(package, name)(weights=None, num_classes=5).eval(), torch.randn(shape)


def _clips(clips: Tensor) -> Batches:
    return [(clips, torch.arange(len(clips)))] * 2, nn.functional.cross_entropy
