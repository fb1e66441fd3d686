"""Run pruned against masked, and find the groups that no trace can vouch for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fairkern.compact.cutting import apply, copy_with
from fairkern.compact.descriptors import check, tensors_of
from fairkern.compact.mask import masked
from fairkern.compact.sites import learn, needless
from fairkern.deadline import NO_LIMIT, Deadline
from fairkern.errors import InputError
from fairkern.model.fused import one_by_one, running_as
from fairkern.model.nested import call_model, map_tensors
from fairkern.model.states import calls_of
from fairkern.model.untouched import forget, untouched, valueless
from fairkern.plans.build import build
from fairkern.plans.removals import NONE, about_half, nothing
from fairkern.prove.double import in_double
from fairkern.prove.inputs import distance, vary
from fairkern.prove.stir import calibrate, stir
from fairkern.types import IndexArray, UnitMap

# Relative error above which pruned and masked differ. Float64 carries 1e-15 per operation, a wrong cut shows
# at 1e-3 and more; the coarser types need room for reordered sums (and TF32) through a deep network.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}

_Made = TypeVar("_Made")


def difference(model: nn.Module, small: nn.Module, inputs: Any) -> float:
    """Relative error between the outputs of two models on `inputs` (tensor, tuple or mapping), without gradients.

    Models in float64 compute in float64 throughout, also where their code casts to a coarser type.
    The largest over all output tensors of `max|a − b| / max|a|`, in float64; outputs may be nested (tuples,
    named tuples, mappings, objects of any class); caches and states that the model returns for its next call are left
    out (`fairkern.model.states`). NaN, another shape or another number of tensors give inf.
    Raises InputError when the model returns no tensor.
    """
    with torch.no_grad():
        with untouched(model), in_double(model):
            expected = call_model(model, inputs)
            calls = calls_of(model, inputs, expected)
        with in_double(small):
            return distance(calls.results(expected), calls.results(call_model(small, inputs)))


def prove(
    model: nn.Module,
    units: UnitMap,
    inputs: Any,
    *,
    seed: int = 0,
    tolerance: float | None = None,
    needless_sites: set[tuple[str, int, int]] | None = None,
    together: bool = False,
    deadline: Deadline = NO_LIMIT,
) -> dict[int, str]:
    """Which prunable groups of `units` fail when they are cut: `{group index: reason}`, empty if all hold.

    About half of the units of every group are removed at random, and the pruned model is compared with the
    masked one on inputs other than `inputs` (see `vary`; `inputs` themselves where the model cannot use those).
    If all groups together fail, a search over growing sets finds the groups that fail on top of those that
    pass, so that a pair that fails only jointly loses one member; f failures among n groups take O(f · log n)
    runs. What remains has been run together and passed.

    Everything runs on one copy in eval mode, in float64 where the model allows it and else in its own dtypes,
    with no gradients. In the copy, constant parameters are replaced by random ones and normalisation statistics
    by those of its own activations, perturbed: the zeros and ones of a fresh model would hide wrong cuts.
    `model` and the global random generators stay as they are.

    `needless_sites`: a set that receives (module, call, place) of the map's size sites whose number is right
    without a substitution; without it every site is substituted.
    `together`: do not search; if all groups together fail, each has that reason.
    `tolerance` defaults to 1e-9 in float64, 1e-3 in float32, 5e-2 in half precision.

    Cost: a copy, a calibrating and two measured forward passes when nothing fails.
    Raises PlanMismatchError (`units` of another model), InputError (a model on the meta device, one that cannot
    be copied, no tensor in the output), TimeLimitError (`deadline`, checked between runs); what the model itself
    raises on `inputs` passes through.
    """
    check(model, build(units, nothing(units)))
    check_values(model)
    removed = about_half(units, seed)
    candidates = [i for i in units.prunable if removed[i].size]
    if not candidates:
        return {}
    with _own_random_state(model, seed), torch.no_grad():
        trial = _Trial(model, units, removed, inputs, seed, tolerance, needless_sites)

        def attempt(groups: Sequence[int]) -> str | None:
            deadline.check("proving groups")
            return trial.failure(groups)

        if together:
            reason = attempt(candidates)
            return {} if reason is None else dict.fromkeys(candidates, reason)
        return search(candidates, attempt)


def check_values(model: nn.Module) -> None:
    """InputError for a model with tensors on the meta device or fake ones: nothing can be proven on those."""
    without = next((held.names[0] for held in tensors_of(model) if valueless(held.tensor)), None)
    if without is not None:
        raise InputError(
            f"{without} has no values (it is on the meta device, or fake): groups cannot be proven, pass verify=False"
        )


def failure(
    model: nn.Module, units: UnitMap, removed: Sequence[IndexArray], inputs: Any, *, seed: int = 0
) -> str | None:
    """Why the model without these units is not the masked model, on inputs as `prove` makes them; None when it is.

    Cost and errors as of `prove` when nothing fails.
    """
    with _own_random_state(model, seed), torch.no_grad():
        trial = _Trial(model, units, removed, inputs, seed, None, None)
        return trial.failure(range(len(units.groups)))


def search(candidates: Sequence[int], failure: Callable[[Sequence[int]], str | None]) -> dict[int, str]:
    """The candidates that fail on top of those that pass, with what `failure(set)` said (None: the set passes).

    Grows a passing set from the front: the next failing prefix is found by galloping and bisection, and its
    last member is the culprit. Every step settles at least one candidate, whatever `failure` answers.
    """
    reason = failure(candidates)
    if reason is None:
        return {}
    nothing = failure(())
    if nothing is not None:
        return dict.fromkeys(candidates, f"with nothing removed: {nothing}")
    failed: dict[int, str] = {}
    passing: list[int] = []
    rest = list(candidates)
    step = max(1, len(rest) // 2)
    while rest:
        low, high = 0, len(rest) if reason is not None else 0  # passing + rest[:low] passes, + rest[:high] fails
        while high - low != 1:
            size = (low + high) // 2 if high else min(len(rest), low + step)
            said = failure(passing + rest[:size])
            if said is not None:
                high, reason = size, said
            else:
                low, step = size, step * 2
                if low == len(rest):
                    return failed
        failed[rest[low]] = str(reason)
        passing += rest[:low]
        rest, reason, step = rest[high:], None, max(1, low)
    return failed


class _Trial:
    """One copy of the model, ready to be cut in many ways and compared with itself masked."""

    def __init__(
        self,
        model: nn.Module,
        units: UnitMap,
        removed: Sequence[IndexArray],
        inputs: Any,
        seed: int,
        tolerance: float | None,
        needless_sites: set[tuple[str, int, int]] | None,
    ) -> None:
        self.needless_sites = needless_sites
        self.units, self.removed, self.seed = units, removed, seed
        sites = {s for g in units.groups for tap in g.taps if tap.side.of_experts for s in tap.sites}
        self._experts = {site.module: one_by_one for site in sites if site.module not in units.lists}
        own = [held.tensor.dtype for held in tensors_of(model) if held.tensor.is_floating_point()]
        coarsest = max(own, key=lambda dtype: TOLERANCES.get(dtype, 5e-2), default=torch.float64)
        self.copy, self.inputs = self._prepare(model, inputs)
        done_in = torch.float64 if self._double else coarsest
        self.tolerance = TOLERANCES.get(done_in, 5e-2) if tolerance is None else tolerance

    def _prepare(self, model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
        """The first of float64 and own dtypes, varied and given inputs, that the copy can run with."""
        problem: Exception | None = None
        for double in (True, False):
            self._double = double
            copy = _copy(model, double)
            for attempt in (vary(inputs, self.seed + 1), inputs):
                cast = map_tensors(attempt, _double) if double else attempt
                stir(copy, self.seed + 2)
                try:
                    with calibrate(copy, self.seed + 3):
                        output = self._call(copy, partial(call_model, copy, cast))
                    self.calls = self._call(copy, partial(calls_of, copy, cast, output))
                    results = self.calls.results(output) + self._onward(copy, cast)
                except Exception as error:
                    problem = error
                    continue
                problem = None
                if all(map(_usable, results)):
                    return copy, cast
        if problem is not None:
            raise problem
        return copy, cast

    def _run(self, model: nn.Module, inputs: Any) -> list[Tensor]:
        """The results of a call, and of what the model does on from there."""
        forget(model)
        output = self._call(model, partial(call_model, model, inputs))
        return self.calls.results(output) + self._onward(model, inputs)

    def _onward(self, model: nn.Module, inputs: Any) -> list[Tensor]:
        if not self.calls.step:
            return []
        forget(model)
        return self._call(model, partial(self.calls.onward, model, inputs))

    def _call(self, model: nn.Module, call: Callable[[], _Made]) -> _Made:
        torch.manual_seed(self.seed)  # the same for both sides; the caller's state is put back by `prove`
        with in_double(model), running_as(model, self._experts):  # their kernels know few types and sizes
            return call()

    def failure(self, groups: Sequence[int]) -> str | None:
        """Why the pruned copy is not the masked copy when these groups are cut; None when it is."""
        chosen = set(groups)
        plan = build(self.units, [r if i in chosen else NONE for i, r in enumerate(self.removed)])
        try:
            small = apply(self.copy, plan)
            if self.needless_sites is not None:
                learn(small)
            found = self._run(small, self.inputs)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the user's code raises on smaller tensors is the finding
            first = (str(error).strip().splitlines() or [""])[0]
            return f"pruned model fails: {type(error).__name__}: {first[:160]}"
        with masked(self.copy, plan):
            expected = self._run(self.copy, self.inputs)
        error_ = distance(expected, found)
        if self.needless_sites is not None and error_ <= self.tolerance:
            self.needless_sites |= needless(small, plan)
        return None if error_ <= self.tolerance else f"pruned differs from masked by {error_:.1e}"


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
def _own_random_state(model: nn.Module, seed: int) -> Iterator[None]:
    devices = {held.tensor.device for held in tensors_of(model) if held.tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(device.index or 0 for device in devices)):
        yield
