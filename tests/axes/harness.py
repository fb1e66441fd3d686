"""Small networks in one line, what a trace says of them in one line, and the exactness check for all of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from fairkern import compact
from fairkern.axes import solutions
from fairkern.model.nested import call_model, map_tensors, tensors_in
from fairkern.model.replacements import in_place
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.types import CallSite, IndexArray, Plan, Side, UnitMap

LIMIT = 1e-9


class Net(nn.Module):
    """Modules, parameters, buffers (tensors) and anything else by name; `run(net, *inputs)` is the forward pass."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


@dataclass(frozen=True)
class Case:
    """A network, its example inputs and what a trace has to say.

    `groups` maps a group's name to a line as `line` writes it; a group that is frozen has its reason instead,
    after a "!". `frozen` maps axes to a part of the reason. `renormalised`: a weight is normalised over its inputs, so
    that what stays of it grows: silent weights are then not silent activations.
    """

    model: Callable[[], nn.Module]
    groups: Mapping[str, str] = field(default_factory=dict)
    frozen: Mapping[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] = (2, 3, 8, 8)
    inputs: Callable[[], Any] | None = None
    more: tuple[Callable[[], Any], ...] = ()
    renormalised: bool = False


def make(case: Case, seed: int = 0) -> tuple[nn.Module, list[Any]]:
    """The case's network with nothing constant in it, float64, in eval mode, and its inputs."""
    torch.manual_seed(seed)
    model = case.model().double().eval()
    first = case.inputs() if case.inputs else torch.randn(case.shape)
    runs = [map_tensors(run, _double) for run in (first, *(more() for more in case.more))]
    if any(is_lazy(p) for p in model.parameters()):
        call_model(model, runs[0])
    return randomised(model), runs


def randomised(model: nn.Module) -> nn.Module:
    """Parameters and statistics that a fresh model holds constant, drawn at random."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
                low = 0.5 if float(tensor.flatten()[0]) > 0 or "var" in name else -0.3
                tensor.uniform_(low, low + 0.8)
    return model


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def lines(units: UnitMap) -> dict[str, str]:
    """Every group in a line: units, axes with their positions per unit (`*` a consumer), taps."""
    out = {}
    for group in units.groups:
        if group.frozen:
            out[group.name] = f"! {group.frozen}"
            continue
        axes = " ".join(
            f"{a.axis}{'*' if a.consumer else ''}{_times(a.positions.shape[1])}"
            for a in sorted(group.axes, key=lambda a: a.axis)
        )
        taps = " ".join("+".join(map(str, tap.sites)) + _times(tap.positions.shape[1]) for tap in group.taps)
        out[group.name] = f"{group.units}: {axes} @ {taps}"
    return out


def _times(n: int) -> str:
    return f"x{n}" if n > 1 else ""


def unit_map(model: nn.Module, runs: Sequence[Any]) -> UnitMap:
    """What the trace says alone: nothing is proven."""
    return solutions(model, runs)[0].units


def check_groups(case: Case) -> UnitMap:
    model, runs = make(case)
    units = unit_map(model, runs)
    assert lines(units) == dict(case.groups)
    reasons: dict[str, str] = {}
    for frozen in units.frozen:
        reasons[str(frozen.axis)] = reasons.get(str(frozen.axis), "") + "; " + frozen.reason
    for axis, reason in case.frozen.items():
        assert re.search(reason, reasons[axis]), f"{axis}: {reasons[axis]}"
    return units


def check_exact(case: Case) -> None:
    model, runs = make(case)
    units = unit_map(model, runs)
    for fraction in (0.3, 0.7):
        removed = random_removal(units, fraction, seed=int(10 * fraction))
        assert_exact(model, units, removed, runs, oracle=not case.renormalised)


def assert_exact(
    model: nn.Module,
    units: UnitMap,
    removed: Sequence[IndexArray],
    runs: Sequence[Any],
    *,
    tells: bool = True,
    oracle: bool = True,
) -> nn.Module:
    """Cut, weights zeroed, and activations zeroed at the taps agree; attributes and costs are those of the cut."""
    plan = build(units, removed)
    small = compact.apply(model, plan)
    for i, inputs in enumerate(runs):
        with torch.no_grad():
            whole = list(tensors_in(call_model(model, inputs)))
            found = list(tensors_in(call_model(small, inputs)))
            with compact.masked(model, plan):
                masked = list(tensors_in(call_model(model, inputs)))
            with in_place(model), silenced(model, units, removed):
                at_taps = list(tensors_in(call_model(model, inputs)))
        assert error(masked, found) < LIMIT
        assert not oracle or error(at_taps, found) < LIMIT, "differs from activations zeroed at the taps"
        if tells and i == 0 and any(len(r) for r in removed):
            assert error(whole, found) > LIMIT, "the cut had no effect: this case tests nothing"
    assert_sizes(small)
    assert_costs(model, small, plan, runs[0])
    return small


def error(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest relative error over all outputs."""
    assert [t.shape for t in expected] == [t.shape for t in found]
    pairs = [(a.double(), b.double()) for a, b in zip(expected, found, strict=True) if a.numel()]
    assert all(torch.isfinite(a).all() for a, _ in pairs)
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)


@contextmanager
def silenced(model: nn.Module, units: UnitMap, removed: Sequence[IndexArray]) -> Iterator[None]:
    """The removed units multiplied by zero in every activation that is tapped. Changes no weight."""
    masks: dict[CallSite, tuple[int, Tensor]] = {}
    for group, gone in zip(units.groups, removed, strict=True):
        for tap in group.taps if len(gone) else ():
            for site in tap.sites if tap.side is Side.INPUT else ():
                masks.setdefault(site, (tap.dim, torch.ones(tap.length)))[1][np.unique(tap.positions[gone])] = 0.0

    def silence(x: Tensor, site: CallSite) -> Tensor:
        dim, mask = masks[site]
        return x * mask.to(x).reshape([-1 if d == dim else 1 for d in range(x.dim())])

    def hook(path: str) -> Callable[..., Any]:
        calls = iter(range(1_000_000))

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            site = CallSite(path, next(calls))
            if site not in masks:
                return None
            x = silence(args[0] if args else kwargs["input"], site)
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})

        return before

    with ExitStack() as handles:
        for path in {site.module for site in masks if not site.weight}:
            handles.callback(model.get_submodule(path).register_forward_pre_hook(hook(path), with_kwargs=True).remove)
        functions = [site for site in masks if site.weight]
        if functions:
            handles.enter_context(_Functions(model, functions, silence))
        yield


class _Functions(TorchFunctionMode):
    """Silences the activation that a function is given next to a weight; knows weights by where their memory starts."""

    def __init__(
        self, model: nn.Module, sites: Sequence[CallSite], silence: Callable[[Tensor, CallSite], Tensor]
    ) -> None:
        super().__init__()
        self.starts = {
            t.untyped_storage().data_ptr(): n for n, t in [*model.named_buffers(), *model.named_parameters()]
        }
        self.sites, self.silence, self.calls = sites, silence, Counter[str]()
        self.computed: list[tuple[Tensor, set[str]]] = []  # from weights alone, kept alive: known by identity

    def names(self, tensor: Tensor) -> set[str]:
        start = self.starts.get(tensor.untyped_storage().data_ptr())
        return {start} if start else next((names for made, names in self.computed if made is tensor), set())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = list(tensors_in([args, kwargs]))
        owners = [self.names(t) for t in given]
        names = set().union(*owners)
        if names and all(owner or t.dim() == 0 for owner, t in zip(owners, given, strict=True)):
            result = func(*args, **(kwargs or {}))
            self.computed += [(t, names) for t in tensors_in(result)]
            return result
        if names:
            for name in names:
                for site in self.sites:
                    if (site.weight, site.call) == (name, self.calls[name]):
                        new = {id(given[site.argument]): self.silence(given[site.argument], site)}
                        args = map_tensors(args, lambda t, new=new: new.get(id(t), t))
                self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def assert_sizes(model: nn.Module) -> None:
    """Attributes that hold sizes say what the tensors have."""
    for path, m in model.named_modules():
        weight = m._parameters.get("weight")
        if weight is None:
            continue
        if isinstance(m, nn.Linear):
            assert (m.out_features, m.in_features) == tuple(weight.shape), path
        elif isinstance(m, nn.modules.conv._ConvNd):
            ends = (
                (m.in_channels, m.out_channels // m.groups)
                if m.transposed
                else (m.out_channels, m.in_channels // m.groups)
            )
            assert ends == tuple(weight.shape[:2]), path
            assert m.in_channels % m.groups == m.out_channels % m.groups == 0, path
        elif isinstance(m, nn.modules.batchnorm._NormBase):
            assert (m.num_features,) == tuple(weight.shape), path
        elif isinstance(m, nn.PReLU):
            assert m.num_parameters == len(weight), path


def assert_costs(model: nn.Module, small: nn.Module, plan: Plan, inputs: Any) -> None:
    for net, when in ((model, "before"), (small, "after")):
        assert plan.result[f"params_{when}"] == sum(p.numel() for p in net.parameters())
        assert plan.result[f"flops_{when}"] == measured_flops(net, inputs)


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Both products of attention on shapes [batch, heads, tokens, size of a head]."""
    batch, heads, tokens, size = query
    return 2 * batch * heads * tokens * key[-2] * (size + value[-1])


# The counter of torch up to 2.14 does not know attention on a CPU.
_UNCOUNTED = (
    {}
    if torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in flop_registry
    else {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
)


def measured_flops(model: nn.Module, inputs: Any) -> int:
    with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter, torch.no_grad():
        call_model(model, inputs)
    return int(counter.get_total_flops())
