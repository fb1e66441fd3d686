"""timm's text of pruned models, held against timm's own reader and timm's own files."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk

pytest.importorskip("timm")

import timm
from timm.layers import BatchNormAct2d, StdConv2d
from timm.models import adapt_model_from_string
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import Bottleneck, ResNet

from fairkern.integrations.timm import from_text, to_text

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def efficientnet() -> nn.Module:
    torch.manual_seed(0)
    blocks = decode_arch_def([["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r2_k3_s2_e4_c12_se0.25"]])
    return stirred(EfficientNet(blocks, num_classes=5, num_features=24, stem_size=8))


def resnet(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return stirred(ResNet(Bottleneck, (1, 1, 1, 1), num_classes=5, channels=(4, 6, 6, 8), **options))


def ecaresnet() -> nn.Module:
    return resnet(block_args={"attn_layer": "eca"})


def stirred(model: nn.Module) -> nn.Module:
    """Statistics and gains that hide nothing."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.add_(0.2 * torch.randn_like(tensor))
    return model.double().eval()


@cache
def traced(make: Callable[[], nn.Module]) -> fk.UnitMap:
    return fk.trace(make(), X, verify=False)


def as_timm_reads(make: Callable[[], nn.Module], text: str, small: nn.Module) -> Tensor:
    theirs = adapt_model_from_string(make(), text)
    theirs.load_state_dict(small.state_dict())
    return theirs.eval()(X)


@pytest.mark.parametrize("make", [efficientnet, resnet, ecaresnet])
def test_timm_makes_the_cut_model_of_the_text(make: Callable[[], nn.Module]) -> None:
    model, units = make(), traced(make)
    plan = units.plan(keep_params=0.5)
    text = to_text(model, plan)
    small = fk.apply(model, plan)
    torch.testing.assert_close(as_timm_reads(make, text, small), small(X), rtol=1e-12, atol=1e-12)
    assert to_text(model.to("meta"), plan, small=small) == text


@pytest.mark.parametrize("make", [efficientnet, ecaresnet])
def test_a_text_comes_back_as_a_plan_of_the_same_widths(make: Callable[[], nn.Module]) -> None:
    model, units = make(), traced(make)
    plan = units.plan(keep_params=0.4)
    again = from_text(model, units, to_text(model, plan))
    assert [(a.axis, len(a.removed)) for a in again.axes] == [(a.axis, len(a.removed)) for a in plan.axes]
    assert again.result["params_after"] == plan.result["params_after"]
    assert from_text(model, units, to_text(model, plan), seed=1).groups[0].removed.tolist() != (
        again.groups[0].removed.tolist()
    )


def test_scores_say_which_units_go() -> None:
    model, units = efficientnet(), traced(efficientnet)
    loader = [(torch.cat([X, X + 1]), torch.tensor([0, 0, 1, 1]))]
    scores = fk.score(model, loader, nn.functional.cross_entropy, units=units, progress=False)
    for signal in ("wasserstein", "taylor", None):
        plan = scores.plan(keep_params=0.5, allocation="uniform", removal=signal)
        again = from_text(model, units, to_text(model, plan), scores=scores, removal=signal)
        assert [g.removed.tolist() for g in again.groups] == [g.removed.tolist() for g in plan.groups]


def timm_s_own(name: str) -> str:
    return (importlib.resources.files("timm.models") / "_pruned" / f"{name}_pruned.txt").read_text().strip()


def test_timm_s_own_efficientnet() -> None:
    """The text comes out as timm wrote it, and timm's pruned model takes the weights."""
    torch.manual_seed(0)
    model = timm.create_model("efficientnet_b1").eval()
    units, text = fk.trace(model, torch.randn(1, 3, 64, 64), verify=False), timm_s_own("efficientnet_b1")
    plan = from_text(model, units, text)
    assert to_text(model, plan) == text
    theirs, small = timm.create_model("efficientnet_b1_pruned").eval(), fk.apply(model, plan)
    theirs.load_state_dict(small.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), small(x), rtol=1e-4, atol=1e-4)


def test_timm_s_own_ecaresnet_is_refused_with_the_reason() -> None:
    """It has fewer channels than what its attention slides over: the channels beside a removed one were another's."""
    with torch.device("meta"):
        model = timm.create_model("ecaresnet50d").eval()
        units = fk.trace(model, torch.randn(1, 3, 64, 64), verify=False)
    with pytest.raises(fk.InputError, match=r"layer1\.0\.conv3\.weight:0.*slid over by convolution in layer1\.0\.se"):
        from_text(model, units, timm_s_own("ecaresnet50d"))


class Net(nn.Module):
    """Two layers around what is tried, before a head."""

    def __init__(self, middle: Callable[[], nn.Module], head: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.middle = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), middle()
        self.head = nn.Linear(8, 5) if head is None else head()
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.norm(self.first(x)).relu()).relu()
        return self.head(x.mean((2, 3)))


class Bare(nn.BatchNorm2d):
    def __init__(self) -> None:
        super().__init__(8, affine=False)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "groups": (lambda: nn.Conv2d(8, 8, 3, groups=2), r"middle has .*groups=2, and timm's reader makes it"),
    "class": (lambda: StdConv2d(8, 8, 3), "middle is a StdConv2d, and timm's reader makes a Conv2d"),
    "padding": (
        lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        "padding_mode='reflect', and timm's reader makes it 'zeros'",
    ),
    "transposed": (lambda: nn.ConvTranspose2d(8, 8, 3), r"middle\.weight has shape .* once it is cut"),
    "norm without weights": (Bare, "middle has no weight"),
    "group norm": (lambda: nn.GroupNorm(4, 8), r"middle\.weight has shape"),
    "statistics of the batch": (lambda: nn.BatchNorm2d(8, track_running_stats=False), "track_running_stats=False"),
    "prelu": (lambda: nn.PReLU(8), r"middle\.weight has shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_format_cannot_say_is_refused(name: str) -> None:
    middle, why = REFUSED[name]
    model = Net(middle)
    units = fk.trace(model, X, verify=False)
    with pytest.raises(fk.InputError, match=why):
        to_text(model, units.plan(keep_params=0.6))


def test_outputs_of_linear_layers_cannot_be_said() -> None:
    model = Net(lambda: nn.Conv2d(8, 8, 3), lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)))
    units = fk.trace(model, X)
    with pytest.raises(fk.InputError, match=r"head\.0"):
        to_text(model, units.plan(drop={"neuron": 6}))
    plan = units.plan(keep_params=0.8, ignore=["head.0"])
    small = fk.apply(model, plan)
    theirs = adapt_model_from_string(model, to_text(model, plan))
    theirs.load_state_dict(small.state_dict())
    assert torch.equal(theirs(X), small(X))


def test_sizes_that_code_passes_on_cannot_be_said() -> None:
    class Split(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x)).relu()
            x = self.middle(x)
            return self.head(x.reshape(len(x), 8, -1).mean(2))

    model = Split(lambda: nn.Conv2d(8, 8, 3))
    units = fk.trace(model, X)
    plan = units.plan(keep_params=0.5)
    assert plan.sites
    with pytest.raises(fk.InputError, match="passes on a size"):
        to_text(model, plan)


def test_blocks_that_go_whole_cannot_be_said() -> None:
    model = timm.create_model("resnet18", num_classes=5).double().eval()
    units = fk.trace(model, X, depth=True, verify=False)
    with pytest.raises(fk.InputError, match="go whole"):
        to_text(model, units.plan(drop={"branch": 1}))


def test_added_biases_cannot_be_said() -> None:
    model, units = efficientnet(), traced(efficientnet)
    loader = [(torch.cat([X, X + 1]), torch.tensor([0, 0, 1, 1]))]
    scores = fk.score(model, loader, nn.functional.cross_entropy, units=units, gram=True, progress=False)
    plan = scores.plan(keep_params=0.5)
    with pytest.raises(fk.InputError, match="compensate with biases=False"):
        to_text(model, plan, small=fk.apply(model, plan, compensate="least_squares", scores=scores))
    small = fk.apply(model, plan, compensate="least_squares", scores=scores, biases=False)
    text = to_text(model, plan, small=small)
    torch.testing.assert_close(as_timm_reads(efficientnet, text, small), small(X), rtol=1e-9, atol=1e-9)


def test_layers_with_their_activation_within() -> None:
    model = Net(lambda: nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), BatchNormAct2d(8, act_layer=nn.SiLU)))
    plan = fk.trace(model, X).plan(keep_params=0.6)
    small = fk.apply(model, plan)
    theirs = adapt_model_from_string(model, to_text(model, plan))
    theirs.load_state_dict(small.state_dict())
    assert torch.equal(theirs(X), small(X))


def test_texts_that_are_none_are_refused() -> None:
    model, units = efficientnet(), traced(efficientnet)
    text = to_text(model, units.plan(keep_params=0.5))
    for bad in ("", "not a text", "conv_stem.weight", text[:200], text.replace("[", "(").replace("]", ""),
                timm_s_own("ecaresnet50d")):  # fmt: skip
        with pytest.raises(fk.InputError, match="can make no model"):
            from_text(model, units, bad)
    with pytest.raises(fk.InputError, match="text"):
        from_text(model, units, 3)  # type: ignore[arg-type]
    wide = text.replace("conv_stem.weight:[", "conv_stem.weight:[9", 1)
    with pytest.raises(fk.InputError, match="no whole number of the 8 units"):
        from_text(model, units, wide)
    none = to_text(model, units.plan(keep_params=1.0)).replace("classifier.weight:[5, 24]", "classifier.weight:[5, 20]")
    with pytest.raises(fk.InputError, match=r"the text leaves \d+ positions of"):
        from_text(model, units, none)
    with pytest.raises(fk.PlanMismatchError):
        from_text(resnet(), units, text)
    with pytest.raises(fk.PlanMismatchError):
        to_text(resnet(), units.plan(keep_params=0.5))
    with pytest.raises(fk.InputError, match="'residual'"):
        from_text(model, units, text, removal="residual")
