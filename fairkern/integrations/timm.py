"""timm's text of a pruned model (`timm/models/_pruned/*.txt`), out of a plan and into one.

The text is a shape for every tensor. `timm.models.adapt_model_from_string` makes of it, and of the unpruned model, a
model of these shapes: it builds every `Conv2d`, `BatchNorm2d` and `Linear` anew, and leaves all else as it was. So the
text says widths and not which positions go; and a cut that changes something else, or a model in which something is
lost when it is built anew, cannot be said in it. What can is told by that function itself, on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from fairkern import compact, options
from fairkern.allocate import Signal
from fairkern.allocate.signals import RANDOM, defaults, levels, name_of, read_signal
from fairkern.allocate.tod import removal_order
from fairkern.checks import check_model, check_plan, check_scores
from fairkern.compact.cutting import copy_with
from fairkern.compact.descriptors import check_pruned, tensors_of
from fairkern.errors import InputError
from fairkern.integrations.optimizers import Gained
from fairkern.model.attributes import read_attribute
from fairkern.plans.build import build
from fairkern.plans.removals import NONE, nothing
from fairkern.results import Plan
from fairkern.surroundings import stage
from fairkern.types import Axis, IndexArray, Scores, UnitMap
from fairkern.types import Plan as PlanData

try:
    from timm.layers import Linear
    from timm.models import adapt_model_from_string
except ImportError as error:
    raise ImportError(
        f"fairkern.integrations.timm needs timm, which could not be imported ({error}): pip install timm", name="timm"
    ) from error

__all__ = ["from_text", "to_text"]

_BUILT = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)  # what timm's reader builds anew
_SHOWN = 3  # reasons


@stage
def to_text(model: nn.Module, plan: PlanData, *, small: nn.Module | None = None) -> str:
    """The text from which `timm.models.adapt_model_from_string(model, text)` makes a model of the plan's shapes.

    It takes the weights of the cut model by `load_state_dict`, and then gives what that gives.

    Args:
        model: the unpruned model; it may be on the meta device.
        plan: what goes.
        small: the cut model whose weights are meant, to be looked at for biases that compensation added.

    Raises InputError, with the reasons, where timm's reader would make another model than the cut one: grouped
    convolutions that are not depthwise, layers of subclasses, outputs of linear layers, norms of other kinds, modules
    that go whole, sizes that code passes on; and where `small` has biases that `model` lacks (`biases=False` keeps
    them away). PlanMismatchError where the plan is for another model.
    Cost: milliseconds a layer; no values are read.
    """
    check_model(model)
    check_plan(plan)
    compact.check(model, plan)
    if small is not None:
        options.instance("small", small, nn.Module, options.MODEL)
        check_pruned(small, plan)
        if added := Gained.of(small, plan).biases:
            raise InputError(
                f"timm's format has no place for biases that the model lacks, and compensation added "
                f"{options.several(list(added))}: compensate with biases=False"
            )
    empty = _empty(model)
    cut = compact.apply(empty, plan)
    text = "***".join(f"{name}:{list(tensor.shape)}" for name, tensor in cut.state_dict().items())
    if reasons := [*_not_said(empty, plan, text, cut)]:
        raise InputError(f"timm's format cannot say this cut: {_several(reasons)}")
    return text


@stage
def from_text(
    model: nn.Module,
    units: UnitMap,
    text: str,
    *,
    scores: Scores | None = None,
    removal: Signal | None = None,
    seed: int = 0,
) -> Plan:
    """A plan that leaves the widths of timm's text; which units go is decided by scores, or drawn.

    Args:
        model: the unpruned model, as timm makes it (`timm.create_model("efficientnet_b1")`).
        units: from `trace` of it.
        text: as in `timm/models/_pruned/`.
        scores: of these units; those with the lowest removal signal go. None: they are drawn.
        removal: the signal; None takes the best that the scores have, as in `Scores.plan`.
        seed: of what is drawn.

    Raises InputError for what is no such text, or one of another model; and, with the reasons, where the widths would
    take positions that cannot go (of a group that is frozen, since something runs over its channels).
    """
    check_model(model)
    options.instance("units", units, UnitMap, options.UNITS)
    check_scores(scores)
    options.instance("text", text, str, "timm's text: names and shapes with *** between them")
    compact.check(model, build(units, nothing(units)))
    empty = _empty(model)
    counts = _counts(units, {name: tuple(t.shape) for name, t in _adapted(empty, text).state_dict().items()})
    known = Scores(units, {}, {}, {"seed": options.seed(seed)}) if scores is None else scores
    signal = (
        removal if removal is not None else RANDOM if scores is None else defaults(known, "uniform", None, False)[1]
    )
    ranked = levels(signal, read_signal(known, "removal", signal))
    removed: list[IndexArray] = []
    for g, count in enumerate(counts):
        if count and g not in ranked:
            raise InputError(f"the text takes {count} units of {units.groups[g].name}, which have no {signal!r} score")
        removed.append(removal_order(ranked[g])[..., :count] if count else NONE)
    plan = build(units, removed, {"removal": name_of(signal), "shapes": "timm"})
    if reasons := [*_not_said(empty, plan, text, compact.apply(empty, plan))]:
        raise InputError(
            f"no plan for this {type(model).__name__} leaves what timm makes of the text: {_several(reasons)}"
        )
    return Plan.of(plan)


def _empty(model: nn.Module) -> nn.Module:
    """A copy on the meta device."""
    return copy_with(model, [(held, held.tensor.detach().to("meta")) for held in tensors_of(model)])


def _adapted(empty: nn.Module, text: str) -> nn.Module:
    """What timm makes of the text."""
    try:
        return adapt_model_from_string(empty, text)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        what = f"it says nothing of {error.args[0]}" if isinstance(error, KeyError) else f"{error}"
        raise InputError(f"timm can make no model of this text and a {type(empty).__name__}: {what}") from None


def _not_said(empty: nn.Module, plan: PlanData, text: str, cut: nn.Module) -> Iterator[str]:
    """Why what timm makes of a text is not the cut model."""
    whole = [*plan.lists, *plan.branches]
    if whole:
        yield f"modules of {whole[0]} go whole, and the format has shapes alone"
        return
    bare = [n for n, m in empty.named_modules() if isinstance(m, _BUILT) and m._parameters.get("weight") is None]
    if bare:
        yield f"{bare[0]} has no weight, whose shape timm's reader asks for"
        return
    for site in plan.sites:
        yield f"the code of {site.module} passes on a size, {site.before}, that the cut changes"
    for replacement in plan.replacements:
        yield f"{replacement.module} runs other code once it is cut"
    made = dict(_adapted(empty, text).named_modules())
    for name, module in cut.named_modules():
        theirs = made[name]
        if isinstance(module, _BUILT):
            yield from (f"{name} {what}" for what in _lost(module, theirs))
        found = _shapes(theirs)
        yield from (
            f"{name}.{last} has shape {shape} once it is cut, and timm's reader makes {found.get(last)}"
            for last, shape in _shapes(module).items()
            if found.get(last) != shape
        )
    for change in plan.attributes:
        if isinstance(made[change.module], _BUILT):
            continue  # compared already
        value = read_attribute(made[change.module], change.attribute)
        if value != change.after:
            where = f"{change.module}.{change.attribute}".lstrip(".")
            yield f"{where} is {change.after} once it is cut, and timm's reader leaves {value}"


def _lost(module: nn.Module, theirs: nn.Module) -> Iterator[str]:
    """What differs of a layer that timm's reader has built anew, shapes aside."""
    mine = type(module)
    if type(theirs) is not mine and not (mine is nn.Linear and type(theirs) is Linear):
        yield f"is a {mine.__name__}, and timm's reader makes a {type(theirs).__name__} of it"
        return
    for key, value in vars(module).items():
        plain = isinstance(value, (int, float, str, tuple, type(None))) and key != "training"
        if plain and not key.startswith("_") and vars(theirs).get(key) != value:
            yield f"has {key}={value!r}, and timm's reader makes it {vars(theirs).get(key)!r}"


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of the tensors that a module holds itself."""
    held = {**module._parameters, **module._buffers}
    return {name: tuple(tensor.shape) for name, tensor in held.items() if tensor is not None}


def _several(reasons: list[str]) -> str:
    more = len(reasons) - _SHOWN
    return "; ".join(reasons[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _counts(units: UnitMap, shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """How many units each group has to lose so that tensors have these shapes.

    Every axis says a sum over the groups that lie on it; those of which one is unknown are solved first.
    """
    parts: dict[Axis, dict[int, int]] = {}
    for g in units.prunable:
        for held in units.groups[g].axes:
            parts.setdefault(held.axis, {})[g] = held.positions.shape[-1]
    lengths = {axis: units.shapes[axis.tensor][axis.dim] for axis in parts if axis.tensor in shapes}
    left = {axis: length - shapes[axis.tensor][axis.dim] for axis, length in lengths.items()}
    counts: dict[int, int] = {}
    while True:
        known = dict(counts)
        for axis, gone in left.items():
            unknown = [g for g in parts[axis] if g not in counts]
            if len(unknown) == 1:
                rest = gone - sum(counts[g] * per for g, per in parts[axis].items() if g in counts)
                number, remainder = divmod(rest, parts[axis][unknown[0]])
                _check_count(units, axis, unknown[0], number, remainder, shapes)
                counts[unknown[0]] = number
        if counts == known:
            break
    open_ = [units.groups[g].name for g in units.prunable if g not in counts]
    if open_:
        raise InputError(f"the text does not say how many units of {options.several(open_)} stay")
    frozen = {axis.axis: axis.reason for axis in units.frozen}
    frozen |= {held.axis: group.frozen for group in units.groups if group.frozen for held in group.axes}
    for name, shape in units.shapes.items():
        for dim, length in enumerate(shape):
            axis = Axis(name, dim)
            expected = length - sum(counts[g] * per for g, per in parts.get(axis, {}).items())
            given = shapes[name][dim] if name in shapes and dim < len(shapes[name]) else expected
            if given != expected:
                why = f": {frozen[axis]}" if axis in frozen else ""
                raise InputError(
                    f"the text leaves {given} positions of {axis}, where a plan can leave {expected} with the rest of "
                    f"what it says{why}"
                )
    return [counts.get(g, 0) for g in range(len(units.groups))]


def _check_count(
    units: UnitMap, axis: Axis, g: int, number: int, remainder: int, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    group = units.groups[g]
    stays = shapes[axis.tensor][axis.dim]
    if remainder or number < 0:
        raise InputError(
            f"the text leaves {stays} positions of {axis}, which are no whole number of the {group.units} units of "
            f"{group.name}"
        )
    if group.units - number < group.least:
        raise InputError(f"the text leaves {group.units - number} units of {group.name}; {group.least} have to stay")
