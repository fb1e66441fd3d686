"""What a plan does to each tensor: one descriptor per parameter or buffer, several dimensions at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fairkern.compact.config import config_value
from fairkern.errors import InputError, PlanMismatchError
from fairkern.model.attributes import read_attribute
from fairkern.model.filled import filled_buffers
from fairkern.model.linear import adds_bias
from fairkern.model.replacements import misfit
from fairkern.plans.renaming import Renaming, cut_lists
from fairkern.types import Axis, Plan, PlanAxis, Silence

Index = dict[int, Tensor]  # dim → int64 [positions], or a row of them per position of dimension 0; ascending


@dataclass(frozen=True)
class Held:
    """One tensor object of a model and every name that leads to it (tied tensors have several)."""

    tensor: Tensor
    names: tuple[str, ...]

    def places(self, model: nn.Module) -> list[tuple[nn.Module, str]]:
        """The modules that hold it, and its names in them."""
        return [(model.get_submodule(path), last) for path, _, last in (name.rpartition(".") for name in self.names)]


def tensors_of(model: nn.Module) -> list[Held]:
    """Every parameter and buffer of `model`, non-persistent buffers included, each tensor object once. Buffers that a
    forward pass fills are none of them.

    Raises InputError for a lazy module that has not run yet.
    """
    return _held(list(model.named_modules(remove_duplicate=False)))


def _held(modules: Sequence[tuple[str, nn.Module]]) -> list[Held]:
    """`tensors_of`, of all modules by every name that they have."""
    found: dict[int, tuple[Tensor, list[str]]] = {}
    filled = {id(module._buffers[name]) for module, name in filled_buffers(module for _, module in modules)}
    for kind in ("_parameters", "_buffers"):
        for path, module in modules:
            for name, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in filled:
                    found.setdefault(id(tensor), (tensor, []))[1].append(f"{path}.{name}" if path else name)
    for tensor, names in found.values():
        if is_lazy(tensor):
            raise InputError(f"{names[0]} has no shape yet: run the lazy module once before pruning the model")
    return [Held(tensor, tuple(names)) for tensor, names in found.values()]


def kept(plan: Plan) -> dict[str, Index]:
    """The positions that stay, for every tensor that the plan cuts: `{name: {dim: int64 [kept]}}`, on the CPU.

    Axes of one length that lose the same have one index. Raises PlanMismatchError where the plan contradicts itself: an
    axis outside `plan.shapes`, positions outside the axis, unsorted or repeated, or an axis of which nothing stays.
    """
    indices: dict[str, Index] = {}
    known: dict[tuple[int, int], Tensor] = {}
    merged = _removed(plan, plan.axes)  # axes that lose the same have one array there
    for (name, dim), removed in merged.items():
        if name in plan.lists or name in plan.branches:
            continue
        length = plan.shapes[name][dim]
        places = known.get((id(removed), length))
        if places is None:
            stays = np.ones((*removed.shape[:-1], length), dtype=bool)
            if removed.ndim == 1:
                stays[removed] = False
            else:
                np.put_along_axis(stays, removed, False, axis=-1)
            found = stays.nonzero()[-1]
            if not len(found):
                raise PlanMismatchError(f"the plan removes all {length} positions of {name} dim {dim}: one has to stay")
            places = known[id(removed), length] = torch.from_numpy(found.reshape(*removed.shape[:-1], -1))
        indices.setdefault(name, {})[dim] = places
    return indices


def silenced(plan: Plan, how: Silence) -> dict[str, Index]:
    """The positions that `masked` silences in this way: `{name: {dim: int64 [removed]}}`, on the CPU."""
    indices: dict[str, Index] = {}
    for (name, dim), removed in _removed(plan, (axis for axis in plan.axes if axis.silence is how)).items():
        indices.setdefault(name, {})[dim] = torch.from_numpy(removed)
    return indices


def shapes_after(plan: Plan) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor once the plan has been applied, by the name that it has then."""
    return _renamed(shapes_left(plan), Renaming(plan))


def shapes_left(plan: Plan) -> dict[str, tuple[int, ...]]:
    """The same by the name that a tensor had, with those that go whole as they were."""
    return _left(plan, kept(plan))


def _left(plan: Plan, staying: Mapping[str, Index]) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(shape) for name, shape in plan.shapes.items()}
    for name, index in staying.items():
        shape = list(shapes[name])
        for dim, positions in index.items():
            shape[dim] = positions.shape[-1]
        shapes[name] = tuple(shape)
    return shapes


def _renamed(shapes: Mapping[str, tuple[int, ...]], renaming: Renaming) -> dict[str, tuple[int, ...]]:
    left = ((renaming.after(name), shape) for name, shape in shapes.items())
    return {name: shape for name, shape in left if name is not None}


def match(model: nn.Module, indices: dict[str, Index]) -> list[tuple[Held, Index]]:
    """The tensors of `model` that `indices` names, each with its descriptor; a tied tensor comes once.

    Raises PlanMismatchError when two names of one tensor ask for different positions.
    """
    return _matched(tensors_of(model), indices) if indices else []


def _matched(tensors: Iterable[Held], indices: dict[str, Index]) -> list[tuple[Held, Index]]:
    matched = []
    for held in tensors:
        merged: Index = {}
        for name in held.names:
            for dim, positions in indices.get(name, {}).items():
                if dim in merged and not torch.equal(merged[dim], positions):
                    raise PlanMismatchError(
                        f"{' and '.join(held.names)} are one tensor here, the plan cuts dim {dim} in two ways"
                    )
                merged[dim] = positions
        if merged:
            matched.append((held, merged))
    return matched


def check(model: nn.Module, plan: Plan) -> None:
    """Whether `plan` was made for a model like this one; reads names, shapes and attributes, no values.

    Every parameter and buffer of `model` has to be in `plan.shapes` with its shape (a tied tensor under one
    of its names at least), nothing else may be there, and every attribute has to hold what the plan found.
    Raises PlanMismatchError naming the first axis that differs.
    """
    _checked(model, plan)


def cuts(model: nn.Module, plan: Plan) -> tuple[list[tuple[Held, Index]], dict[str, Index]]:
    """The tensors that `plan` cuts, each with the positions that stay, and `kept(plan)`; checks as `check` does."""
    held, staying = _checked(model, plan)
    return _matched(held, staying), staying


def _checked(model: nn.Module, plan: Plan) -> tuple[list[Held], dict[str, Index]]:
    modules = dict(model.named_modules(remove_duplicate=False))
    held = _held(list(modules.items()))
    known = {name for item in held for name in item.names}
    absent = next((name for name in plan.shapes if name not in known), None)
    if absent is not None:
        raise PlanMismatchError(
            f"the plan was made for {plan.model} with a tensor {absent} of shape {tuple(plan.shapes[absent])}; "
            f"this {type(model).__name__} has none: trace this model and plan again"
        )
    for item in held:
        names = [name for name in item.names if name in plan.shapes]
        if not names:
            raise PlanMismatchError(
                f"this {type(model).__name__} has a tensor {item.names[0]} of shape {tuple(item.tensor.shape)} "
                f"that the plan, made for {plan.model}, does not know: trace this model and plan again"
            )
        for name in names:
            _check_shape(name, tuple(item.tensor.shape), model, plan)
    staying = kept(plan)
    _check_lists(model, plan)
    for change in plan.attributes:
        try:
            module = modules[change.module] if change.module in modules else model.get_submodule(change.module)
        except AttributeError:
            raise PlanMismatchError(f"the plan changes {change.module}.{change.attribute}: no such module") from None
        found = read_attribute(module, change.attribute)
        if found != change.before:
            where = f"{change.module}.{change.attribute}".lstrip(".")
            raise PlanMismatchError(f"{where} is {found!r} here, the plan expects {change.before}")
    for field in plan.config:
        value = config_value(vars(model).get("config"), field)
        if value != field.before:
            raise PlanMismatchError(f"config.{field.name} is {value!r} here, the plan expects {field.before}")
    for part in (part for found in plan.branches.values() for branch in found for part in branch.parts):
        if part.module not in modules:
            raise PlanMismatchError(f"the plan removes branches, {part.module} in one of them: no such module")
    for rows in plan.rows:
        value = read_attribute(model.get_submodule(rows.module), rows.attribute)
        if not isinstance(value, (list, tuple)) or len(value) != rows.rows:
            where = f"{rows.module}.{rows.attribute}".lstrip(".")
            raise PlanMismatchError(f"{where} is {value!r} here, the plan expects {rows.rows} entries")
    for site in plan.sites:
        if site.module not in modules:
            raise PlanMismatchError(f"the plan changes sizes that {site.module} passes on: no such module")
    for replacement in plan.replacements:
        found = modules.get(replacement.module)
        expected = misfit(found, replacement.name)
        if expected is not None:
            raise PlanMismatchError(
                f"{replacement.module} is a {type(found).__name__} here, the plan expects {expected}"
            )
    return held, staying


def _check_lists(model: nn.Module, plan: Plan) -> None:
    modules = dict(model.named_modules()) if plan.lists else {}
    for path, names in plan.lists.items():
        found = tuple(modules[path]._modules) if path in modules else None
        if found != names:
            here = "not there" if found is None else f"one of {len(found)}"
            raise PlanMismatchError(f"the plan removes modules from {path}, a list of {len(names)}; it is {here}")
    for cut in cut_lists(plan):
        if not cut.stays:
            raise PlanMismatchError(f"the plan removes all {len(cut.names)} modules of {cut.path}: one has to stay")


def may_be_added(model: nn.Module, name: str, plan: Plan, before: str | None = None) -> bool:
    """Whether `name` is the bias of a module that the plan's model had without one, under the name `before`."""
    before = name if before is None else before
    path, _, last = before.rpartition(".")
    if last != "bias" or before in plan.shapes or (f"{path}.weight" if path else "weight") not in plan.shapes:
        return False
    return adds_bias(model.get_submodule(name.rpartition(".")[0]))


def check_pruned(small: nn.Module, plan: Plan, staying: Mapping[str, Index] | None = None) -> None:
    """Whether `small` has the shapes that `plan` leaves; biases that compensation added may be there too.

    `staying`: what `kept` gives, where it is known. Raises PlanMismatchError naming the first that differs.
    """
    renaming = Renaming(plan)
    expected = _renamed(_left(plan, kept(plan) if staying is None else staying), renaming)
    held = tensors_of(small)
    known = {name for item in held for name in item.names}
    for name in expected:
        if name not in known:
            raise PlanMismatchError(f"the plan leaves a tensor {name}, this {type(small).__name__} has none")
    for item in held:
        names = [name for name in item.names if name in expected]
        if not names and not may_be_added(small, item.names[0], plan, renaming.before(item.names[0])):
            raise PlanMismatchError(f"the plan does not know the tensor {item.names[0]}")
        for name in names:
            if tuple(item.tensor.shape) != expected[name]:
                raise PlanMismatchError(
                    f"{name} has shape {tuple(item.tensor.shape)}, the plan leaves {expected[name]}: "
                    "pass the model that was pruned with this plan"
                )


def _check_shape(name: str, shape: tuple[int, ...], model: nn.Module, plan: Plan) -> None:
    expected = tuple(plan.shapes[name])
    if shape == expected:
        return
    if len(shape) != len(expected):
        where = f"{name} has shape {shape} here, the plan expects {expected}"
    else:
        dim = next(d for d in range(len(shape)) if shape[d] != expected[d])
        where = f"{name} dim {dim} has {shape[dim]} positions here, the plan expects {expected[dim]}"
    try:
        check_pruned(model, plan)
    except PlanMismatchError:
        hint = f"the plan was made for {plan.model}, this is {type(model).__name__}: trace this model and plan again"
    else:
        hint = "these are the shapes that the plan leaves: the model has been pruned with it already"
    raise PlanMismatchError(f"{where}; {hint}")


def _removed(plan: Plan, axes: Iterable[PlanAxis]) -> dict[tuple[str, int], np.ndarray]:
    """Positions per axis; several entries for one axis (groups that share it) are merged."""
    merged: dict[tuple[str, int], np.ndarray] = {}
    sound: dict[tuple[Any, ...], np.ndarray] = {}  # by what they are: axes of a group lose the same positions
    held: dict[tuple[int, int], tuple[object, np.ndarray]] = {}  # by identity, and by length: most have the very same
    for item in axes:
        name, dim = item.axis.tensor, item.axis.dim
        if plan.length(item.axis) != item.length:
            shape = plan.shapes.get(name)
            raise PlanMismatchError(f"the plan cuts {name} dim {dim} of length {item.length}, but lists shape {shape}")
        known = held.get((id(item.removed), item.length))
        if known is None:
            removed = np.asarray(item.removed, dtype=np.int64)
            same = removed.tobytes(), removed.shape, item.length
            if same not in sound:
                if removed.size and not _ascending(removed, item.length):
                    raise PlanMismatchError(
                        f"the plan's positions on {name} dim {dim} are not ascending within 0 … {item.length - 1}"
                    )
                sound[same] = removed
            known = held[id(item.removed), item.length] = item.removed, sound[same]
        removed = known[1]
        if removed.size == 0:
            continue
        key = (name, dim)
        if removed.ndim == 2 and (dim == 0 or len(removed) != plan.length(Axis(name, 0)) or key in merged):
            raise PlanMismatchError(
                f"the plan cuts {name} dim {dim} in {len(removed)} ways; only one way per position of dim 0 can be"
            )
        merged[key] = np.union1d(merged[key], removed) if key in merged else removed
    return merged


def _ascending(positions: np.ndarray, length: int) -> bool:
    """Whether positions, in every row, ascend within a length."""
    if (positions[..., 1:] <= positions[..., :-1]).any():
        return False
    return bool((positions[..., 0] >= 0).all() and (positions[..., -1] < length).all())
