"""Models of packages that people install beside torch, as those packages build them: small, randomly initialised.

Each table has, by the model's name, where its class is, how it is built, what it is called with and, where that is
another than calling it, its own workflow. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from bench.zoo.entry import Batches, Entry, unlabelled

Use = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Model:
    """`path`: module and class or function. `inputs`: what makes them."""

    path: str
    inputs: Callable[[], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[Any, ...] = ()
    use: Use | None = None

    def load(self) -> tuple[nn.Module, Any]:
        module, _, name = self.path.partition(":")
        made = getattr(importlib.import_module(module), name)(*self.arguments, **self.options)
        return made.eval(), self.inputs()


def _images(size: int, samples: int = 2, channels: int = 3) -> Callable[[], torch.Tensor]:
    return partial(torch.randn, samples, channels, size, size)


def _clips(frames: int, size: int, channels: int = 3) -> Callable[[], torch.Tensor]:
    return partial(torch.randn, 1, channels, frames, size, size)


def _tokens() -> torch.Tensor:
    return torch.randint(0, 32, (2, 10))


def _times() -> torch.Tensor:
    return torch.tensor([3, 7])


_DECODERS: dict[str, dict[str, Any]] = {
    "decoder": {},
    "decoder rotary": {"rotary_pos_emb": True},
    "decoder gated": {"ff_glu": True, "ff_swish": True},
    "decoder rmsnorm": {"use_rmsnorm": True},
    "decoder query and key norm": {"attn_qk_norm": True},
    "decoder flash": {"attn_flash": True},
    "decoder shared keys": {"attn_kv_heads": 2},
    "decoder relative bias": {"rel_pos_bias": True},
    "decoder gated values": {"attn_gate_values": True},
    "decoder memory": {"attn_num_mem_kv": 4},
    "decoder sandwich": {"sandwich_norm": True},
}


def _x_transformers() -> Iterator[Entry]:
    for name, options in _DECODERS.items():
        yield Entry("x_transformers", name, partial(_wrapped, "Decoder", options), use=_continued)
    yield Entry("x_transformers", "encoder", partial(_wrapped, "Encoder", {}))


def _wrapped(kind: str, options: Mapping[str, Any]) -> tuple[nn.Module, torch.Tensor]:
    x = importlib.import_module("x_transformers")
    layers = getattr(x, kind)(dim=32, depth=2, heads=4, attn_dim_head=8, **options)
    return x.TransformerWrapper(num_tokens=32, max_seq_len=24, attn_layers=layers).eval(), _tokens()


def _continued(model: nn.Module, inputs: torch.Tensor) -> Any:
    wrapper = importlib.import_module("x_transformers").AutoregressiveWrapper(model)
    return wrapper.generate(inputs[:, :3], 4)


_VIT: dict[str, Any] = {"num_classes": 5, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 64}
_SQUARE: dict[str, Any] = {"image_size": 32, "patch_size": 8, **_VIT}
_STAGES: dict[str, Any] = {"num_classes": 5, "dim": (8, 16, 16, 32), "depth": (1, 1, 1, 1)}

VIT_PYTORCH: dict[str, Model] = {
    "vit": Model("vit_pytorch.vit:ViT", _images(32), {**_SQUARE, "dim_head": 8}),
    "simple-vit": Model("vit_pytorch.simple_vit:SimpleViT", _images(32), {**_SQUARE, "dim_head": 8}),
    "deep-vit": Model("vit_pytorch.deepvit:DeepViT", _images(32), {**_SQUARE, "dim_head": 8}),
    "cait": Model("vit_pytorch.cait:CaiT", _images(32), {**_SQUARE, "cls_depth": 1, "dim_head": 8}),
    "parallel-vit": Model("vit_pytorch.parallel_vit:ViT", _images(32), {**_SQUARE, "dim_head": 8}),
    "small-data": Model("vit_pytorch.vit_for_small_dataset:ViT", _images(32), {**_SQUARE, "dim_head": 8}),
    "normed keys": Model("vit_pytorch.simple_vit_with_qk_norm:SimpleViT", _images(32), {**_SQUARE, "dim_head": 8}),
    "rvt": Model("vit_pytorch.rvt:RvT", _images(32), _SQUARE),
    "vit-1d": Model("vit_pytorch.vit_1d:ViT", partial(torch.randn, 2, 3, 32), {"seq_len": 32, "patch_size": 8, **_VIT}),
    "vit-3d": Model(
        "vit_pytorch.vit_3d:ViT",
        _clips(4, 16),
        {"image_size": 16, "frames": 4, "image_patch_size": 8, "frame_patch_size": 2, **_VIT, "dim_head": 8},
    ),
    "max-vit": Model(
        "vit_pytorch.max_vit:MaxViT",
        _images(64),
        {"num_classes": 5, "dim": 16, "dim_head": 8, "depth": (1, 1), "window_size": 4, "mbconv_expansion_rate": 2},
    ),
    "levit": Model(
        "vit_pytorch.levit:LeViT",
        _images(32),
        {"image_size": 32, "num_classes": 5, "stages": 2, "dim": (16, 32), "depth": 1, "heads": (2, 4), "mlp_mult": 2},
    ),
    "pit": Model("vit_pytorch.pit:PiT", _images(32), {**_SQUARE, "depth": (1, 1), "dim_head": 8}),
    "nest": Model(
        "vit_pytorch.nest:NesT",
        _images(32),
        {"image_size": 32, "patch_size": 4, "num_classes": 5, "dim": 16, "heads": 2, "num_hierarchies": 2,
         "block_repeats": (1, 1)},
    ),
    "region-vit": Model(
        "vit_pytorch.regionvit:RegionViT", _images(64), {**_STAGES, "window_size": 4, "tokenize_local_3_conv": False}
    ),
    "xcit": Model("vit_pytorch.xcit:XCiT", _images(32), {**_SQUARE, "depth": 1, "cls_depth": 1, "dim_head": 8}),
    "cct": Model(
        "vit_pytorch.cct:CCT",
        _images(32),
        {"img_size": 32, "embedding_dim": 32, "n_conv_layers": 1, "num_layers": 2, "num_heads": 4, "mlp_ratio": 2,
         "num_classes": 5},
    ),
    "mobile-vit": Model(
        "vit_pytorch.mobile_vit:MobileViT",
        _images(64),
        {"image_size": (64, 64), "dims": [16, 24, 32], "channels": [8, 8, 16, 16, 16, 16, 16, 16, 16, 16, 32],
         "num_classes": 5},
    ),
}  # fmt: skip

_BLOCKS: dict[str, Any] = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4}
_CODER: dict[str, Any] = {
    **_BLOCKS,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
}
_HEADS: dict[str, Any] = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8}


def _coded(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """What an image is coded to, and what is made of that."""
    return model.decode(model.encode(inputs["sample"]).latent_dist.mode()).sample  # type: ignore[operator]


def _given(**made: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    return lambda: {name: make() for name, make in made.items()}


_WORDS = partial(torch.randn, 2, 5, 24)

DIFFUSERS: dict[str, Model] = {
    "unet": Model(
        "diffusers:UNet2DModel",
        _given(sample=_images(16), timestep=_times),
        {**_BLOCKS, "sample_size": 16, "attention_head_dim": 8, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
         "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    ),
    "unet with words": Model(
        "diffusers:UNet2DConditionModel",
        _given(sample=_images(16, channels=4), timestep=_times, encoder_hidden_states=_WORDS),
        {**_BLOCKS, "sample_size": 16, "attention_head_dim": 2, "cross_attention_dim": 24,
         "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
         "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
    ),
    "autoencoder": Model("diffusers:AutoencoderKL", _given(sample=_images(16)), _CODER, use=_coded),
    "vq": Model("diffusers:VQModel", _given(sample=_images(16)), {**_CODER, "num_vq_embeddings": 16}),
    "dit": Model(
        "diffusers:DiTTransformer2DModel",
        _given(hidden_states=_images(8, channels=4), timestep=_times, class_labels=_times),
        {**_HEADS, "in_channels": 4, "out_channels": 4, "norm_num_groups": 4, "num_embeds_ada_norm": 10},
    ),
    "sd3": Model(
        "diffusers:SD3Transformer2DModel",
        _given(hidden_states=_images(8, channels=4), encoder_hidden_states=_WORDS, timestep=_times,
               pooled_projections=partial(torch.randn, 2, 16)),
        {**_HEADS, "patch_size": 2, "in_channels": 4, "out_channels": 4, "joint_attention_dim": 24,
         "caption_projection_dim": 32, "pooled_projection_dim": 16, "pos_embed_max_size": 8},
    ),
    "flux": Model(
        "diffusers:FluxTransformer2DModel",
        _given(hidden_states=partial(torch.randn, 2, 16, 4), encoder_hidden_states=_WORDS,
               pooled_projections=partial(torch.randn, 2, 16), timestep=lambda: torch.tensor([0.3, 0.7]),
               img_ids=lambda: torch.zeros(16, 3), txt_ids=lambda: torch.zeros(5, 3)),
        {"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 16, "axes_dims_rope": (4, 4, 8)},
    ),
    "pixart": Model(
        "diffusers:PixArtTransformer2DModel",
        _given(hidden_states=_images(8, channels=4), encoder_hidden_states=_WORDS, timestep=_times,
               added_cond_kwargs=lambda: {"resolution": None, "aspect_ratio": None}),
        {**_HEADS, "in_channels": 4, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 24,
         "use_additional_conditions": False},
    ),
    "cogvideox autoencoder": Model(
        "diffusers:AutoencoderKLCogVideoX",
        _given(sample=_clips(5, 16)),
        {"block_out_channels": (8, 8, 8, 8), "down_block_types": ("CogVideoXDownBlock3D",) * 4,
         "up_block_types": ("CogVideoXUpBlock3D",) * 4, "latent_channels": 4, "layers_per_block": 1,
         "norm_num_groups": 2},
        use=_coded,
    ),
    "wan autoencoder": Model(
        "diffusers:AutoencoderKLWan",
        _given(sample=_clips(5, 16)),
        {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1,
         "temperal_downsample": [False, True, True]},
        use=_coded,
    ),
    "hunyuan autoencoder": Model(
        "diffusers:AutoencoderKLHunyuanVideo",
        _given(sample=_clips(5, 16)),
        {"latent_channels": 4, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
        use=_coded,
    ),
}  # fmt: skip

_SEGMENTERS = (
    "Unet", "UnetPlusPlus", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "Linknet", "MAnet", "UPerNet", "Segformer",
)  # fmt: skip
SEGMENTERS: dict[str, Model] = {
    name.lower(): Model(
        f"segmentation_models_pytorch:{name}", _images(64), {"encoder_weights": None, "classes": 3}, ("resnet18",)
    )
    for name in _SEGMENTERS
}

YOLO = (
    "yolov5n", "yolov8n", "yolov8n-seg", "yolov9t", "yolov10n", "yolo11n", "yolo11n-seg", "yolo11n-pose", "yolo11n-cls",
    "yolo11n-obb", "yolo12n", "yolo26n", "yolo26n-seg",
)  # fmt: skip


def _yolo(name: str) -> tuple[nn.Module, torch.Tensor]:
    logging.getLogger("ultralytics").setLevel(logging.ERROR)
    ultralytics = importlib.import_module("ultralytics")
    model = ultralytics.YOLO(f"{name}.yaml").model.eval()
    model.args = importlib.import_module("ultralytics.cfg").get_cfg()  # what its loss weighs its parts by
    return model, torch.randn(2, 3, 64, 64)


def _boxes(images: torch.Tensor) -> Batches:
    """A batch as its own loader makes it, with two objects an image; the model has the loss."""
    samples = len(images)
    where = {"cls": torch.randint(0, 80, (2 * samples, 1)).float(), "bboxes": torch.rand(2 * samples, 4) * 0.4 + 0.3}
    return [{"img": images, **where, "batch_idx": torch.arange(samples).repeat_interleave(2).float()}] * 2, None


def _fused(model: nn.Module, images: torch.Tensor) -> Any:
    """Convolutions with their norms folded in, as it is deployed."""
    return model.fuse(verbose=False)(images)  # type: ignore[operator]


def _ultralytics() -> Iterator[Entry]:
    for name in YOLO:
        plain = all(task not in name for task in ("seg", "pose", "cls", "obb"))
        yield Entry("ultralytics", name, partial(_yolo, name), _boxes if plain else unlabelled, _fused)


def _graph() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(9, 8), torch.randint(0, 9, (2, 30))


def _nodes(graph: tuple[torch.Tensor, torch.Tensor]) -> Batches:
    """The whole graph, and a class for every node."""
    return [(graph, torch.arange(len(graph[0])) % 3)] * 2, nn.functional.cross_entropy


GRAPHS: dict[str, Model] = {
    name.lower(): Model(f"torch_geometric.nn:{name}", _graph, options, (8, 16, 2, 3))
    for name, options in {"GCN": {}, "GAT": {"heads": 2}, "GraphSAGE": {}, "GIN": {}, "EdgeCNN": {}}.items()
}

_TOWER: dict[str, Any] = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8}
_WRITTEN: dict[str, Any] = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}
_RESIDUAL: dict[str, Any] = {"image_size": 64, "layers": (1, 1, 1, 1), "width": 16, "head_width": 16}


def _pair(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, size, size), torch.randint(1, 64, (2, 8))


OPEN_CLIP: dict[str, Model] = {
    name: Model(
        "open_clip.model:CLIP",
        partial(_pair, vision["image_size"]),
        {"embed_dim": 16, "vision_cfg": vision, "text_cfg": _WRITTEN},
    )
    for name, vision in {
        "vit": _TOWER,
        "vit with a pool": {**_TOWER, "attentional_pool": True, "attn_pooler_queries": 6, "attn_pooler_heads": 4},
        "residual network": _RESIDUAL,
    }.items()
}

TABULAR: dict[str, Model] = {
    "ft-transformer": Model(
        "rtdl_revisiting_models:FTTransformer",
        lambda: (torch.randn(3, 5), torch.randint(0, 3, (3, 2))),
        {"n_cont_features": 5, "cat_cardinalities": [3, 4], "d_out": 3, "n_blocks": 2, "d_block": 32,
         "attention_n_heads": 4, "attention_dropout": 0.2, "ffn_d_hidden": None, "ffn_d_hidden_multiplier": 4 / 3,
         "ffn_dropout": 0.1, "residual_dropout": 0.0},
    ),
}  # fmt: skip

_OTHERS: dict[str, dict[str, Model]] = {
    "vit_pytorch": VIT_PYTORCH,
    "diffusers": DIFFUSERS,
    "segmentation_models_pytorch": SEGMENTERS,
    "torch_geometric": GRAPHS,
    "open_clip": OPEN_CLIP,
    "rtdl_revisiting_models": TABULAR,
}


def _listed(library: str) -> Iterator[Entry]:
    batches = _nodes if library == "torch_geometric" else unlabelled
    for name, model in _OTHERS[library].items():
        yield Entry(library, name, model.load, batches, model.use)


SOURCES: dict[str, Callable[[], Iterator[Entry]]] = {
    "x_transformers": _x_transformers,
    "ultralytics": _ultralytics,
    **{library: partial(_listed, library) for library in _OTHERS},
}
"""Package → its entries."""
