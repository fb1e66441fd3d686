"""Experts in three-dimensional parameters: recognising such modules, and running them in plain operators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fairkern.model.threads import of_this_thread

Forward = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rows:
    """What fused experts work on: the token of every row, int64 [rows], and how many rows each expert has, in order."""

    tokens: Tensor
    counts: list[int]


Listen = Callable[[Tensor, Rows], Tensor]  # activation [rows, n] → the activation to use


@dataclass(frozen=True)
class FusedExperts:
    """How a module holds its experts: names of its parameters and their layout.

    `up` is `[E, N, H]` and `down` `[E, H, I]`, or `[E, H, N]` and `[E, I, H]` where `transposed`. N is 2·I where
    `gated`: the gate and the branch that it multiplies lie in one product.
    """

    up: str
    down: str
    transposed: bool
    gated: bool

    @property
    def inner_dim(self) -> int:
        """The dimension of `down` that holds I."""
        return 1 if self.transposed else 2

    def held(self, module: nn.Module) -> tuple[str, ...]:
        """Names of the parameters that have a row per expert."""
        names = (self.up, self.down, f"{self.up}_bias", f"{self.down}_bias")
        return tuple(n for n in names if isinstance(module._parameters.get(n), Tensor))


def fused_experts(model: nn.Module) -> dict[str, FusedExperts]:
    """Every module that looks like fused experts, by path.

    Known by structure: `gate_up_proj` (or `up_proj`) and `down_proj` of three dimensions that share the first and
    fit each other, an `act_fn` or `_apply_gate`, and a forward of (hidden states, index of the chosen experts,
    their weights).
    """
    found = {path: (module, _layout(module)) for path, module in model.named_modules()}
    return {path: layout for path, (module, layout) in found.items() if layout is not None and _chooses(module)}


def _chooses(module: nn.Module) -> bool:
    names = list(inspect.signature(module.forward).parameters)
    return len(names) == 3 and ("index" in names[1] or "indices" in names[1]) and "weight" in names[2]


def _layout(module: nn.Module) -> FusedExperts | None:
    up_name = next((n for n in ("gate_up_proj", "up_proj") if n in module._parameters), None)
    up, down = module._parameters.get(up_name or ""), module._parameters.get("down_proj")
    if up_name is None or up is None or down is None or up.ndim != 3 or down.ndim != 3 or len(up) != len(down):
        return None
    activates = any(callable(getattr(module, name, None)) for name in ("act_fn", "_apply_gate"))
    if getattr(module, "_is_expert_parallel", False) or not activates:
        return None
    gated = up_name == "gate_up_proj"
    width = 2 if gated else 1
    fits = {
        False: up.shape[2] == down.shape[1] and up.shape[1] == width * down.shape[2],
        True: up.shape[1] == down.shape[2] and up.shape[2] == width * down.shape[1],
    }
    said = bool(getattr(module, "is_transposed", False))
    if not any(fits.values()):
        return None
    return FusedExperts(up_name, "down_proj", said if fits[said] else not said, gated)


def multiple(module: nn.Module) -> int:
    """Of what the inner size of the experts has to be: the grouped products of transformers read 16 bytes at a time."""
    grouped = getattr(getattr(module, "config", None), "_experts_implementation", None) == "grouped_mm"
    return max(1, 16 // next(module.parameters()).element_size()) if grouped else 1


def dense(module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """What the module computes, every expert on every token: no control flow depends on values.

    Args:
        hidden: [T, H]. index: int64 [T, k], the experts of each token, distinct. weights: [T, k], theirs.

    Cost: E / k times the module's own products.
    """
    layout = _layout(module)
    assert layout is not None
    up, down = (_across(module, name, layout) for name in (layout.up, layout.down))
    x = torch.bmm(hidden.expand(len(up), *hidden.shape), up)
    x = _normed(module, torch.bmm(_activated(module, layout, _biased(module, layout.up, x)), down), layout)
    routing = torch.zeros((len(hidden), len(up)), dtype=x.dtype, device=x.device)
    routing = routing.scatter(1, index, weights.to(x.dtype))
    return (x * routing.t().unsqueeze(-1)).sum(0).to(hidden.dtype)


def by_rows(
    module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor, *, inner: Listen, output: Listen
) -> Tensor:
    """What the module computes, on a row for every token and expert that it is routed to; arguments as of `dense`.

    `inner` is shown what the down projections read, [rows, I], `output` what experts add to their tokens, weighted,
    [rows, H], the rows of one expert after those of another; both return what is used in their place.
    """
    layout = _layout(module)
    assert layout is not None
    up, down = (_across(module, name, layout) for name in (layout.up, layout.down))
    chosen = index.reshape(-1)
    counts = torch.bincount(chosen, minlength=len(up))[: len(up)].tolist()
    places = chosen.argsort(stable=True)[: sum(counts)]
    rows, experts = Rows(places // index.shape[1], counts), chosen[places]
    x = _biased(module, layout.up, _each(hidden[rows.tokens], up, counts), experts)
    x = _each(inner(_activated(module, layout, x), rows), down, counts)
    x = _normed(module, x, layout, experts) * weights.reshape(-1)[places, None]
    made = output(x, rows).to(hidden.dtype)
    # every place of [T · k] is written once, and the sum over k runs in its order: the same on any device
    slotted = hidden.new_zeros((index.numel(), hidden.shape[1])).index_copy(0, places, made)
    return slotted.view(*index.shape, hidden.shape[1]).sum(1)


def one_by_one(module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """What the module computes, with products that every type and size has; arguments as of `dense`."""

    def same(x: Tensor, rows: Rows) -> Tensor:
        return x

    return by_rows(module, hidden, index, weights, inner=same, output=same)


def _each(x: Tensor, weights: Tensor, counts: list[int]) -> Tensor:
    """The product of each expert's rows, so many of each, with its matrix of `weights` [E, in, out]."""
    return torch.cat([own @ weight for own, weight in zip(x.split(counts), weights.unbind(), strict=True)])


def _across(module: nn.Module, name: str, layout: FusedExperts) -> Tensor:
    """A projection as [E, in, out]."""
    weight: Tensor = getattr(module, name)
    return weight if layout.transposed else weight.transpose(1, 2)


def _biased(module: nn.Module, name: str, x: Tensor, experts: Tensor | None = None) -> Tensor:
    """With the bias of every expert, x: [E, tokens, n]; or with that of each row's expert, x: [rows, n]."""
    bias = getattr(module, f"{name}_bias", None)
    if bias is None:
        return x
    return x + (bias.unsqueeze(1) if experts is None else bias[experts])


def _activated(module: Any, layout: FusedExperts, x: Tensor) -> Tensor:
    """The activation between the projections, [.., N] → [.., I]."""
    if not layout.gated:
        return module.act_fn(x)
    if hasattr(module, "_apply_gate"):
        return module._apply_gate(x)
    gate, up = x.chunk(2, dim=-1)
    return module.act_fn(gate) * up


def _normed(module: Any, x: Tensor, layout: FusedExperts, experts: Tensor | None = None) -> Tensor:
    x = _biased(module, layout.down, x, experts)
    return module.post_expert_norm(x) if getattr(module, "has_post_expert_norm", False) else x


@contextmanager
def running_as(model: nn.Module, forwards: Mapping[str, Forward]) -> Iterator[None]:
    """The modules at these paths run by these functions instead of their own `forward`; put back on the way out."""
    changed: list[tuple[nn.Module, Any]] = []
    try:
        for path, forward in forwards.items():
            module = model.get_submodule(path)
            own = module.__dict__.get("forward")
            run = _by_position(module, forward)
            changed.append((module, own))
            module.__dict__["forward"] = run
        yield
    finally:
        for module, own in changed:
            module.__dict__.pop("forward", None)
            if own is not None:
                module.__dict__["forward"] = own


def _by_position(module: nn.Module, forward: Forward) -> Callable[..., Tensor]:
    signature = inspect.signature(module.forward)

    def run(*args: Any, **kwargs: Any) -> Tensor:
        return forward(module, *signature.bind(*args, **kwargs).arguments.values())

    return run


def plain(model: nn.Module, run: Callable[[], object]) -> tuple[dict[str, FusedExperts], list[str]]:
    """The fused experts of `model` that `dense` is known to stand for, by path, and those that it does not.

    `run` calls the model; what each module returns is compared with `dense` on what it was given. A module that it
    does not reach is in neither. A model without values (meta, fake tensors) cannot route: its modules are taken for
    what they look like.
    """
    found = fused_experts(model)
    if any(p.is_meta or isinstance(p, FakeTensor) for path in found for p in model.get_submodule(path).parameters()):
        return found, []
    equal: dict[str, bool] = {}

    def compare(path: str) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = list(inspect.signature(module.forward).bind(*args, **kwargs).arguments.values())
            good = all(isinstance(t, Tensor) and t.ndim == 2 for t in given) and len(given) == 3
            equal[path] = equal.get(path, True) and good and _same(output, dense(module, *given))

        return after

    if found:
        after = {path: of_this_thread(compare(path)) for path in found}
        with torch.no_grad(), _hooked(model, after):
            run()
    return {p: found[p] for p, good in equal.items() if good}, [p for p, good in equal.items() if not good]


@contextmanager
def _hooked(model: nn.Module, after: Mapping[str, Callable[..., None]]) -> Iterator[None]:
    with ExitStack() as handles:
        for path, hook in after.items():
            handles.callback(model.get_submodule(path).register_forward_hook(hook, with_kwargs=True).remove)
        yield


# Two orders of summation through two products; the coarser types carry the rounding of their intermediates.
_CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3}


def _same(expected: Any, found: Tensor) -> bool:
    if not isinstance(expected, Tensor) or expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if not expected.numel():
        return True
    size = float(expected.abs().max())
    return float((expected - found).abs().max()) <= _CLOSE.get(expected.dtype, 5e-2) * size
