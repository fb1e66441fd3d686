"""Run pruned against masked, and find the groups that no trace can vouch for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fairkern.compact.cutting import apply, copy_with
from fairkern.compact.descriptors import check, tensors_of
from fairkern.compact.mask import masked
from fairkern.compact.sites import learn, learned
from fairkern.deadline import NO_LIMIT, Deadline
from fairkern.errors import InputError
from fairkern.model.caches import Calls, calls_of, with_loop
from fairkern.model.fused import one_by_one, running_as
from fairkern.model.generation import can_generate
from fairkern.model.nested import call_model, map_tensors
from fairkern.model.raised import in_words, running
from fairkern.model.untouched import forget, same_attributes, untouched, valueless
from fairkern.plans.build import build
from fairkern.plans.removals import NONE, about_half, nothing
from fairkern.plans.renaming import Renaming
from fairkern.prove.double import Double, in_double
from fairkern.prove.inputs import distance, vary
from fairkern.prove.rebuilt import rebuilt
from fairkern.prove.search import Failed, search
from fairkern.prove.states import State, states_of
from fairkern.prove.stir import calibrate, stir
from fairkern.types import IndexArray, Passed, Plan, Silence, SiteNumber, UnitMap

# Relative error above which pruned and masked differ. Float64 carries 1e-15 per operation, a wrong cut shows
# at 1e-3 and more; the coarser types need room for reordered sums (and TF32) through a deep network.
_DRAWS = 5  # of parameters, until something of the inputs arrives in the results
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}

_Made = TypeVar("_Made")


def difference(model: nn.Module, small: nn.Module, inputs: Any) -> float:
    """Relative error between the outputs of two models on `inputs` (tensor, tuple or mapping), without gradients.

    Models in float64 compute in float64 throughout, also where their code casts to a coarser type.
    The largest over all output tensors of `max|a − b| / max|a|`, in float64; outputs may be nested (tuples,
    named tuples, mappings, objects of any class); caches and states that the model returns for its next call are left
    out (`fairkern.model.caches`). NaN, another shape or another number of tensors give inf.
    Raises InputError when the model returns no tensor.
    """
    with torch.no_grad():
        with untouched(model), in_double(model):
            expected = call_model(model, inputs)
            calls = calls_of(model, inputs, expected, onward=False)
        with in_double(small):
            return distance(calls.results(expected), calls.results(call_model(small, inputs)))


def prove(
    model: nn.Module,
    units: UnitMap,
    inputs: Any,
    *,
    seed: int = 0,
    tolerance: float | None = None,
    numbers: dict[SiteNumber, Passed] | None = None,
    together: bool = False,
    deadline: Deadline = NO_LIMIT,
) -> dict[int, str]:
    """Which prunable groups of `units` fail when they are cut: `{group index: reason}`, empty if all hold.

    About half of the units of every group are removed at random, and the pruned model is compared with the
    masked one on inputs other than `inputs` (see `vary`; `inputs` themselves where the model cannot use those).
    If all groups together fail, a search over growing sets finds the groups that fail on top of those that
    pass, so that a pair that fails only jointly loses one member; f failures among n groups take O(f · log n)
    runs, and fewer where an error is raised in a module that few groups have to do with. What remains has been run
    together and passed.

    Everything runs on one copy in eval mode, in float64 where the model allows it and else in its own dtypes,
    without gradients (and with, if the model's code asks for that: `states_of`). In the copy, constant parameters are
    replaced by random ones and normalisation statistics by those of its own activations, perturbed: the zeros and ones
    of a fresh model would hide wrong cuts. `model` and the global random generators stay as they are.

    `numbers`: a dictionary that learns what the code passes at the map's size sites without a substitution, over
    several proofs; without it every one is substituted.
    `together`: do not search; if all groups together fail, each has that reason.
    `tolerance` defaults to 1e-9 in float64, 1e-3 in float32, 5e-2 in half precision.

    Cost: a copy, a calibrating and two measured forward passes when nothing fails.
    Raises PlanMismatchError (`units` of another model), InputError (a model on the meta device, one that cannot
    be copied, no tensor in the output), TimeLimitError (`deadline`, checked between runs); what the model itself
    raises on `inputs` passes through.
    """
    failed = failing(
        model,
        units,
        inputs,
        seed=seed,
        tolerance=tolerance,
        numbers=numbers,
        together=together,
        deadline=deadline,
    )
    return {group: why.reason for group, why in failed.items()}


def failing(
    model: nn.Module,
    units: UnitMap,
    inputs: Any,
    *,
    seed: int,
    tolerance: float | None = None,
    numbers: dict[SiteNumber, Passed] | None = None,
    together: bool = False,
    prepared: Prepared | None = None,
    doubtful: Iterable[int] | None = None,
    said: Failed | None = None,
    most: int | None = None,
    deadline: Deadline = NO_LIMIT,
) -> dict[int, Failed]:
    """What `prove` says, with what is known of where it failed.

    `prepared`: the copy, from an earlier proof of this model on these inputs with this seed. `doubtful`: the groups
    that may fail, the others having passed together; `said`: how all groups together fail, where that is known.
    `most`: as many failing groups are too many; no others are looked for.
    """
    check(model, build(units, nothing(units)))
    check_values(model)
    removed = about_half(units, seed)
    candidates = [i for i in units.prunable if removed[i].size]
    if not candidates:
        return {}
    with _own_random_state(model), torch.no_grad():
        trial = _Trial(prepared or prepare(model, units, inputs, seed), units, removed, tolerance, numbers)

        def attempt(groups: Sequence[int]) -> Failed | None:
            deadline.check("proving groups")
            return trial.failure(groups)

        said = said or attempt(candidates)
        if said is None or together:
            return {} if said is None else dict.fromkeys(candidates, said)
        wanted = set(candidates if doubtful is None else doubtful)
        settled = [c for c in candidates if c not in wanted]
        return search([c for c in candidates if c in wanted], attempt, settled, said, most)


def check_values(model: nn.Module, instead: str = "groups cannot be proven, pass verify=False") -> None:
    """InputError for a model with tensors on the meta device or fake ones, with what to do `instead`."""
    without = next((held.names[0] for held in tensors_of(model) if valueless(held.tensor)), None)
    if without is not None:
        raise InputError(f"{without} has no values (it is on the meta device, or fake): {instead}")


def failure(
    model: nn.Module,
    units: UnitMap,
    removed: Sequence[IndexArray],
    inputs: Any,
    *,
    seed: int = 0,
    prepared: Prepared | None = None,
    numbers: dict[SiteNumber, Passed] | None = None,
    rebuild: bool = False,
) -> str | None:
    """Why the model without these units is not the masked model, on inputs as `prove` makes them; None when it is.

    `prepared`: as of `failing`; `numbers`: as of `prove`. `rebuild`: so has to be a model that is built from what is
    left of the configuration, with what is left of the numbers (where the uncut one is what is built from its own).

    Cost and errors as of `prove` when nothing fails.
    """
    with _own_random_state(model), torch.no_grad():
        trial = _Trial(prepared or prepare(model, units, inputs, seed), units, removed, None, numbers, rebuild)
        failed = trial.failure(range(len(units.groups)))
        return None if failed is None else failed.reason


@dataclass(frozen=True)
class Prepared:
    """A copy of a model, ready to be cut in many ways and compared with itself masked, and what it is run on.

    `lifted`: it is in float64 and asks for coarser types, which it shall not get.
    """

    copy: nn.Module
    inputs: Any
    seed: int
    tolerance: float
    lifted: bool
    states: Sequence[State]
    calls: Calls


def prepare(model: nn.Module, units: UnitMap, inputs: Any, seed: int) -> Prepared:
    """The first of float64 and own dtypes, varied and given inputs, that a copy can run with."""
    with _own_random_state(model), torch.no_grad():
        return _prepared(model, units, inputs, seed)


def _prepared(model: nn.Module, units: UnitMap, inputs: Any, seed: int) -> Prepared:
    own = [held.tensor.dtype for held in tensors_of(model) if held.tensor.is_floating_point()]
    coarsest = max(own, key=lambda dtype: TOLERANCES.get(dtype, 5e-2), default=torch.float64)
    problem: Exception | None = None
    for double in (True, False):
        copy, tolerance = _copy(model, double), TOLERANCES.get(torch.float64 if double else coarsest, 5e-2)
        for attempt in (vary(inputs, seed + 1), inputs):
            cast = map_tensors(attempt, _double) if double else attempt
            for draw in range(_DRAWS):
                try:
                    prepared, results = _drawn(copy, units, cast, seed, draw, tolerance)
                except Exception as error:
                    problem = error
                    break
                problem = None
                if not all(map(_usable, results)):
                    break
                if not _deaf(results) or draw == _DRAWS - 1:
                    return prepared
    if problem is not None:
        raise problem
    return prepared


def _drawn(
    copy: nn.Module, units: UnitMap, inputs: Any, seed: int, draw: int, tolerance: float
) -> tuple[Prepared, list[Tensor]]:
    """The copy with parameters drawn for the `draw`-th time, and what it gives."""
    stir(copy, seed + 2 + 1000 * draw, _choosing(units))
    mode = in_double(copy)
    with same_attributes(copy):  # what is cut has not run, as when somebody cuts a model
        with calibrate(copy, seed + 3), mode, running_as(copy, _experts(units)):
            torch.manual_seed(seed)
            output = call_model(copy, inputs)
        with mode, running_as(copy, _experts(units)):
            calls, onward = _onward(copy, inputs, output)
    lifted = isinstance(mode, Double) and mode.needed
    prepared = Prepared(copy, inputs, seed, tolerance, lifted, states_of(copy), calls)
    return prepared, calls.results(output) + onward


def _onward(model: nn.Module, inputs: Any, output: Any) -> tuple[Calls, list[Tensor]]:
    """How the model is called on, by its own loop where that runs, and what that gives."""
    generates = can_generate(model)
    calls, onward = calls_of(model, inputs, output, onward=not generates), list[Tensor]()
    if generates:
        forget(model)
        calls, onward, problem = with_loop(calls, model, inputs)
        if problem is not None:
            forget(model)
            output = call_model(model, inputs)
            calls = calls_of(model, inputs, output)
    return calls, onward or calls.onward(model, inputs, output)


def _choosing(units: UnitMap) -> frozenset[str]:
    """Vectors beside the matrices of routers, a value per expert."""
    routed = [g for g in units.groups if any(a.silence is Silence.MINUS_INFINITY for a in g.axes)]
    named = (a.axis.tensor for g in routed for a in g.axes if a.axis.tensor in units.shapes)
    return frozenset(name for name in named if math.prod(units.shapes[name]) == max(units.shapes[name]))


def _experts(units: UnitMap) -> dict[str, Any]:
    """How fused experts run: their kernels know few types and sizes."""
    sites = {s for g in units.groups for tap in g.taps if tap.side.of_experts for s in tap.sites}
    return {site.module: one_by_one for site in sites if site.module not in units.lists}


class _Trial:
    """A copy of a model that is cut in several ways, all of one map, and compared with itself masked."""

    def __init__(
        self,
        prepared: Prepared,
        units: UnitMap,
        removed: Sequence[IndexArray],
        tolerance: float | None,
        numbers: dict[SiteNumber, Passed] | None,
        rebuild: bool = False,
    ) -> None:
        self.rebuild = rebuild
        self.prepared, self.copy, self.inputs = prepared, prepared.copy, prepared.inputs
        self.units, self.removed, self.numbers = units, removed, numbers
        self.tolerance = prepared.tolerance if tolerance is None else tolerance
        self._experts = _experts(units)

    def _run(self, model: nn.Module) -> list[list[Tensor]]:
        """The results of a call in every state, and of what the model does on from there."""
        calls = self.prepared.calls
        results: list[list[Tensor]] = []
        onward: list[Tensor] = []
        for state in self.prepared.states:
            forget(model)
            output = self._call(model, state, partial(call_model, model, self.inputs))
            results.append(calls.results(output))
            if calls.goes_on and not onward:
                if calls.loop:
                    forget(model)
                onward = self._call(model, state, partial(calls.onward, model, self.inputs, output))
        return [*results, onward] if calls.goes_on else results

    def _call(self, model: nn.Module, state: State, call: Callable[[], _Made]) -> _Made:
        torch.manual_seed(self.prepared.seed)  # the same for both sides; the caller's state is put back by `prove`
        with state(), Double() if self.prepared.lifted else nullcontext(), running_as(model, self._experts):
            return call()

    def failure(self, groups: Sequence[int]) -> Failed | None:
        """Why the pruned copy is not the masked copy when these groups are cut; None when it is, in every state."""
        chosen = set(groups)
        plan = build(self.units, [r if i in chosen else NONE for i, r in enumerate(self.removed)])
        small: nn.Module | None = None
        try:
            small = apply(self.copy, plan)
            if self.numbers is not None:
                learn(small)
            found = self._run(small)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the user's code raises on smaller tensors is the finding
            suspects = frozenset() if small is None else self._suspects(error, small, plan, chosen)
            return Failed(f"pruned model fails: {in_words(error, small or self.copy)}", True, suspects)
        with masked(self.copy, plan), same_attributes(self.copy):
            expected = self._run(self.copy)
        error_ = max(distance(a, b) for a, b in zip(expected, found, strict=True))
        if self.numbers is not None and error_ <= self.tolerance:
            for number, passed in learned(small, plan).items():
                self.numbers[number] = max(self.numbers.get(number, Passed.RIGHT), passed)
        if error_ > self.tolerance:
            return Failed(f"pruned differs from masked by {error_:.1e}")
        if self.rebuild and (said := self._not_rebuilt(small, found)) and not self._not_rebuilt(self.copy):
            return Failed(said)
        if len(chosen) > 1 and _deaf(t for results in expected for t in results):
            return next(filter(None, (self.failure([group]) for group in groups)), None)  # each might show alone
        return None

    def _not_rebuilt(self, model: nn.Module, known: list[list[Tensor]] | None = None) -> str | None:
        """Why what its configuration builds does not give what the model gives; None if it does."""
        try:
            found = self._run(rebuilt(model))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            return f"a model that is built from it fails: {in_words(error, model)}"
        error_ = max(distance(a, b) for a, b in zip(known or self._run(model), found, strict=True))
        return f"a model that is built from it differs by {error_:.1e}" if error_ > self.tolerance else None

    def _suspects(self, error: Exception, small: nn.Module, plan: Plan, chosen: set[int]) -> frozenset[int]:
        """The groups that touch the innermost module in which the error was raised, of those that hold any."""
        renaming = Renaming(plan)
        for path in running(error, small):
            within = f"{renaming.before(path) or path}." if path else ""
            found = {g for g in chosen if any(a.axis.tensor.startswith(within) for a in self.units.groups[g].axes)}
            if found:
                return frozenset(found)
        return frozenset()


def _deaf(results: Iterable[Tensor]) -> bool:
    """Whether nothing of the inputs arrives in them, as behind a ReLU that lets nothing pass: all samples have the same
    results, or all places of a lone one. Nothing would show a wrong cut."""
    alike = [
        bool((t == (t[:1] if len(t) > 1 else t[..., :1])).all())
        for t in results
        if t.is_floating_point() and t.ndim and (len(t) > 1 or (t.ndim > 2 and t.shape[-1] > 1))
    ]
    return bool(alike) and all(alike)


def _usable(output: Tensor) -> bool:
    return output.numel() == 0 or bool(torch.isfinite(output).any() and not torch.isnan(output).any())


def _copy(model: nn.Module, double: bool) -> nn.Module:
    tensors = tensors_of(model)
    if double:
        tensors = [held for held in tensors if held.tensor.is_floating_point()]
        return copy_with(model, [(held, _double(held.tensor.detach(), copy=True)) for held in tensors]).eval()
    return copy_with(model, []).eval()


def _double(tensor: Tensor, copy: bool = False) -> Tensor:
    return tensor.to(torch.float64, copy=copy) if tensor.is_floating_point() else tensor


@contextmanager
def _own_random_state(model: nn.Module) -> Iterator[None]:
    devices = {held.tensor.device for held in tensors_of(model) if held.tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(device.index or 0 for device in devices)):
        yield
