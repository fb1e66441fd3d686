"""Sizes that forward code passes on as numbers: substituted while the module runs, proven, and gone with the copy."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.compact.sites import SizedForward, install
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.prove import difference
from fairkern.types import SizeChange
from tests.old_torch import may_refuse

LIMIT = 1e-9


class Attention(nn.Module):
    """Self-attention as many write it: `C` of the input, heads as a number that no attribute holds."""

    def __init__(self, merge: Callable[[Tensor, int, int, int], Tensor]) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.drop = Noise()
        self.merge = merge

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.drop(self.norm(x))).reshape(b, n, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(self.merge(out, b, n, c))


class Noise(nn.Module):
    """A stochastic depth that makes size-taking calls of its own, in train mode only."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_ones(x.shape[0], 1, 1).view(-1, 1, 1) if self.training else x


class FoldedHeads(nn.Module):
    """Heads folded into the batch, in bmm: the number passed on is a multiple of the heads that changes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.v, self.proj = nn.LayerNorm(24), nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        v = self.v(self.norm(x)).view(b, n, 4, 6).transpose(1, 2).reshape(b * 4, n, 6)
        v = torch.bmm(v @ v.transpose(1, 2), v)
        return x + self.proj(v.view(b, 4, n, 6).transpose(1, 2).reshape(b, n, c))


class Between(nn.Module):
    """conv → `middle` → conv."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.middle = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


class Blur(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1)
        self.register_buffer("kernel", torch.rand(12, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.conv2d(self.first(x), self.kernel, padding=1, groups=12))


def halves(x: Tensor) -> Tensor:
    a, b = x.split(6, dim=1)
    return torch.cat([a.relu(), b], 1)


def listed(x: Tensor) -> Tensor:
    a, b, c = torch.split(x, [4, 4, 4], 1)
    return torch.cat([a * b, b, c], 1)


def written(x: Tensor) -> Tensor:
    """As many places as channels."""
    y = x.new_zeros(x.shape[0], 12, 3, 12)
    y[:, :, 1:] = x.view(-1, 12, 3, 12)[:, :, 1:]
    return y.view(-1, 12, 6, 6)


def masked_places(x: Tensor) -> Tensor:
    mask = x.new_zeros(36).view(3, 12)
    return (x.view(-1, 12, 3, 12) + mask).view(-1, 12, 6, 6)


TOKENS, IMAGE = (2, 5, 24), (2, 3, 8, 8)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {  # net, input, units that can go
    "reshape": (lambda: Attention(lambda o, b, n, c: o.transpose(1, 2).reshape(b, n, c)), TOKENS, 4),
    "reshape, sizes in a tuple": (
        lambda: Attention(lambda o, b, n, c: o.transpose(1, 2).reshape((b, n, c))),
        TOKENS,
        4,
    ),
    "reshape, sizes by keyword": (
        lambda: Attention(lambda o, b, n, c: torch.reshape(o.transpose(1, 2), shape=(b, n, c))),
        TOKENS,
        4,
    ),
    "size from a tensor that is cut": (
        lambda: Attention(lambda o, b, n, c: o.transpose(1, 2).reshape(b, n, o.shape[1] * o.shape[3])),
        TOKENS,
        4,
    ),
    "heads folded into the batch": (FoldedHeads, TOKENS, 4),
    "split by one size": (lambda: Between(halves), IMAGE, 6),
    "split by a list": (lambda: Between(listed), IMAGE, 4),
    "unflatten": (lambda: Between(lambda x: x.unflatten(-3, (4, 3)).relu().flatten(1, 2)), IMAGE, 4),
    "a depthwise kernel, groups as a number": (Blur, IMAGE, 12),
    "filled, and viewed by the same size": (
        lambda: Between(lambda x: (x.view(-1, 12, 36) * x.new_full((12, 1), 0.5)).view(-1, 12, 6, 6)),
        IMAGE,
        12,
    ),
    "zeros that are written into": (lambda: Between(written), IMAGE, 12),
    "a view of zeros over as many places": (lambda: Between(masked_places), IMAGE, 12),
    "a square over as many places": (
        lambda: Between(lambda x: (x.view(-1, 12, 3, 12) @ x.new_ones(12, 12).tril()).view(-1, 12, 6, 6)),
        IMAGE,
        12,
    ),
}


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, int]:
    make, shape, units = NETS[request.param]
    torch.manual_seed(0)
    return make().double().eval(), torch.randn(shape, dtype=torch.float64), units


def cut(model: nn.Module, x: Any, fraction: float = 0.5) -> tuple[nn.Module, fk.Plan, fk.UnitMap]:
    units = fk.trace(model, x)
    plan = fk.Plan(**vars(build(units, random_removal(units, fraction, seed=1))))
    return fk.apply(model, plan), plan, units


def attention() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return NETS["reshape"][0]().double().eval(), torch.randn(TOKENS, dtype=torch.float64)


def test_exact(net: tuple[nn.Module, Tensor, int]) -> None:
    model, x, expected = net
    for fraction in (0.1, 0.3, 0.7):
        small, plan, units = cut(model, x, fraction)
        assert units.proven
        assert [g.units for g in units.groups if g.frozen is None] == [expected]
        assert plan.sites
        assert small.__class__.__name__ == model.__class__.__name__
        assert isinstance(small, type(model))
        for batch in (x, torch.randn(5, *x.shape[1:], dtype=x.dtype), x[:1]):
            with plan.masked(model):
                assert difference(model, small, batch) < LIMIT
    assert not isinstance(model, SizedForward), "the model that was copied stays as it is"


def test_attributes_come_first() -> None:
    """A model whose sizes are all known by their attributes gets no substitutions."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4))
    small, plan, _ = cut(model, torch.randn(IMAGE))
    assert plan.sites == ()
    assert not any(isinstance(m, SizedForward) for m in small.modules())


def test_needless_numbers_are_left_alone() -> None:
    """`o.shape[1] · o.shape[3]` is right by itself after a cut; only the split into heads is put right."""
    torch.manual_seed(0)
    model = NETS["size from a tensor that is cut"][0]().double().eval()
    _, plan, _ = cut(model, torch.randn(TOKENS, dtype=torch.float64))
    assert [(s.function, s.before, s.after) for s in plan.sites] == [("reshape", 4, 2)]


def test_submodules_do_not_count() -> None:
    """In train mode a submodule makes calls that the trace did not see; those of the module are still found."""
    model, x = attention()
    small, plan, _ = cut(model, x)
    with plan.masked(model):
        model.train(), small.train()
        assert difference(model, small, x) < LIMIT


@pytest.mark.parametrize("strict", [True, False])
def test_export(net: tuple[nn.Module, Tensor, int], strict: bool) -> None:
    model, x, _ = net
    small, _, _ = cut(model, x)
    with may_refuse():
        exported = torch.export.export(small, (x,), strict=strict).module()
    assert torch.equal(exported(x), small(x))


def test_compile(net: tuple[nn.Module, Tensor, int]) -> None:
    model, x, _ = net
    small, _, _ = cut(model, x)
    torch.compiler.reset()
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    for batch in (x, torch.randn(5, *x.shape[1:], dtype=x.dtype)):
        with may_refuse():
            found = compiled(batch)
        assert torch.equal(found, small(batch))


def test_fx(net: tuple[nn.Module, Tensor, int]) -> None:
    """The numbers in the graph are those that are left; a module that is a leaf of it runs as it does."""
    model, x, _ = net
    small, _, _ = cut(model, x)
    try:
        torch.fx.symbolic_trace(model)
    except TypeError:  # writes into what it made
        pytest.skip("torch.fx cannot trace the whole model either")
    graph = torch.fx.symbolic_trace(small)
    for batch in (x, torch.randn(5, *x.shape[1:], dtype=x.dtype)):
        assert torch.equal(graph(batch), small(batch))
    assert "create_proxy" not in vars(graph.graph._tracer_cls)
    outer = torch.fx.symbolic_trace(nn.Sequential(small, nn.Identity()))
    assert torch.equal(outer(x), small(x))

    class Whole(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return m is small

    around = nn.Sequential(small, nn.Identity())
    assert torch.equal(torch.fx.GraphModule(around, Whole().trace(around))(x), small(x))


@torch.fx.wrap
def wrapped_merge(out: Tensor, b: int, n: int, c: int) -> Tensor:
    return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], c)


def test_fx_leaves_a_function_whole() -> None:
    """A function that `torch.fx.wrap` names is a call in the graph: what is in it runs later."""
    model, x = attention()
    model.merge = lambda out, b, n, c: wrapped_merge(out, b, n, c)
    small, _, _ = cut(model, x)
    graph = torch.fx.symbolic_trace(small)
    assert any(getattr(node.target, "__name__", "") == "wrapped_merge" for node in graph.graph.nodes)
    assert torch.equal(graph(x), small(x))
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


def test_a_graph_that_breaks() -> None:
    model, x = attention()
    model.merge = broken_merge
    small, _, _ = cut(model, x)
    torch.compiler.reset()
    assert torch.equal(torch.compile(small, backend="eager")(x), small(x))


def broken_merge(out: Tensor, b: int, n: int, c: int) -> Tensor:
    out = out.transpose(1, 2)
    torch._dynamo.graph_break()
    return out.reshape(b, n, c)


def test_copies_and_pickles() -> None:
    model, x = attention()
    model.merge = merge  # a lambda cannot be pickled, patched or not
    small, _, _ = cut(model, x)
    expected = small(x)
    assert torch.equal(copy.deepcopy(small)(x), expected)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(x), expected)
    assert type(again) is type(small)


def merge(out: Tensor, b: int, n: int, c: int) -> Tensor:
    return out.transpose(1, 2).reshape(b, n, c)


def test_gradients_flow() -> None:
    model, x = attention()
    small, _, _ = cut(model, x)
    small(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in small.parameters())


def test_pruned_twice() -> None:
    model, x = attention()
    once, _, _ = cut(model, x, 0.3)
    twice, plan, units = cut(once, x, 0.4)
    assert units.groups[0].units == 3
    with plan.masked(once):
        assert difference(once, twice, x) < LIMIT
    assert twice.qkv.out_features == 2 * 18


def test_in_place() -> None:
    model, x = attention()
    _, plan, _ = cut(model, x)
    expected = fk.apply(model, plan)(x)
    assert torch.equal(fk.apply(model, plan, inplace=True)(x), expected)


def test_another_path_through_the_code_is_refused() -> None:
    model, x = attention()
    small, _, _ = cut(model, x)
    small.merge = lambda out, b, n, c: out.transpose(1, 2).contiguous().view(b, n, c)
    with pytest.raises(
        fk.InputError, match=r"view\(2, 5, 24\), a call that was not made when it was traced, and 24 may"
    ):
        small(x)


def test_a_plan_that_counts_calls() -> None:
    """As plans of earlier versions do: the number of a call is that of all that the module makes."""
    model, x = attention()
    small, plan, _ = cut(model, x)
    numbered = [SizeChange("", k, s.function, s.place, s.before, s.after) for k, s in enumerate(plan.sites)]
    other = fk.apply(model, fk.Plan(**{**vars(plan), "sites": tuple(numbered), "seen": {}}))
    assert torch.equal(other(x), small(x))
    other.merge = lambda out, b, n, c: out.transpose(1, 2).contiguous().view(b, n, c)
    with pytest.raises(fk.InputError, match=r"call 1 is view.*it was reshape with 24 in place 2"):
        other(x)


def test_a_number_that_is_no_multiple_is_refused() -> None:
    model = Between(lambda x: x.reshape(2, 12, 6, 6))
    install(model, [SizeChange("", 0, "reshape", 1, 8, 4), SizeChange("", 0, "reshape", 2, 5, 3)])
    with pytest.raises(fk.InputError, match="5 in place 2"):
        model(torch.randn(2, 3, 8, 8))


def test_a_plan_for_other_modules_is_refused() -> None:
    model, x = attention()
    _, plan, _ = cut(model, x)
    other = fk.Plan(**{**vars(plan), "sites": (SizeChange("attn", 0, "view", 1, 4, 2),)})
    with pytest.raises(fk.PlanMismatchError, match="attn"):
        fk.apply(model, other)


def test_without_proof_nothing_is_substituted() -> None:
    model, x = attention()
    assert fk.trace(model, x, verify=False).sites == ()
