"""Detectors of the libraries, with the batches of their own loops: traced, scored and pruned, and run afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk

SIZES = ((64, 64), (64, 80))
PLAIN: dict[str, Any] = {"weights": None, "weights_backbone": None}


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in SIZES]


def targets() -> list[dict[str, Tensor]]:
    generator, boxes = torch.Generator().manual_seed(2), torch.tensor([[10.0, 10, 60, 60], [5, 5, 30, 40]])
    return [
        {
            "boxes": boxes,
            "labels": torch.tensor([1, 1]),
            "masks": torch.randint(0, 2, (2, *size), generator=generator, dtype=torch.uint8),
            "keypoints": torch.rand(2, 3, 3, generator=generator) * 30 + 10,
        }
        for size in SIZES
    ]


DETECTORS: dict[str, dict[str, Any]] = {
    "ssdlite320_mobilenet_v3_large": {},
    "fasterrcnn_mobilenet_v3_large_320_fpn": {"min_size": 64, "max_size": 96},
    "retinanet_resnet50_fpn": {"min_size": 64, "max_size": 96},
    "fcos_resnet50_fpn": {"min_size": 64, "max_size": 96},
    "ssd300_vgg16": {},
    "maskrcnn_resnet50_fpn": {"min_size": 64, "max_size": 96},
    "keypointrcnn_resnet50_fpn": {"min_size": 64, "max_size": 96, "num_keypoints": 3},
}


@pytest.mark.zoo
@pytest.mark.parametrize("name", DETECTORS)
def test_torchvision(name: str) -> None:
    detection = pytest.importorskip("torchvision").models.detection
    torch.manual_seed(0)
    model = getattr(detection, name)(**PLAIN, num_classes=3, **DETECTORS[name])
    units = fk.trace(model, images(), verify=False)
    loader = [(images(), targets()), (images()[:1], targets()[:1])]
    small, report = fk.prune(model, loader, keep_params=0.8, units=units, progress=False)
    assert report.after["params"] < 0.82 * report.before["params"]
    assert report.choices["scoring"]["samples"] == 3
    assert set(small.eval()(images())[0]) == set(model.eval()(images())[0])
    sum(small.train()(images(), targets()).values()).backward()


@pytest.mark.zoo
@pytest.mark.parametrize("kind", ["detr", "yolos", "mask2former"])
def test_transformers(kind: str) -> None:
    t = pytest.importorskip("transformers")
    torch.manual_seed(0)
    labels = [
        {"class_labels": torch.tensor(c), "boxes": torch.rand(len(c), 4) * 0.3 + 0.2} for c in ([1, 2], [0], [2, 1, 0])
    ]
    masks = [torch.randint(0, 2, (len(x["boxes"]), 64, 64)).float() for x in labels]
    more: dict[str, Any] = {"labels": labels}
    if kind == "detr":
        backbone = t.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"], layer_type="basic"
        )
        sizes = dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48) | {"encoder_layers": 1, "decoder_layers": 1}
        heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
        options = {"use_timm_backbone": False, "backbone": None, "backbone_config": backbone, "d_model": 32}
        model = t.DetrForObjectDetection(t.DetrConfig(**options, **sizes, **heads, num_queries=6, num_labels=3))
    elif kind == "yolos":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        config = t.YolosConfig(**sizes, image_size=[64, 64], patch_size=16, num_detection_tokens=5, num_labels=3)
        model = t.YolosForObjectDetection(config)
    else:
        stages = [f"stage{i}" for i in (1, 2, 3, 4)]
        backbone = t.SwinConfig(
            image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1, 2, 2, 2], window_size=2, out_features=stages
        )
        wide = ("hidden_dim", "feature_size", "mask_feature_size", "encoder_feedforward_dim", "dim_feedforward")
        layers = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 4, "num_queries": 5, "num_labels": 3}
        config = t.Mask2FormerConfig(
            backbone_config=backbone, backbone=None, train_num_points=16, **layers, **dict.fromkeys(wide, 32)
        )
        model = t.Mask2FormerForUniversalSegmentation(config)
        more = {"mask_labels": masks, "class_labels": [x["class_labels"] for x in labels]}
    x = torch.randn(3, 3, 64, 64)
    loader = [{"pixel_values": x[i], **{name: held[i] for name, held in more.items()}} for i in (slice(2), slice(2, 3))]
    small, report = fk.prune(model, loader, keep_params=0.8, progress=False)
    assert report.after["params"] < 0.82 * report.before["params"]
    assert report.choices["scoring"]["samples"] == 3
    small.train()(**loader[0]).loss.backward()


@pytest.mark.zoo
def test_ultralytics() -> None:
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    torch.manual_seed(0)
    model: nn.Module = tasks.DetectionModel("yolo11n.yaml", verbose=False)
    model.args = pytest.importorskip("ultralytics.cfg").get_cfg()

    def batch(n: int) -> dict[str, Any]:
        boxes = 2 * n + 1
        index = torch.cat([torch.zeros(1), torch.arange(n).repeat_interleave(2)])
        where = {"cls": torch.randint(0, 80, (boxes, 1)).float(), "bboxes": torch.rand(boxes, 4) * 0.4 + 0.3}
        return {"img": torch.rand(n, 3, 64, 64), **where, "batch_idx": index}

    loader = [batch(2), batch(1)]
    units = fk.trace(model, loader[0], verify=False)
    assert len(units.prunable) == len(units.groups)
    small, report = fk.prune(model, loader, keep_params=0.8, units=units, progress=False)
    assert report.choices["scoring"]["samples"] == 3
    assert small.eval()(loader[0]["img"])[0].shape == model.eval()(loader[0]["img"])[0].shape
    small.train()(loader[0])[0].sum().backward()


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_pixels_beside_pooled_branches(name: str) -> None:
    segmentation = pytest.importorskip("torchvision").models.segmentation
    torch.manual_seed(0)
    model = getattr(segmentation, name)(**PLAIN, num_classes=4)
    loader = [(torch.randn(2, 3, 64, 64), torch.randint(0, 4, (2, 64, 64))) for _ in range(2)]
    units = fk.trace(model.eval(), loader[0][0], verify=False)

    def loss(output: dict[str, Tensor], y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output["out"], y)

    options: dict[str, Any] = {"units": units, "progress": False}
    scores = fk.score(model, loader, loss, class_of=lambda batch: batch[1], **options)
    whole = [g for g in units.prunable if units.groups[g].name not in scores.provenance["no_classes"]]
    assert len(whole) > len(units.prunable) / 2
    assert scores.plan(tod=0.2).result["units_removed"] > 0
    _, report = fk.prune(model, loader, loss, keep_params=0.8, **options)
    assert report.choices["scoring"]["classes"] == {}
