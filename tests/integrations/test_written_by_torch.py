"""What torch's own exporters and compilers make of cut models computes what those do."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.integrations.models import KINDS, close, cut
from tests.old_torch import may_refuse

BATCH = ({0: torch.export.Dim.DYNAMIC},)


def exported(model: nn.Module, x: Tensor) -> Any:
    return torch.export.export(model, (x,), dynamic_shapes=BATCH).module()


def exported_and_saved(model: nn.Module, x: Tensor) -> Any:
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=BATCH), file)
    file.seek(0)
    return torch.export.load(file).module()


def strict(model: nn.Module, x: Tensor) -> Any:
    return torch.export.export(model, (x,), dynamic_shapes=BATCH, strict=True).module()


def compiled(model: nn.Module, x: Tensor) -> Any:
    return torch.compile(model, backend="eager")


def jit_traced(model: nn.Module, x: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        traced, file = torch.jit.trace(model, (x,)), io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        return torch.jit.load(file)


WRITERS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "torch.export": exported,
    "torch.export, saved": exported_and_saved,
    "torch.export, strict": strict,
    "torch.compile": compiled,
    "torch.jit.trace, saved": jit_traced,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", KINDS)
def test_same(name: str, writer: str) -> None:
    made = cut(name)
    torch.compiler.reset()
    with torch.no_grad():
        if (name, writer) == ("divided", "torch.export, strict"):
            with pytest.raises(Exception, match="export with strict=False"):
                WRITERS[writer](made.small, made.x)
            return
        with may_refuse():
            written = WRITERS[writer](made.small, made.x)
        for x in (made.x, made.more):
            assert close(written(x), made.small(x))


FOLLOWED = [name for name in KINDS if name != "llama"]  # whose code torch.fx cannot follow, cut or not


@pytest.mark.parametrize("name", FOLLOWED)
def test_fx(name: str) -> None:
    made = cut(name)
    with torch.no_grad():
        graph = torch.fx.symbolic_trace(made.small)
        for x in (made.x, made.more):
            assert torch.equal(graph(x), made.small(x))


LAYERS = {"resnet": "layer2", "shufflenet": "stage3", "vit": "encoder.ln", "swin": "features.1.1", "views": "conv"}


@pytest.mark.parametrize("name", LAYERS)
def test_feature_extractor(name: str) -> None:
    """torchvision's: what a layer gives, of a graph that `torch.fx` writes."""
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    made, layer = cut(name), LAYERS[name]
    heard: list[Tensor] = []
    extractor = extraction.create_feature_extractor(made.small, {layer: "features"})
    handle = made.small.get_submodule(layer).register_forward_hook(lambda *call: heard.append(call[-1]))
    try:
        with torch.no_grad():
            for x in (made.x, made.more):
                made.small(x)
                assert torch.equal(extractor(x)["features"], heard.pop())
    finally:
        handle.remove()
    with torch.no_grad():
        assert extractor(made.x)["features"].shape != _of_the_whole(name)


def _of_the_whole(name: str) -> torch.Size | None:
    """The shape of the same layer's output before the cut, where that layer is on no stream that stays."""
    if name in ("vit", "swin"):
        return None
    heard: list[Tensor] = []
    made = cut(name)
    handle = made.whole.get_submodule(LAYERS[name]).register_forward_hook(lambda *call: heard.append(call[-1]))
    try:
        made.whole(made.x)
    finally:
        handle.remove()
    return heard[0].shape


def test_llama_is_refused_by_fx_cut_or_not() -> None:
    made = cut("llama")
    for model in (made.whole, made.small):
        with pytest.raises(Exception, match=r"Proxy|traced|symbolic"):
            torch.fx.symbolic_trace(model)
