"""One random model: traced, proven, cut, and held against itself masked in everything that people do with it."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fairkern as fk
from bench.graphs.grow import Model, Recipe, grown
from bench.zoo.entry import squared
from fairkern import types
from fairkern.artefacts.units import IndexPool, units_content
from fairkern.model.nested import call_model, map_tensors, tensors_in
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.types import IndexArray

LIMIT = 1e-9  # of float64: rounding stays below 1e-12 in models as small as these
OTHER_BATCH, LONGER = 5, 4
NOTHING = "can be cut"  # what `trace` says of a model that keeps everything


class Wrong(Exception):
    """What must hold does not."""


@dataclass(frozen=True)
class Row:
    """What came of one seed. `problem` is empty where all held; else what did not, or an exception, in one line."""

    seed: int
    pieces: tuple[str, ...]
    problem: str = ""
    groups: int = 0
    prunable: int = 0
    share: float = 0.0  # of the parameters that lie on an axis that can be cut
    error: float = 0.0  # the largest of outputs and gradients, over all plans and inputs
    felt: bool = False  # a cut changed the output
    scored: bool = False
    longer: bool = False  # it also ran on inputs of another length
    unproven: str = ""  # of the map without a proof: "exact", "raises", "differs", or "" where it holds nothing to cut
    seconds: float = 0.0  # of a processor
    frozen: tuple[str, ...] = ()


@dataclass
class _Found:
    """Figures of a row as they come up."""

    error: float = 0.0
    felt: bool = False
    longer: bool = False


def examine(recipe: Recipe, *, scored: bool = True, raising: bool = False) -> Row:
    """All checks on the model of a recipe. `raising`: what does not hold, or fails, is raised instead of noted."""
    started = time.process_time()
    pieces: tuple[str, ...] = ()
    figures: dict[str, Any] = {}
    try:
        with torch.random.fork_rng([]):
            model = grown(recipe)
            pieces = tuple(model.pieces)
            figures = _figures(model, scored)
    except Exception as error:  # a row of the table, not the end of the run
        if raising:
            raise
        figures = {"problem": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
    return Row(recipe.seed, pieces, seconds=time.process_time() - started, **figures)


def _figures(model: Model, scored: bool) -> dict[str, Any]:
    network, inputs, seed = model.network, model.inputs(1), model.recipe.seed
    before = snapshot(network)
    try:
        units = _traced_twice(network, inputs, seed)
    except fk.InputError as error:
        if NOTHING not in str(error):
            raise
        _same(network, before)
        return {"frozen": (str(error)[:300],)}
    found = _Found()
    plans = [build(units, half(units, seed))]
    scores = _scores_if_samples_are_apart(model, units) if scored else None
    _same(network, before)
    if scores is not None:
        plans.append(_by_score(scores, seed))
        _permuted(model, units, scores, seed)
    for i, plan in enumerate(plans):
        small = fk.apply(network, plan)
        _compared(model, plan, small, found)
        if i == 0:
            _gradients(model, plan, small, found)
            _reloaded(model, plan, small)
            _trains(model, small)
    unproven = _unproven(model)
    _same(network, before, code=False)
    on_axes = {a.axis.tensor for g in units.prunable for a in units.groups[g].axes}
    held = dict(network.named_parameters())
    return {
        "groups": len(units.groups),
        "prunable": len(units.prunable),
        "share": sum(p.numel() for n, p in held.items() if n in on_axes) / sum(p.numel() for p in held.values()),
        "error": found.error,
        "felt": found.felt,
        "longer": found.longer,
        "scored": scores is not None,
        "unproven": unproven,
        "frozen": tuple(f"{g.name}: {g.frozen}" for g in units.groups if g.frozen),
    }


def half(units: types.UnitMap, seed: int) -> list[IndexArray]:
    """Half of the units of about every other group that can be cut, or of all; drawn at random."""
    drawn = random_removal(units, 0.5, seed)
    some = np.random.default_rng(seed)
    if some.random() < 0.5:
        return drawn
    return [d if some.random() < 0.6 else d[..., :0].reshape(-1)[:0] for d in drawn]


def apart(expected: Any, found: Any, least: float = 1e-12) -> float:
    """How far two results of one form are apart: of every tensor max|a − b| / max(max|a|, least), the largest."""
    a, b = list(tensors_in(expected)), list(tensors_in(found))
    if [x.shape for x in a] != [x.shape for x in b]:
        raise Wrong(f"shapes {[tuple(x.shape) for x in a]} became {[tuple(x.shape) for x in b]}")
    if not all(bool(torch.isfinite(x).all()) for x in a):
        raise Wrong("the masked model gives what is not finite")
    return max(
        (float((x - y).abs().max() / x.abs().max().clamp_min(least)) for x, y in zip(a, b, strict=True) if x.numel()),
        default=0.0,
    )


def _traced_twice(network: nn.Module, inputs: Any, seed: int) -> fk.UnitMap:
    state = torch.get_rng_state()
    units = fk.trace(network, inputs, seed=seed)
    again = fk.trace(network, inputs, seed=seed)
    if _content(units) != _content(again):
        raise Wrong("two traces give two maps")
    if not torch.equal(state, torch.get_rng_state()):
        raise Wrong("tracing drew from torch's generator")
    return units


def _content(units: types.UnitMap) -> tuple[Any, bytes]:
    pool = IndexPool()
    content = units_content(units, pool)
    return content, pool.joined().tobytes()


def _compared(model: Model, plan: fk.Plan | types.Plan, small: nn.Module, found: _Found) -> None:
    """Outputs, with gradients and without, for the example inputs, another batch size and other lengths."""
    network, plan = model.network, fk.Plan.of(plan)
    for seed, batch, longer in ((1, 2, 0), (2, OTHER_BATCH, 0), (3, 1, 0), (4, 3, LONGER)):
        inputs = model.inputs(seed, batch, longer=longer)
        if longer and not _runs(network, inputs, model.inputs(seed, batch)):
            continue
        found.longer |= bool(longer)
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                with plan.masked(network):
                    expected = call_model(network, inputs)
                error = apart(expected, call_model(small, inputs))
        found.felt |= apart(call_model(network, inputs), expected) > LIMIT
        found.error = max(found.error, error)
        if not error < LIMIT:
            raise Wrong(f"cut and masked are {error:.0e} apart (batch {batch}, {longer} longer)")


def _runs(network: nn.Module, inputs: Any, usual: Any) -> bool:
    """Whether it takes these inputs, and as many samples of them as of the usual ones: a view with -1 in front makes
    samples of places."""
    try:
        with torch.no_grad():
            made, as_usual = ([t.shape[:1] for t in tensors_in(call_model(network, x))] for x in (inputs, usual))
    except (RuntimeError, ValueError, IndexError, AssertionError):
        return False
    return made == as_usual


def _gradients(model: Model, plan: types.Plan, small: nn.Module, found: _Found) -> None:
    """Of a loss, with respect to the inputs and to every weight that is left.

    The masked model's are cut by the plan as the weights are: they are put in their place in a copy.
    """
    masked, inputs = copy.deepcopy(model.network), model.inputs(5, 3)
    with fk.Plan.of(plan).masked(masked):
        expected = _backward(masked, inputs)
    carrier = copy.deepcopy(model.network)
    with torch.no_grad():
        for name, p in carrier.named_parameters():
            held = dict(masked.named_parameters())[name].grad
            p.copy_(torch.zeros_like(p) if held is None else held)
    cut = fk.apply(carrier, plan)
    got = _backward(small, inputs)
    largest = max(float(p.detach().abs().max()) for p in cut.parameters())
    worst = apart(expected, got, least=1e-3 * largest)
    for (name, p), (other, q) in zip(cut.named_parameters(), small.named_parameters(), strict=True):
        grad = torch.zeros_like(q) if q.grad is None else q.grad
        if name != other or p.shape != grad.shape:
            raise Wrong(
                f"gradients of {name} are of shape {tuple(p.shape)}, those of the cut model's {other} {tuple(q.shape)}"
            )
        error = float((p.detach() - grad).abs().max()) / max(largest * 1e-3, float(p.detach().abs().max()), 1e-12)
        if not error < LIMIT:
            raise Wrong(f"gradients of {name} are {error:.0e} apart")
        worst = max(worst, error)
    small.zero_grad()
    found.error = max(found.error, worst)
    if not worst < LIMIT:
        raise Wrong(f"gradients of the inputs are {worst:.0e} apart")


def _backward(network: nn.Module, inputs: Any) -> list[Tensor]:
    """Gradients of the floating inputs; those of the parameters stay in them."""
    inputs = map_tensors(inputs, lambda t: t.clone().requires_grad_(t.is_floating_point()))
    squared(call_model(network, inputs)).backward()
    return [t.grad for t in tensors_in(inputs) if t.grad is not None]


def _reloaded(model: Model, plan: types.Plan, small: nn.Module) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fk.save_pruned(small, plan, Path(folder) / "small")
        again = fk.load_pruned(grown(model.recipe).network, Path(folder) / "small").eval()
    inputs = model.inputs(6, OTHER_BATCH)
    with torch.no_grad():
        expected, got = call_model(small, inputs), call_model(again, inputs)
    for a, b in zip(tensors_in(expected), tensors_in(got), strict=True):
        if not torch.equal(a, b):
            raise Wrong("what is loaded computes something else")


def _trains(model: Model, small: nn.Module) -> None:
    """A step in train mode, if the whole model takes one."""

    def step(network: nn.Module) -> None:
        network = copy.deepcopy(network).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
        squared(call_model(network, model.inputs(7, 4))).backward()
        optimizer.step()
        if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
            raise RuntimeError("a step leaves what is not finite")

    try:
        step(model.network)
    except (RuntimeError, ValueError):
        return
    step(small)


def _scores(model: Model, units: types.UnitMap, network: nn.Module | None = None) -> fk.Scores:
    batches = [(model.inputs(seed, 4), torch.tensor([0, 1, 0, 1])) for seed in (8, 9)]
    return fk.score(
        network or model.network,
        batches,
        squared,
        units=units,
        projections=8,
        class_of=lambda batch: batch[1],
        progress=False,
    )


def _scores_if_samples_are_apart(model: Model, units: types.UnitMap) -> fk.Scores | None:
    """None for a model whose samples change each other, which is refused: it has a norm of the batch."""
    try:
        return _scores(model, units)
    except fk.InputError as error:
        if "mixes them" not in str(error):
            raise
        return None


def _by_score(scores: fk.Scores, seed: int) -> fk.Plan:
    """To a budget, where there are units enough, or by tolerance."""
    try:
        return scores.plan(keep_params=0.7) if seed % 2 else scores.plan(tod=0.6)
    except fk.BudgetError:
        return scores.plan(tod=0.3)


def _permuted(model: Model, units: types.UnitMap, scores: fk.Scores, seed: int) -> None:
    """Units in another order: the same function, where units are alike, and then the same scores in that order."""
    draw = np.random.default_rng(seed)
    alike = [
        g
        for g in units.prunable
        if units.groups[g].sets == 1 and not any(a.axis.tensor in units.lists for a in units.groups[g].axes)
    ]
    if not alike:
        return
    group = units.groups[g := int(draw.choice(alike))]
    order = draw.permutation(group.units)
    network = copy.deepcopy(model.network)
    held = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with torch.no_grad():
        for axis in group.axes:
            tensor, index = held[axis.axis.tensor], np.arange(axis.length)
            index[axis.positions.ravel()] = axis.positions[order].ravel()
            tensor.copy_(tensor.index_select(axis.axis.dim, torch.from_numpy(index)))
        expected, got = (call_model(n, model.inputs(2)) for n in (model.network, network))
    if apart(expected, got) > LIMIT:
        return  # they differ by their places: a slice, a roll, heads with slopes of their own
    again = _scores(model, units, network)
    for name, of in scores.signals.items():
        if len(of[g]):
            a, b = of[g][order], again.signals[name][g]
            if not np.allclose(a, b, rtol=1e-5, atol=1e-7 * float(np.abs(a).max(initial=0.0)), equal_nan=True):
                raise Wrong(f"{name} of {group.name} does not go with the order of its units")


def _unproven(model: Model) -> str:
    """What a map without a proof would have done: it says that it is unproven, so none of this is a fault."""
    network, inputs = model.network, model.inputs(1)
    try:
        units = fk.trace(network, inputs, verify=False)
    except fk.InputError:
        return ""
    plan = fk.Plan.of(build(units, random_removal(units, 0.5, model.recipe.seed)))
    with torch.no_grad():
        try:
            got = call_model(fk.apply(network, plan), inputs)
        except Exception:
            return "raises"
        with plan.masked(network):
            expected = call_model(network, inputs)
    try:
        return "exact" if apart(expected, got) < LIMIT else "differs"
    except Wrong:
        return "differs"


def snapshot(network: nn.Module) -> dict[str, Any]:
    """What must not change: tensors to the bit, who they are, gradients, hooks, modes and plain attributes."""
    found: dict[str, Any] = {}
    for name, t in [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]:
        found[name] = (id(t), t.data_ptr(), t.stride(), t.requires_grad, t.grad is None, t.detach().numpy().tobytes())
    for path, module in network.named_modules():
        found[f"{path}()"] = (id(module), type(module), {k: copy.copy(v) for k, v in _plain(module)})
    return found


def _plain(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules"):
            yield name, [(key, id(held)) for key, held in value.items()]
        elif isinstance(value, (Tensor, nn.Module)) or (
            isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value)
        ):
            yield name, id(value)
        else:
            yield name, value


def _same(network: nn.Module, before: dict[str, Any], *, code: bool = True) -> None:
    """`code`: attributes too, which the model's own code may have written in calls of our own."""
    after = snapshot(network)
    for name in before.keys() | after.keys():
        if (code or not name.endswith("()")) and before.get(name) != after.get(name):
            raise Wrong(f"{name} is not what it was")


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """What all rows say together."""
    cut = [r for r in rows if r.prunable]
    return {
        "models": len(rows),
        "problems": sum(bool(r.problem) for r in rows),
        "with_groups": len(cut),
        "felt": sum(r.felt for r in rows),
        "groups": sum(r.groups for r in rows),
        "prunable": sum(r.prunable for r in rows),
        "median_share": float(np.median([r.share for r in rows])) if rows else 0.0,
        "largest_error": max((r.error for r in rows), default=0.0),
        "longer": sum(r.longer for r in rows),
        "scored": sum(r.scored and bool(r.prunable) for r in rows),
        "unproven": {kind: sum(r.unproven == kind for r in rows) for kind in ("exact", "raises", "differs", "")},
        "pieces": len({p for r in rows for p in r.pieces}),
        "seconds": sum(r.seconds for r in rows),
    }
