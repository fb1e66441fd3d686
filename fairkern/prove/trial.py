"""Run pruned against masked, and find the groups that no trace can vouch for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fairkern.compact.applying import apply
from fairkern.compact.descriptors import check, tensors_of
from fairkern.compact.mask import masked
from fairkern.compact.sites import learn, learned
from fairkern.deadline import NO_LIMIT, Deadline
from fairkern.errors import InputError
from fairkern.model.caches import calls_of
from fairkern.model.fused import running_as
from fairkern.model.nested import call_model
from fairkern.model.process import seed_torch
from fairkern.model.raised import in_words, running
from fairkern.model.tensors import held_tensors
from fairkern.model.untouched import forget, same_attributes, untouched, valueless
from fairkern.plans.build import build
from fairkern.plans.removals import NONE, about_half, nothing
from fairkern.plans.renaming import Renaming
from fairkern.prove.double import Double, in_double
from fairkern.prove.inputs import distance
from fairkern.prove.prepared import Prepared, deaf, experts_of, own_random_state, prepare
from fairkern.prove.rebuilt import rebuilt
from fairkern.prove.search import Failed, search
from fairkern.prove.states import State
from fairkern.types import IndexArray, Passed, Plan, SiteNumber, UnitMap

_Made = TypeVar("_Made")
_AT_ONCE = 2**20  # numbers that are looked at in one go


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
    removed: Sequence[IndexArray] | None = None,
    deadline: Deadline = NO_LIMIT,
) -> dict[int, Failed]:
    """What `prove` says, with what is known of where it failed.

    `prepared`: the copy, from an earlier proof of this model on these inputs with this seed. `doubtful`: the groups
    that may fail, the others having passed together; `said`: how all groups together fail, where that is known.
    `most`: as many failing groups are too many; no others are looked for. `removed`: other units than half of all.
    """
    check(model, build(units, nothing(units)))
    check_values(model)
    removed = about_half(units, seed) if removed is None else removed
    candidates = [i for i in units.prunable if removed[i].size]
    if not candidates:
        return {}
    with own_random_state(model), torch.no_grad():
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
    if not any(valueless(tensor) or is_lazy(tensor) for tensor in held_tensors(model)):
        return
    without = next((held.names[0] for held in tensors_of(model) if valueless(held.tensor)), None)
    if without is not None:
        raise InputError(f"{without} has no values (it is on the meta device, or fake): {instead}")


def not_finite(model: nn.Module) -> list[str]:
    """Names of parameters that hold NaN or Inf; those without values hold none. Cost: one pass over the weights."""
    real = ((name, p.detach()) for name, p in model.named_parameters() if p.is_floating_point() and not valueless(p))
    real = ((name, p.float() if p.element_size() == 1 else p) for name, p in real)  # torch cannot ask float8
    return [name for name, p in real if not all(map(_finite, p.reshape(-1).split(_AT_ONCE)))]


def _finite(values: Tensor) -> bool:
    """By their sum, which nothing can make finite again; one by one only where that overflows."""
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    return bool(torch.isfinite(values.sum(dtype=wide))) or bool(torch.isfinite(values).all())


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
    with own_random_state(model), torch.no_grad():
        trial = _Trial(prepared or prepare(model, units, inputs, seed), units, removed, None, numbers, rebuild)
        failed = trial.failure(range(len(units.groups)))
        return None if failed is None else failed.reason


def unheard(model: nn.Module, units: UnitMap, runs: Iterable[Any], *, seed: int) -> set[int]:
    """Prunable groups of which half can be silenced and no result of any run changes: nothing shows there.

    Cost: a copy for every run, and a forward pass for every group.
    """
    removed, silent = about_half(units, seed), set(units.prunable)
    for inputs in runs:
        with own_random_state(model), torch.no_grad():
            trial = _Trial(prepare(model, units, inputs, seed), units, removed, None, None)
            silent -= {g for g in sorted(silent) if trial.heard(g)}
    return silent


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
        self._experts = experts_of(units)

    def _run(self, model: nn.Module, plan: Plan | None = None) -> list[list[Tensor]]:
        """The results of a call in every state, and of what the model does on from there; of one cut by this plan."""
        renaming = None if plan is None else Renaming(plan)
        experts = {
            after: how
            for path, how in self._experts.items()
            if (after := path if renaming is None else renaming.after(path)) is not None
        }
        calls = self.prepared.calls
        results: list[list[Tensor]] = []
        onward: list[Tensor] = []
        for state in self.prepared.states:
            forget(model)
            output = self._call(model, state, experts, partial(call_model, model, self.inputs))
            results.append(calls.results(output))
            if calls.goes_on and not onward:
                if calls.loop:
                    forget(model)
                onward = self._call(model, state, experts, partial(calls.onward, model, self.inputs, output))
        return [*results, onward] if calls.goes_on else results

    def _call(self, model: nn.Module, state: State, experts: Mapping[str, Any], call: Callable[[], _Made]) -> _Made:
        seed_torch(self.prepared.seed)  # the same for both sides; the caller's state is put back by `prove`
        with state(), Double() if self.prepared.lifted else nullcontext(), running_as(model, experts):
            return call()

    def failure(self, groups: Sequence[int]) -> Failed | None:
        """Why the pruned copy is not the masked copy when these groups are cut; None when it is, in every state."""
        chosen = set(groups)
        plan = build(self.units, [r if i in chosen else NONE for i, r in enumerate(self.removed)])
        small: nn.Module | None = None
        try:
            small = apply(self.copy, plan, sharing=self.prepared.sharing)
            if self.numbers is not None:
                learn(small)
            found = self._run(small, plan)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the user's code raises on smaller tensors is the finding
            suspects = frozenset() if small is None else self._suspects(error, small, plan, chosen)
            return Failed(f"pruned model fails: {in_words(error, small or self.copy)}", True, suspects)
        silenced = masked(self.copy, plan, strict=False, origins=self.prepared.origins)  # it has just been cut by it
        with silenced, same_attributes(self.copy):
            expected = self._run(self.copy)
        error_ = max(distance(a, b) for a, b in zip(expected, found, strict=True))
        if self.numbers is not None and error_ <= self.tolerance:
            for number, passed in learned(small, plan).items():
                self.numbers[number] = max(self.numbers.get(number, Passed.RIGHT), passed)
        if error_ > self.tolerance:
            return Failed(f"pruned differs from masked by {error_:.1e}")
        silent = len(chosen) > 1 and self.prepared.heard and deaf(t for results in expected for t in results)
        del expected  # logits are large
        if self.rebuild and (said := self._not_rebuilt(small, found)) and not self._not_rebuilt(self.copy):
            return Failed(said)
        if silent:  # what goes with fewer might show
            middle = len(groups) // 2
            return self.failure(groups[:middle]) or self.failure(groups[middle:])
        return None

    def heard(self, group: int) -> bool:
        """Whether any result changes where units of this group are silenced."""
        plan = build(self.units, [r if g == group else NONE for g, r in enumerate(self.removed)])
        expected = self._run(self.copy)
        with masked(self.copy, plan, origins=self.prepared.origins), same_attributes(self.copy):
            found = self._run(self.copy)
        return any(distance(a, b) > 0 for a, b in zip(expected, found, strict=True))

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
