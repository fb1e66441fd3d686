"""Graphs that exporters write of a cut model: the numbers that are left stand in them, whichever call is given them."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.compact.sites import SizedForward
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from tests.old_torch import may_refuse

IMAGE = (2, 3, 8, 8)


class Between(nn.Module):
    """conv → `middle` of 12 channels → conv."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.middle = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


def halves(a: Tensor, b: Tensor) -> Tensor:
    """With all channels in one half and none in the other this would be another result, and no error."""
    return torch.cat([a.relu(), b], 1)


def indexed(x: Tensor) -> Tensor:
    """The places at which channels are taken apart, in all ways that torch has for it."""
    x = halves(x[:, :6], x[:, 6:])
    x = halves(x[:, :-6], x[:, -6:])
    x = halves(x.narrow(1, 0, 6), x.narrow(1, 6, 6))
    x = halves(torch.narrow(x, dim=1, start=0, length=6), torch.narrow(x, dim=1, start=6, length=6))
    a, b = x.tensor_split((6,), 1)
    c, d = halves(a, b).split_with_sizes([6, 6], 1)
    return halves(c, d)


def filled(x: Tensor) -> Tensor:
    """Tensors with a place for every channel."""
    x = x * x.new_full((1, 1, 1), 0.5).expand(12, 1, 1)
    x = x * x.new_full((1, 1, 1), 0.5).repeat(12, 1, 1)
    x = x + x.new_ones(12, 1, 1)
    x = x + torch.ones(12, 1, 1, dtype=x.dtype)
    x = x * torch.full((12, 1, 1), 0.5, dtype=x.dtype)
    return F.conv1d(x.flatten(2), x.new_ones(12, 1, 1), groups=12).view(-1, 12, 6, 6)


def sized(x: Tensor) -> Tensor:
    """Asks for sizes, all of them and one, and is not answered otherwise than before."""
    _, _, h, w = x.size()
    return x.view(x.size(0), 3, 4, h * w).softmax(-1).view(-1, 12, h, w)


def divided(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = x.view(b, 4, c // 4, h * w).softmax(2)
    return y.view(x.size(0), x.size(1), h, x.size()[-1])


MIDDLES = {"indexed": indexed, "filled": filled, "asks for sizes": sized, "divides sizes": divided}


def cut(model: nn.Module, x: Tensor, fraction: float = 0.5) -> tuple[nn.Module, fk.Plan]:
    units = fk.trace(model, x)
    plan = fk.Plan(**vars(build(units, random_removal(units, fraction, seed=1))))
    return fk.apply(model, plan), plan


@functools.cache
def small_of(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Between(MIDDLES[name]).double().eval(), torch.randn(IMAGE, dtype=torch.float64)
    small, plan = cut(model, x)
    assert plan.sites
    assert isinstance(small, SizedForward)
    with plan.masked(model):
        assert torch.allclose(model(x), small(x), atol=1e-12)
    return small, x


def jit_traced(model: nn.Module, x: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.trace(model, (x,))


WRITERS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "torch.fx": lambda model, _: torch.fx.symbolic_trace(model),
    "torch.export": lambda model, x: torch.export.export(model, (x,), strict=False).module(),
    "torch.export, strict": lambda model, x: torch.export.export(model, (x,), strict=True).module(),
    "torch.compile": lambda model, _: torch.compile(model, backend="eager", fullgraph=True),
    "torch.jit.trace": jit_traced,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", MIDDLES)
def test_written(name: str, writer: str) -> None:
    small, x = small_of(name)
    torch.compiler.reset()
    if name == "divides sizes" and writer in ("torch.compile", "torch.export, strict"):
        with pytest.raises(Exception, match="compile without fullgraph=True, and export with strict=False"):
            WRITERS[writer](small, x)(x)
        return
    with may_refuse():
        written = WRITERS[writer](small, x)
        found = written(x)
    assert torch.equal(found, small(x))
    if "export" not in writer:  # written for two samples
        more = torch.randn(3, *IMAGE[1:], dtype=x.dtype)
        assert torch.equal(written(more), small(more))


class Block(nn.Module):
    """Torch's attention module, the same by its function, and a layer around one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(24), nn.MultiheadAttention(24, 4, batch_first=True)
        self.pool = Pool()
        self.layer = nn.TransformerEncoderLayer(24, 4, 16, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = self.layer(x + self.attn(y, y, y, need_weights=False)[0])
        return self.head(self.pool(x.transpose(0, 1)))


class Pool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.c = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weight = [self.q.weight, self.k.weight, self.v.weight]
        bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        out, _ = F.multi_head_attention_forward(
            x[:1], x, x, 24, 4, None, bias, None, None, False, 0.0, self.c.weight, self.c.bias, training=False,
            need_weights=False, use_separate_proj_weight=True, q_proj_weight=weight[0], k_proj_weight=weight[1],
            v_proj_weight=weight[2],
        )  # fmt: skip
        return out.squeeze(0)


@functools.cache
def attending() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Block().double().eval(), torch.randn(2, 5, 24, dtype=torch.float64)
    small, plan = cut(model, x)
    assert {item.module for item in plan.replacements} >= {"attn", "pool", "layer.self_attn"}
    return small, x


def followed(model: nn.Module) -> torch.fx.GraphModule:
    """Without types that are text (`from __future__ import annotations`), with which older torch pickles no graph."""
    graph = torch.fx.symbolic_trace(model)
    for node in graph.graph.nodes:
        if isinstance(node.type, str):
            node.type = None
    graph.recompile()
    return graph


def test_attention_is_one_call_of_a_graph() -> None:
    """As torch's own module and function are: their code asks for values, which a graph has not."""
    small, x = attending()
    graph = followed(small)
    calls = {str(node.target) if node.op == "call_module" else node.target for node in graph.graph.nodes}
    assert {"attn", "layer", fk.model.attention.multi_head_attention} <= calls  # type: ignore[attr-defined]
    for written in (graph, pickle.loads(pickle.dumps(graph)), torch.fx.symbolic_trace(nn.Sequential(small))):
        assert torch.equal(written(x), small(x))
        assert torch.equal(written(x[:1]), small(x[:1]))


@pytest.mark.parametrize("writer", ["torch.export", "torch.export, strict", "torch.compile", "torch.jit.trace"])
def test_attention_in_other_graphs(writer: str) -> None:
    small, x = attending()
    torch.compiler.reset()
    with torch.no_grad():  # with gradients torch's layer takes another path, and torch.jit.trace compares the two
        with may_refuse():
            found = WRITERS[writer](small, x)(x)
        assert torch.allclose(found, small(x), atol=1e-12)


def test_graphs_with_answers_are_copied_and_pickled() -> None:
    small, x = small_of("divides sizes")
    graph = followed(small)
    for written in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert torch.equal(written(x), small(x))


def test_an_answer_that_does_not_divide_is_refused() -> None:
    torch.manual_seed(0)
    model, x = Between(divided).double().eval(), torch.randn(IMAGE, dtype=torch.float64)
    small, _ = cut(model, x, 0.25)  # 9 of 12 are left
    graph = torch.fx.symbolic_trace(small)
    assert torch.equal(graph(x), small(x))
    graph.first = nn.Conv2d(3, 5, 3).double()
    with pytest.raises(fk.InputError, match="asks for a size, and 5 is no multiple of 3"):
        graph(x)


def nothing_is_patched() -> bool:
    return torch.fx.Proxy.__getattr__.__module__ == "torch.fx.proxy"


def test_nothing_stays_behind() -> None:
    small, _ = small_of("divides sizes")
    torch.fx.symbolic_trace(small)
    assert nothing_is_patched()
    with pytest.raises(ZeroDivisionError):
        torch.fx.symbolic_trace(nn.Sequential(small, Failing()))
    small, _ = small_of("asks for sizes")
    small = copy.deepcopy(small)
    small.middle = lambda x: x.shape[0] + 1 / 0
    with pytest.raises(ZeroDivisionError):
        torch.fx.symbolic_trace(small)
    assert nothing_is_patched()


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError


def aside(x: Tensor) -> Tensor:
    """What runs while graphs are written infers a size from a number that counts channels."""
    if torch.fx._symbolic_trace.is_fx_symbolic_tracing() or torch.jit.is_tracing():
        return x.view(-1, 12, 6 * 6).view(-1, 12, 6, x.shape[3])
    return x.view(x.size(0), 3, 4, 36).softmax(-1).view(x.size(0), 12, 6, 6)


@pytest.mark.parametrize("writer", ["torch.fx", "torch.jit.trace"])
def test_a_path_that_no_trace_took_is_refused(writer: str) -> None:
    torch.manual_seed(0)
    model, x = Between(aside).double().eval(), torch.randn(IMAGE, dtype=torch.float64)
    small, plan = cut(model, x)
    assert plan.sites
    with pytest.raises(fk.InputError, match=r"view\(-1, 12, 36\), a call that was not made.*write it in another way"):
        WRITERS[writer](small, x)
    assert torch.equal(WRITERS["torch.export"](small, x)(x), small(x))


def test_scripts_are_refused_with_what_to_do() -> None:
    """They compile the text of the code, with the numbers before the cut; torch's own message is of annotations."""
    for small, _ in (small_of("asks for sizes"), attending()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            with pytest.raises(fk.InputError, match=r"torch\.jit\.script compiles the code.*use torch\.jit\.trace"):
                torch.jit.script(nn.Sequential(small))
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    small, _ = cut(plain, torch.randn(IMAGE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert torch.equal(torch.jit.script(small)(x := torch.randn(IMAGE)), small(x))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def moved(model: nn.Module) -> nn.Module:
    """To a device without memory and back; the values are those of before."""
    state = model.state_dict()
    empty = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    empty.load_state_dict(state)
    return empty


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
    "another device": moved,
    "a pickle of a copy of a pickle": lambda model: saved(copy.deepcopy(saved(model))),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_keep_their_sizes(way: str) -> None:
    for small, x in (*(small_of(name) for name in MIDDLES), attending()):
        again = COPIES[way](small)
        assert type(again) is type(small)
        assert torch.equal(again(x), small(x))
        assert torch.equal(torch.fx.symbolic_trace(again)(x), small(x))


@torch.fx.wrap
def left_whole(x: Tensor) -> Tensor:
    return x.view(x.shape[0], 3, 4, 36).softmax(-1).view(x.shape[0], 12, 6, 6)


def test_a_pickled_graph_never_has_the_old_numbers_of_a_function_in_it() -> None:
    """A pickle names it, and its numbers are those before the cut: torch says that it is another function."""
    torch.manual_seed(0)
    model, x = Between(lambda x: left_whole(x)).double().eval(), torch.randn(IMAGE, dtype=torch.float64)
    small, plan = cut(model, x)
    assert plan.sites
    graph = followed(small)
    assert torch.equal(copy.deepcopy(graph)(x), small(x))
    with pytest.raises(Exception, match="The object provided is from"):
        pickle.loads(pickle.dumps(graph))
