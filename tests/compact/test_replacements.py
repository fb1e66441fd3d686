"""Classes that take the place of torch's: equal in function, and cut exactly."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.allocate import build, random_removal
from fairkern.axes import unit_map
from fairkern.compact import difference
from fairkern.nested import map_tensors
from fairkern.replacements import MultiheadAttention, in_place, replace_modules
from fairkern.types import Axis, Plan

WIDTH, HEADS, N, L, S = 24, 4, 3, 5, 7
LIMIT = 1e-9


def attention(seed: int = 0, **options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(seed)
    module = nn.MultiheadAttention(WIDTH, HEADS, **options).double().eval()
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module


def masks(kind: str | None, shape: tuple[int, ...]) -> Tensor | None:
    if kind is None:
        return None
    if kind == "float":
        return torch.randn(shape, dtype=torch.float64)
    mask = torch.rand(shape) > 0.6
    mask[..., 0] = False  # no row without a key
    return mask


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"add_bias_kv": True, "add_zero_attn": True},
        {"kdim": 10, "vdim": 14},
        {"kdim": 10, "vdim": 14, "add_bias_kv": True, "bias": False},
    ],
    ids=str,
)
def test_equal_in_function(options: dict[str, Any], batched: bool, batch_first: bool, need_weights: bool) -> None:
    """Self- and cross-attention, with every kind of mask: outputs and weights of torch's own class."""
    original = attention(batch_first=batch_first, **options)
    ours = copy.deepcopy(original)
    replace_modules(ours, {"": "MultiheadAttention"})
    assert type(ours) is MultiheadAttention
    assert list(ours.state_dict()) == list(original.state_dict())

    def data(length: int, width: int) -> Tensor:
        shape = (length, width) if not batched else (N, length, width) if batch_first else (length, N, width)
        return torch.randn(shape, dtype=torch.float64)

    rows = N if batched else 1
    for cross, per_head, kind, padding in itertools.product(
        (True, False), (False, True), (None, "bool", "float"), (None, "same")
    ):
        if "kdim" in options and not cross:
            continue
        query = data(L, WIDTH)
        key = data(S, options.get("kdim", WIDTH)) if cross else query
        value = data(S, options.get("vdim", WIDTH)) if cross else query
        last = S if cross else L
        arguments: dict[str, Any] = {
            "attn_mask": masks(kind, (rows * HEADS, L, last) if per_head else (L, last)),
            "key_padding_mask": masks(padding and (kind or "bool"), (N, last) if batched else (last,)),
            "need_weights": need_weights,
        }
        for average in (True, False):
            expected = original(query, key, value, **arguments, average_attn_weights=average)
            found = ours(query, key, value, **arguments, average_attn_weights=average)
            for a, b in zip(expected, found, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    assert a.shape == b.shape
                    assert torch.allclose(a, b, atol=1e-12)


def test_causal_hint() -> None:
    original = attention(batch_first=True)
    ours = copy.deepcopy(original)
    replace_modules(ours, {"": "MultiheadAttention"})
    x = torch.randn(N, L, WIDTH, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64)
    for need_weights in (True, False):
        given = {"attn_mask": mask, "is_causal": True, "need_weights": need_weights}
        assert torch.allclose(original(x, x, x, **given)[0], ours(x, x, x, **given)[0], atol=1e-12)
    with pytest.raises(fk.InputError, match="attn_mask too"):
        ours(x, x, x, is_causal=True)


def test_dropout_is_drawn_in_train_mode_only() -> None:
    module = attention(batch_first=True, dropout=0.5)
    replace_modules(module, {"": "MultiheadAttention"})
    x = torch.randn(N, L, WIDTH, dtype=torch.float64)
    assert torch.equal(module(x, x, x)[0], module(x, x, x)[0])
    for need_weights in (True, False):
        module.train()
        first, second = (module(x, x, x, need_weights=need_weights)[0] for _ in range(2))
        assert not torch.allclose(first, second)


def test_in_place_puts_classes_back_after_an_error() -> None:
    class Own(nn.MultiheadAttention):
        """A subclass keeps its own forward."""

    model = nn.ModuleList([attention(), Own(WIDTH, HEADS)])

    def fail() -> None:
        assert [type(m) for m in model] == [MultiheadAttention, Own]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), in_place(model):
        fail()
    assert [type(m) for m in model] == [nn.MultiheadAttention, Own]


class Block(nn.Module):
    """Attention between a LayerNorm and a residual stream; `call` says how it is used."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor], **options: Any) -> None:
        super().__init__()
        self.norm, self.attn, self.head = nn.LayerNorm(WIDTH), attention(**options), nn.Linear(WIDTH, 3)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.call(self.attn, self.norm(x)))


def weighted(attn: nn.Module, x: Tensor) -> Tensor:
    out, weights = attn(x, x, x)
    return out * weights.mean()


def masked_by_length(attn: nn.Module, x: Tensor) -> Tensor:
    hidden = torch.arange(x.shape[1])[None] >= torch.arange(x.shape[0], 0, -1)[:, None] + 1
    return attn(x, x, x, key_padding_mask=hidden, need_weights=False)[0]


def memory(x: Tensor) -> Tensor:
    return x.flip(1)[:, 1:]


CUT: dict[str, Callable[[], nn.Module]] = {
    "self": lambda: Block(lambda a, x: a(x, x, x)[0], batch_first=True),
    "tokens first": lambda: Block(lambda a, x: a(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1)),
    "without weights": lambda: Block(lambda a, x: a(x, x, x, need_weights=False)[0], batch_first=True),
    "cross": lambda: Block(lambda a, x: a(x, memory(x), memory(x))[0], batch_first=True),
    "cross, other widths": lambda: Block(
        lambda a, x: a(x, x[..., :10], x[..., :14])[0], batch_first=True, kdim=10, vdim=14
    ),
    "key and value biases": lambda: Block(
        lambda a, x: a(x, x, x)[0], batch_first=True, add_bias_kv=True, add_zero_attn=True
    ),
    "no biases": lambda: Block(lambda a, x: a(x, x, x)[0], batch_first=True, bias=False),
    "mask": lambda: Block(
        lambda a, x: a(x, x, x, attn_mask=torch.ones(5, 5, dtype=torch.bool).triu(1))[0], batch_first=True
    ),
    "padding": lambda: Block(masked_by_length, batch_first=True),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 40, batch_first=True), 2),
    "encoder, norm first": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, HEADS, 40, batch_first=True, norm_first=True, activation="gelu"),
        2,
        enable_nested_tensor=False,
    ),
}


def cut(model: nn.Module, inputs: Any, fraction: float) -> tuple[nn.Module, fk.Plan, fk.UnitMap]:
    units = fk.trace(model, inputs)
    plan = fk.Plan(**vars(build(units, random_removal(units, fraction, seed=2))))
    return fk.apply(model, plan), plan, units


@pytest.mark.parametrize("name", CUT)
def test_heads_are_cut_exactly(name: str) -> None:
    torch.manual_seed(0)
    model, x = CUT[name]().double().eval(), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    for fraction in (0.1, 0.6):
        small, plan, units = cut(model, x, fraction)
        assert units.proven
        heads = [g for g in units.groups if g.kind == "head"]
        assert heads
        assert all(g.units == HEADS and g.frozen is None for g in heads)
        assert [type(m) for m in small.modules() if isinstance(m, nn.MultiheadAttention)] == [MultiheadAttention] * len(
            heads
        )
        assert all(m.num_heads == (3 if fraction == 0.1 else 2) for m in small.modules() if hasattr(m, "num_heads"))
        assert all(m.embed_dim == WIDTH for m in small.modules() if hasattr(m, "embed_dim"))
        for grad in (True, False):  # without gradients torch takes its fused path where it can
            with torch.set_grad_enabled(grad), plan.masked(model):
                expected = model(x)
            with torch.set_grad_enabled(grad):
                assert float(((small(x) - expected).abs().max() / expected.abs().max()).detach()) < LIMIT
    assert not any(isinstance(m, MultiheadAttention) for m in model.modules())


def test_weights_that_are_used_freeze_the_heads() -> None:
    """The mean over heads is not the same with fewer of them."""
    model = Block(weighted, batch_first=True).double()
    units = unit_map(model, [torch.randn(2, 5, WIDTH, dtype=torch.float64)])
    reasons = {f.reason for f in units.frozen if f.axis == Axis("attn.in_proj_weight", 0)}
    assert reasons == {"mean in attn runs over it"}


def test_encoder_with_padding() -> None:
    """Where nothing is padded, the outputs of torch's nested fast path."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 40, batch_first=True), 2).double().eval()
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    hidden = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    small, plan, _ = cut(model, {"src": x, "src_key_padding_mask": hidden}, 0.5)
    with torch.no_grad(), plan.masked(model):
        expected = model(x, src_key_padding_mask=hidden)
    with torch.no_grad():
        found = small(x, src_key_padding_mask=hidden)
    assert torch.allclose(expected[~hidden], found[~hidden], atol=1e-10)


def test_decoder() -> None:
    torch.manual_seed(0)
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 40, batch_first=True), 2).double().eval()
    inputs = {"tgt": torch.randn(2, 5, WIDTH), "memory": torch.randn(2, 7, WIDTH)}
    inputs = map_tensors(inputs, Tensor.double)
    small, plan, units = cut(model, inputs, 0.5)
    assert [g.kind for g in units.groups if g.frozen is None] == ["head", "head", "neuron"] * 2
    with plan.masked(model):
        assert difference(model, small, inputs) < LIMIT


def test_torchvision_vit() -> None:
    vision = pytest.importorskip("torchvision.models.vision_transformer")
    torch.manual_seed(0)
    model = vision.VisionTransformer(16, 4, 2, 4, WIDTH, 40, num_classes=5).double().eval()
    nn.init.normal_(model.heads.head.weight)  # zero at first
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    small, plan, units = cut(model, x, 0.5)
    assert [g.kind for g in units.groups if g.frozen is None] == ["head", "neuron"] * 2
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT


def test_pruned_twice() -> None:
    torch.manual_seed(0)
    model, x = CUT["encoder"]().double().eval(), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    once, _, _ = cut(model, x, 0.3)
    twice, plan, _ = cut(once, x, 0.4)
    assert [m.num_heads for m in twice.modules() if isinstance(m, nn.MultiheadAttention)] == [2, 2]
    with plan.masked(once):
        assert difference(once, twice, x) < LIMIT


def test_heads_that_stay_keep_their_class() -> None:
    """Where neurons alone are cut, torch's class and its fused path stay."""
    torch.manual_seed(0)
    model, x = CUT["encoder"]().double().eval(), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    units = fk.trace(model, x)
    removed = [
        r if g.kind == "neuron" else r[:0] for g, r in zip(units.groups, random_removal(units, 0.5, 1), strict=True)
    ]
    plan = fk.Plan(**vars(build(units, removed)))
    small = fk.apply(model, plan)
    assert not any(isinstance(m, MultiheadAttention) for m in small.modules())
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT


def test_scores_of_heads() -> None:
    """U and R are heard at the input of the output projection, which torch's own class never calls."""
    torch.manual_seed(0)
    model = Block(lambda a, x: a(x, x, x)[0].mean(1, keepdim=True), batch_first=True).double()
    model.head = nn.Sequential(nn.Flatten(), nn.Linear(5 * WIDTH, 3).double())
    batch = (torch.randn(12, 5, WIDTH, dtype=torch.float64), torch.arange(12) % 3)
    scores = fk.score(model, [batch], nn.CrossEntropyLoss(), projections=8, progress=False)
    assert [(g.name, g.kind, g.units) for g in scores.units.groups] == [("attn", "head", HEADS)]
    weight, x = model.attn.out_proj.weight, batch[0]
    loss = nn.CrossEntropyLoss(reduction="none")(model(x), batch[1])
    parts = torch.stack([torch.autograd.grad(one, weight, retain_graph=True)[0] * weight for one in loss])
    per_head = parts.reshape(12, WIDTH, HEADS, -1).sum(dim=(1, 3)).abs().sum(0)
    assert scores.signals["taylor"][0] == pytest.approx(per_head.detach().numpy() / 12, rel=1e-6)
    assert scores.signals["wasserstein"][0].min() > 0
    assert type(model.attn) is nn.MultiheadAttention


def test_sequential_compensation() -> None:
    """What is measured again after every step is heard at the output projections as well."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 40, batch_first=True), 2)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(5 * WIDTH, 3)).double()
    loader = [(torch.randn(12, 5, WIDTH, dtype=torch.float64), torch.arange(12) % 3) for _ in range(2)]
    small, report = fk.prune(
        model, loader, nn.CrossEntropyLoss(), keep_params=0.5, compensate="sequential", progress=False
    )
    assert report.choices["not_compensated"] == {}
    assert small(loader[0][0]).isfinite().all()
    assert any(isinstance(m, MultiheadAttention) for m in small.modules())


def test_compile_export_copy_pickle() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 40, batch_first=True), 1).eval()
    x = torch.randn(2, 5, WIDTH)
    small, _, _ = cut(model, x, 0.5)
    with torch.no_grad():
        expected = small(x)
        assert torch.equal(copy.deepcopy(small)(x), expected)
        file = io.BytesIO()
        torch.save(small, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), expected)
        torch.compiler.reset()
        assert torch.equal(torch.compile(small, backend="eager", fullgraph=True)(x), expected)
        assert torch.allclose(torch.export.export(small, (x,)).module()(x), expected, atol=1e-6)


def test_a_plan_with_an_unknown_replacement_is_refused() -> None:
    model = CUT["self"]().double()
    _, plan, _ = cut(model, torch.randn(2, 5, WIDTH, dtype=torch.float64), 0.5)
    (entry,) = plan.replacements
    for other, message in (
        (type(entry)("attn", "Attention"), "unknown here"),
        (type(entry)("norm", entry.name), "norm is a LayerNorm here"),
    ):
        changed: Plan = fk.Plan(**{**vars(plan), "replacements": (other,)})
        with pytest.raises(fk.PlanMismatchError, match=message):
            fk.apply(model, changed)
