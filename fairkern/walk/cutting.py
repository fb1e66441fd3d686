"""The last walk: segment after segment is compensated on what arrives there, cut, and handed over to be written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.compact.applying import apply
from fairkern.compact.cutting import gather_dense
from fairkern.compact.descriptors import Index, kept
from fairkern.compact.mask import masked
from fairkern.compensate.correction import Correction
from fairkern.compensate.fit import Compensation
from fairkern.compensate.intercepts import Flag, Places
from fairkern.compensate.one_shot import Case, check_means, decided, solved
from fairkern.compensate.refit import refit, whole_cut
from fairkern.errors import InputError
from fairkern.model.autocast import without_autocast
from fairkern.model.fused import running_as
from fairkern.model.linear import made_dim
from fairkern.plans.renaming import Renaming
from fairkern.prove.inputs import distance
from fairkern.prove.prepared import experts_of, tolerance_of
from fairkern.types import Axis, Plan, Scores
from fairkern.walk.chain import INSTEAD
from fairkern.walk.segments import part_of
from fairkern.walk.sides import Sides, Way, used

Write = Callable[[nn.Module, Plan], None]
Heard = Callable[[Way, int, Any], None]


@dataclass(frozen=True)
class Intercepts:
    """Which weights get a bias that have none, known from shapes alone. `given`: the consumers into whose bias an
    intercept goes; `flags`: fields of the configuration that are set for them; `unplaced`: biases without a field;
    `rule`: by what it was decided, None where nothing is compensated."""

    given: tuple[Axis, ...] = ()
    flags: tuple[Flag, ...] = ()
    unplaced: tuple[str, ...] = ()
    rule: str | None = None


def intercepts(model: nn.Module, plan: Plan, scores: Scores, method: Compensation, places: Places) -> Intercepts:
    """Of a whole model, which may lie on meta. Raises InputError as `corrections` does for means."""
    if method is Compensation.NONE:
        return Intercepts()
    cases = decided(model, plan, scores, _one_shot(method), places.why_not)
    check_means(cases, _one_shot(method), places)
    given = tuple(case.item.axis for case in cases if case.gives_bias)
    flags = places.flags(given)
    return Intercepts(given, flags, places.unplaced(given, flags), places.rule)


def cut_segments(
    sides: Sides,
    plan: Plan,
    scores: Scores,
    method: Compensation,
    places: Places,
    write: Write,
    heard: Heard | None = None,
) -> list[Correction]:
    """Compensates and cuts a model segment by segment, and what is outside of them last. As soon as one is done `write`
    is given it in full size, with what goes ignored, and its part of the plan: `left_of` has what is left.

    One segment is there at a time, in full size, beside a copy that shares what does not change. It is compensated as a
    model of its own on what arrives there, on either way (`refit`); what it then computes goes to the next segment.
    `scores.moments` are read tap by tap. `heard`: given what the model returns for every batch that is not of the first
    traversal, on both ways.

    Returns the one-shot corrections, whose weights have no values any more. Biases that flags of the configuration
    bring without being needed are not written.

    Raises InputError for a plan that cuts what runs before the segments, or branches, and for joint compensation.
    """
    _check(sides, plan, method)
    steps = [(k, sides.division.groups[k]) for k in range(len(sides.division.segments))]
    found: list[Correction] = []
    with torch.no_grad(), without_autocast():
        for k, groups in steps:
            with sides.segment(k) as segment, used(segment):
                own = [block.path for block in sides.division.segments[k]]
                part = _Part(segment, plan_within(plan, own), _scores(scores, groups), method, places)
                held_out = len(sides.first.known)
                through = [n for n in sides.numbers if method.compares or n == 0 or n >= held_out]  # 0: to check by
                sides.run(segment, k, Way.UNCUT, through)

                def finish(changed: nn.Module, k: int = k, through: Sequence[int] = through) -> None:
                    sides.run(changed, k, Way.CUT, through)

                found += part.cut(sides, finish, write)
            sides.drop(k)
        with sides.outside() as outside, used(outside):
            own = [block.path for block in sides.first.blocks]
            part = _Part(outside, plan_without(plan, own), _scores(scores, sides.division.behind), method, places)
            beside = [n for n in sides.numbers if n >= len(sides.first.known)]

            def listen(way: Way, model: nn.Module) -> None:
                for number, output in sides.outputs(model, way, beside if heard else ()):
                    assert heard is not None
                    heard(way, number - len(sides.first.known), output)

            listen(Way.UNCUT, outside)
            found += part.cut(sides, lambda changed: listen(Way.CUT, changed), write)
        sides.drop(len(steps))
    return found


@dataclass(frozen=True)
class _Part:
    """A segment, or what is outside of all: a model of its own, with its part of the plan and of the scores."""

    model: nn.Module
    plan: Plan
    scores: Scores
    method: Compensation
    places: Places

    def cut(self, sides: Sides, finish: Callable[[nn.Module], None], write: Write) -> list[Correction]:
        """`finish` is called with what computes as the cut part does."""
        self._check(sides)
        cases: Sequence[Case] = []
        if self.method is not Compensation.NONE:
            cases = decided(self.model, self.plan, self.scores, _one_shot(self.method), self.places.why_not)
        found = solved(self.model, cases, self.scores, _one_shot(self.method))

        def hand_over(changed: nn.Module) -> None:
            with used(changed):
                finish(changed)
            write(changed, self.plan)

        if self.method.compares:
            given = [sides.loader(way) for way in Way]
            refit(self.model, self.plan, self.scores, found, given[Way.UNCUT], now=given[Way.CUT], finish=hand_over)
        else:
            with whole_cut(self.model, self.plan, found) as changed:
                hand_over(changed)
        return [_without_values(correction) for correction in found]

    def _check(self, sides: Sides) -> None:
        """Raises InputError where what is cut does not give what is masked, on the first batch: the map of a model
        without values was proven on a smaller one, which may not go where a block goes at its own size."""
        if not any(item.removed.size for item in self.plan.axes):
            return
        experts = experts_of(self.scores.units)
        with masked(self.model, self.plan, strict=False), running_as(self.model, experts):
            ((_, expected),) = sides.outputs(self.model, Way.UNCUT, [0])
        small = apply(self.model, self.plan)
        with used(small), running_as(small, experts):
            ((_, found),) = sides.outputs(small, Way.UNCUT, [0])
        apart = distance(expected, found)
        if apart > tolerance_of(self.model.parameters()):
            cut = next(item.axis.module for item in self.plan.axes if item.removed.size)
            raise InputError(
                f"what is left of {cut} and what is cut with it differs from the same masked, by {apart:.1e}: its code "
                "goes by sizes; prune the model as a whole, where that is seen before anything is cut"
            )


def left_of(tensors: Mapping[str, Tensor], changed: nn.Module, plan: Plan) -> Iterator[tuple[str, Tensor]]:
    """What stays of tensors of a copy in full size, each by the name that it has in the cut model."""
    cuts, renaming = kept(plan), Renaming(plan)
    for name, tensor in tensors.items():
        after = renaming.after(name)
        if after is None:
            continue
        index = cuts.get(name, {}) if name in plan.shapes else _of_bias(changed, name, cuts)
        yield after, gather_dense([(tensor, index)], "auto")[0] if index else tensor


def _of_bias(changed: nn.Module, name: str, cuts: Mapping[str, Index]) -> Index:
    """Of a bias that compensation added: what is left of the outputs of its weight."""
    path = name.rpartition(".")[0]
    out = made_dim(changed.get_submodule(path))
    index = cuts.get(f"{path}.weight", {})
    return {0: index[out]} if out in index else {}


def plan_within(plan: Plan, paths: Sequence[str]) -> Plan:
    """The part of a plan that lies in these modules."""
    return _part(plan, lambda name: _lies_in(name, paths))


def plan_without(plan: Plan, paths: Sequence[str]) -> Plan:
    """The part that lies outside of them."""
    return _part(plan, lambda name: not _lies_in(name, paths))


def _lies_in(name: str, paths: Sequence[str]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def _part(plan: Plan, holds: Callable[[str], bool]) -> Plan:
    return replace(
        plan,
        groups=(),
        axes=tuple(item for item in plan.axes if holds(item.axis.tensor)),
        attributes=tuple(change for change in plan.attributes if holds(change.module)),
        shapes={name: shape for name, shape in plan.shapes.items() if holds(name)},
        sites=tuple(site for site in plan.sites if holds(site.module)),
        replacements=tuple(item for item in plan.replacements if holds(item.module)),
        config=(),
        lists={path: names for path, names in plan.lists.items() if holds(path)},
        seen={path: calls for path, calls in plan.seen.items() if holds(path)},
    )


def _scores(scores: Scores, groups: Sequence[int]) -> Scores:
    return replace(scores, units=part_of(scores.units, groups), signals={})


def _one_shot(method: Compensation) -> Compensation:
    """What a method starts from."""
    return Compensation.LEAST_SQUARES if method.compares else method


def _without_values(correction: Correction) -> Correction:
    if correction.weight is None:
        return correction
    empty = torch.empty(correction.weight.shape, dtype=correction.weight.dtype, device="meta")
    return replace(correction, weight=empty, bias=None)


def _check(sides: Sides, plan: Plan, method: Compensation) -> None:
    if method is Compensation.JOINT:
        raise InputError(f"compensate='joint' changes all layers together, and here one is there at a time; {INSTEAD}")
    if plan.branches or plan.rows:
        raise InputError(f"the plan removes branches or whole blocks, which lie in many segments; {INSTEAD}")
    ahead = {sides.first.units.groups[g].name for g in sides.division.before}
    gone = next((group.name for group in plan.groups if group.name in ahead and group.removed.size), None)
    if gone is not None:
        raise InputError(f"the plan cuts {gone}, which runs before the blocks that are walked by; {INSTEAD}")
