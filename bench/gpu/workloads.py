"""The shapes: activations and weights of ResNet-50 and Llama-8B, class samples; the real sizes, and small ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.gpu.llama import LLAMA_1B, Config
from bench.models import Bottleneck, ResNet, seeded

Shape = tuple[int, ...]
Job = tuple[Tensor, dict[int, Tensor]]
SECTOR = 32  # bytes: what a GPU's memory moves at least


@dataclass(frozen=True)
class Scale:
    """How large everything is. `rounds` of operators, `slow_rounds` of whole models."""

    blocks: tuple[int, int, int, int]
    width: int
    image: int
    batch: int
    classes: int
    per_class: int
    projections: int
    sequences: int
    tokens: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    layers: int
    units: int
    language: Config  # the whole model, and how many batches of `sequences`
    texts: int
    positions: int  # of an elimination
    copy_bytes: int
    rounds: int
    slow_rounds: int

    def resnet(self) -> ResNet:
        return seeded(lambda: ResNet(Bottleneck, self.blocks, self.classes, self.width))


# ResNet-50 at 224 × 224 and 4 of the 32 layers of Llama-8B, which is enough to fill the device.
FULL = Scale(
    blocks=(3, 4, 6, 3),
    width=64,
    image=224,
    batch=64,
    classes=100,
    per_class=32,
    projections=128,
    sequences=8,
    tokens=512,
    hidden=4096,
    intermediate=14336,
    heads=32,
    kv_heads=8,
    layers=4,
    units=2048,
    language=LLAMA_1B,
    texts=4,
    positions=4096,
    copy_bytes=1 << 32,
    rounds=25,
    slow_rounds=5,
)
TINY = Scale(
    blocks=(1, 1, 1, 1),
    width=4,
    image=32,
    batch=6,
    classes=3,
    per_class=4,
    projections=5,
    sequences=2,
    tokens=7,
    hidden=8,
    intermediate=24,
    heads=4,
    kv_heads=2,
    layers=1,
    units=6,
    language=Config(64, 16, 24, 2, 4, 2),
    texts=2,
    positions=40,
    copy_bytes=1 << 12,
    rounds=2,
    slow_rounds=1,
)


def read_by_consumers(model: nn.Module, image: int, batch: int) -> list[Shape]:
    """Shapes of the activations that convolutions and linear layers read, each once, without the images."""
    seen: dict[int, Tensor] = {}
    model = model.to("meta").eval()
    x = torch.empty(batch, 3, image, image, device="meta")

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0] is not x:
            seen[id(inputs[0])] = inputs[0]  # kept alive, so that no id comes twice

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_pre_hook(keep)
    with torch.no_grad():
        model(x)
    return [tuple(t.shape) for t in seen.values()]


def llama_activations(scale: Scale) -> list[Shape]:
    """What `down_proj` and `o_proj` read: [sequences, tokens, units]."""
    layer = [(scale.sequences, scale.tokens, scale.intermediate), (scale.sequences, scale.tokens, scale.hidden)]
    return layer * scale.layers


def noise(shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device, seed: int, last: bool = False):
    """Normal numbers; `last`: four-dimensional tensors in channels-last layout."""
    generator = torch.Generator(device).manual_seed(seed)
    made = []
    for shape in shapes:
        x = torch.randn(shape, generator=generator, device=device).to(dtype)
        made.append(x.contiguous(memory_format=torch.channels_last) if last and x.ndim == 4 else x)
    return made


def half(length: int, seed: int, device: torch.device, run: int = 1) -> Tensor:
    """A random half of `length` positions, ascending, in runs of `run` (a head's positions stay together)."""
    chosen = torch.randperm(length // run, generator=torch.Generator().manual_seed(seed))[: max(1, length // run // 2)]
    return (chosen.sort().values[:, None] * run + torch.arange(run)).flatten().to(device)


def resnet_cut(scale: Scale, device: torch.device) -> list[Job]:
    """Half of the channels of every layer: rows and columns of convolutions, the vectors of BatchNorms."""
    jobs: list[Job] = []
    for number, (name, weight) in enumerate(scale.resnet().to(device).state_dict().items()):
        if weight.ndim == 0:
            continue
        indices = {0: half(weight.shape[0], number, device)} if name != "fc.weight" else {}
        if weight.ndim > 1 and weight.shape[1] > 3:
            indices[1] = half(weight.shape[1], 1000 + number, device)
        jobs.append((weight, indices))
    return jobs


def llama_cut(scale: Scale, device: torch.device) -> list[Job]:
    """Half of the MLP's neurons and half of the attention's heads, in bfloat16."""
    jobs: list[Job] = []
    head = scale.hidden // scale.heads
    for layer in range(scale.layers):
        neurons = half(scale.intermediate, layer, device)
        kv = half(scale.kv_heads * head, 100 + layer, device, run=head)
        queries = half(scale.hidden, 100 + layer, device, run=scale.hidden // scale.kv_heads)
        wide, narrow = (scale.intermediate, scale.hidden), (scale.kv_heads * head, scale.hidden)
        square, down = (scale.hidden, scale.hidden), (scale.hidden, scale.intermediate)
        weights = noise([wide, wide, down, square, narrow, narrow, square], torch.bfloat16, device, seed=layer)
        cuts = [{0: neurons}, {0: neurons}, {1: neurons}, {0: queries}, {0: kv}, {0: kv}, {1: queries}]
        jobs += list(zip(weights, cuts, strict=True))
    return jobs


def moved(weight: Tensor, indices: Mapping[int, Tensor]) -> int:
    """Bytes that a gather from a contiguous tensor must move: sectors touched by its reads, and its result."""
    size = weight.element_size()
    kept = [len(indices[d]) if d in indices else length for d, length in enumerate(weight.shape)]
    inner = max(indices, default=0)
    run = math.prod(weight.shape[inner + 1 :]) * size
    positions = indices[inner].cpu() if inner in indices else torch.arange(weight.shape[inner])
    first, final = positions * run // SECTOR, ((positions + 1) * run - 1) // SECTOR
    touched: set[int] = set()
    for a, b in zip(first.tolist(), final.tolist(), strict=True):
        touched.update(range(a, b + 1))
    return math.prod(kept[:inner]) * len(touched) * SECTOR + math.prod(kept) * size


def class_samples(scale: Scale, device: torch.device) -> tuple[Tensor, Tensor]:
    """[classes · per class, units, projections] and labels, classes in turn."""
    (x,) = noise([(scale.classes * scale.per_class, scale.units, scale.projections)], torch.float32, device, seed=0)
    labels = torch.arange(len(x)) % scale.classes
    return x, labels.to(device)


def additions(scale: Scale) -> int:
    """Two for each element of each pair of classes."""
    pairs = scale.classes * (scale.classes - 1) // 2
    return 2 * pairs * scale.per_class * scale.units * scale.projections


def batches_of(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


Loader = Callable[[], list[tuple[Tensor, Tensor]]]
