"""The models of the zoo: every torchvision classifier, a small member of timm's families, tiny transformers, models of
other packages, and hand-written networks. All randomly initialised; nothing is downloaded."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from bench.zoo import third_party, torchvision_tasks, transformer_models
from bench.zoo.entry import Batches, Entry
from bench.zoo.handmade import MODELS

TIMM = [
    "convnext_atto",
    "convnextv2_atto",
    "deit_tiny_patch16_224",
    "beit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "maxvit_rmlp_pico_rw_256",
    "mobilevit_xxs",
    "mobilenetv4_conv_small",
    "tf_efficientnetv2_b0",
    "nfnet_f0",
    "regnetx_002",
    "resnext50_32x4d",
    "res2net50_26w_4s",
    "seresnet18",
    "vovnet39a",
    "hrnet_w18_small",
    "dla46_c",
    "coat_tiny",
    "pvt_v2_b0",
    "mixer_s32_224",
    "gmlp_ti16_224",
    "poolformer_s12",
    "edgenext_xx_small",
    "efficientformer_l1",
    "fastvit_t8",
    "ghostnet_100",
    "repvgg_a0",
    "crossvit_tiny_240",
    "xcit_nano_12_p16_224",
    "visformer_tiny",
    "levit_128s",
    "tnt_s_patch16_224",
    "twins_svt_small",
    "cspresnet50",
    "darknet53",
    "densenet121",
    "dpn48b",
    "ese_vovnet19b_dw",
    "gernet_s",
    "inception_v4",
    "lcnet_050",
    "mnasnet_small",
    "mobileone_s0",
    "rexnet_100",
    "selecsls42b",
    "tinynet_e",
    "xception41",
    "resnest14d",
    "skresnet18",
    "tresnet_m",
    "hardcorenas_a",
    "efficientvit_b0",
    "repghostnet_050",
    "inception_next_atto",
    "starnet_s1",
    "resmlp_12_224",
    "convmixer_768_32",
    "cait_xxs24_224",
    "volo_d1_224",
    "sequencer2d_s",
    "resnetv2_50x1_bit",
    "davit_tiny",
    "focalnet_tiny_srf",
    "caformer_s18",
    "gcvit_xxtiny",
    "eva02_tiny_patch14_224",
    "mvitv2_tiny",
    "botnet26t_256",
    "lambda_resnet26t",
    "repvit_m0_9",
    "hgnetv2_b0",
    "fasternet_t0",
    "swiftformer_xs",
    "hiera_tiny_224",
    "mambaout_femto",
    "tiny_vit_5m_224",
    "pit_ti_224",
]


def entries(library: str | None = None) -> Iterator[Entry]:
    """Every entry of the libraries that are installed (or of one), in a fixed order."""
    sources = {
        "torchvision": _torchvision,
        "timm": _timm,
        "transformers": transformer_models.models,
        "hand-written": _handmade,
        **third_party.SOURCES,
    }
    for name, source in sources.items():
        if library in (None, name) and (source is _handmade or importlib.util.find_spec(name) is not None):
            warnings.filterwarnings("ignore", module=name)
            yield from source()


def _torchvision() -> Iterator[Entry]:
    models = importlib.import_module("torchvision.models")
    for name in models.list_models(module=models):
        yield Entry("torchvision", name, lambda name=name, models=models: _image(models.get_model, name), _classes)
    yield from torchvision_tasks.models()


# input sizes: what a model is built for, or small, where its convolutions carry few or many parameters over any size
_SIZES = {"inception_v3": 299, "maxvit": 224, "swin": 112, "vit_h": 56, "vit": 64, "vgg": 32, "regnet_y_128gf": 64}


def _image(build: Callable[..., nn.Module], name: str) -> tuple[nn.Module, torch.Tensor]:
    size = next((size for prefix, size in _SIZES.items() if name.startswith(prefix)), 96)
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit"):
        options["image_size"] = size
    return build(name, weights=None, num_classes=10, **options).eval(), torch.randn(2, 3, size, size)


def _handmade() -> Iterator[Entry]:
    for name, (build, inputs) in MODELS.items():
        yield Entry("hand-written", name, lambda build=build, inputs=inputs: (build().eval(), inputs()))


def _timm() -> Iterator[Entry]:
    timm = importlib.import_module("timm")
    for name in TIMM:
        yield Entry("timm", name, lambda name=name, timm=timm: _timm_model(timm, name), _classes)


def _timm_model(timm: Any, name: str) -> tuple[nn.Module, torch.Tensor]:
    model = timm.create_model(name, pretrained=False, num_classes=10).eval()
    channels, height, width = model.default_cfg.get("input_size", (3, 224, 224))
    small = torch.randn(2, channels, 128, 128)
    try:
        with torch.no_grad():
            model(small)
    except (AssertionError, RuntimeError, ValueError):  # a model for one image size only
        return model, torch.randn(2, channels, height, width)
    return model, small


def _classes(images: torch.Tensor) -> Batches:
    """Two batches of images and their classes."""
    return [(images, torch.arange(len(images)))] * 2, nn.functional.cross_entropy
