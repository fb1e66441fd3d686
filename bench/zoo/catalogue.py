"""The models of the zoo: every torchvision classifier, a small member of timm's families, tiny transformers, and
hand-written networks of other kinds. All randomly initialised; nothing is downloaded."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.zoo.handmade import MODELS
from fairkern.model.nested import map_tensors

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

_DECODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 67,
    "max_position_embeddings": 64,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 67, "n_positions": 64}
_VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}

# name -> (class of transformers, its configuration class, configuration, kinds of input)
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_DECODER, "num_key_value_heads": 2}, "ids"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**_DECODER, "num_key_value_heads": 2}, "ids"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_DECODER, "num_key_value_heads": 2, "head_dim": 8}, "ids"),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_DECODER, "num_key_value_heads": 2, "head_dim": 8}, "ids"),
    "phi": ("PhiForCausalLM", "PhiConfig", _DECODER, "ids"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2, "ids"),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _DECODER, "ids"),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "vocab_size": 67,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
        },
        "ids",
    ),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 67},
        "ids",
    ),
    "bert": ("BertModel", "BertConfig", _DECODER, "ids"),
    "roberta": ("RobertaModel", "RobertaConfig", _DECODER, "ids"),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "vocab_size": 67,
            "max_position_embeddings": 64,
        },
        "ids",
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 67},
        "ids decoder",
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", {**_VISION, "image_size": 16, "patch_size": 4}, "pixels16"),
    "deit": ("DeiTForImageClassification", "DeiTConfig", {**_VISION, "image_size": 16, "patch_size": 4}, "pixels16"),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        "pixels32",
    ),
    "whisper": (
        "WhisperModel",
        "WhisperConfig",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "vocab_size": 67,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "max_target_positions": 20,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        "mel decoder",
    ),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {**_VISION, "vocab_size": 67, "max_position_embeddings": 20},
            "vision_config": {**_VISION, "image_size": 16, "patch_size": 4},
            "projection_dim": 16,
        },
        "ids pixels16",
    ),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 67, "state_size": 4},
        "ids",
    ),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {
            **_DECODER,
            "num_key_value_heads": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
        "ids",
    ),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**_DECODER, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
        "ids",
    ),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**_DECODER, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        "ids",
    ),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **_DECODER,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
        "ids",
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {**_DECODER, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
        "ids",
    ),
    "switch": (
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "num_heads": 4,
            "vocab_size": 67,
            "num_experts": 6,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
        },
        "ids decoder",
    ),
    "olmoe": (
        "OlmoeForCausalLM",
        "OlmoeConfig",
        {**_DECODER, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2},
        "ids",
    ),
}

_INPUTS: dict[str, Callable[[], tuple[str, torch.Tensor]]] = {
    "ids": lambda: ("input_ids", torch.randint(1, 60, (2, 11))),
    "decoder": lambda: ("decoder_input_ids", torch.randint(1, 60, (2, 5))),
    "pixels16": lambda: ("pixel_values", torch.randn(2, 3, 16, 16)),
    "pixels32": lambda: ("pixel_values", torch.randn(2, 3, 32, 32)),
    "mel": lambda: ("input_features", torch.randn(2, 8, 40)),
}


@dataclass(frozen=True)
class Entry:
    """A model of a library by name; `load` builds it, in eval mode, with example inputs."""

    library: str
    name: str
    load: Callable[[], tuple[nn.Module, Any]]

    def __str__(self) -> str:
        return f"{self.library} {self.name}"


def entries(library: str | None = None) -> Iterator[Entry]:
    """Every entry of the libraries that are installed (or of one), in a fixed order."""
    sources = {
        "torchvision": _torchvision,
        "timm": _timm,
        "transformers": _transformers,
        "hand-written": _handmade,
    }
    for name, source in sources.items():
        if library in (None, name) and (source is _handmade or importlib.util.find_spec(name) is not None):
            warnings.filterwarnings("ignore", module=name)
            yield from source()


def prepared(model: nn.Module, inputs: Any, *, double: bool = True) -> tuple[nn.Module, Any]:
    """The model and its inputs in float64 (if asked); nothing in the model is constant."""
    if double:
        model, inputs = model.double(), map_tensors(inputs, _double)
    return _stirred(model), inputs


def _stirred(model: nn.Module) -> nn.Module:
    """Statistics and constant parameters drawn at random: zeros and ones hide wrong cuts."""
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if (
                tensor.is_floating_point()
                and tensor.ndim == 1
                and len(tensor) > 1
                and bool((tensor == tensor[0]).all())
            ):
                low = 0.5 if float(tensor[0]) > 0 or "var" in name else -0.2
                tensor.copy_(torch.from_numpy(generator.uniform(low, low + 0.7, len(tensor))))
    return model


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _torchvision() -> Iterator[Entry]:
    models = importlib.import_module("torchvision.models")
    for name in models.list_models(module=models):
        yield Entry("torchvision", name, lambda name=name, models=models: _image(models.get_model, name))


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
        yield Entry("timm", name, lambda name=name, timm=timm: _timm_model(timm, name))


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


def _transformers() -> Iterator[Entry]:
    transformers = importlib.import_module("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for name in TRANSFORMERS:
        if hasattr(transformers, TRANSFORMERS[name][0]):
            yield Entry("transformers", name, lambda name=name, t=transformers: _transformer(t, name))


def _transformer(transformers: Any, name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model, config, options, kinds = TRANSFORMERS[name]
    built = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    for module in built.modules():  # encoders and decoders hold copies; a cache that is returned holds all heads
        if hasattr(module, "config"):
            module.config.use_cache = False
    if hasattr(built, "set_experts_implementation"):
        built.set_experts_implementation("eager")  # the grouped product knows no float64
    return built, dict(_INPUTS[kind]() for kind in kinds.split())
