"""Which weights make a unit, as a row for each unit, and norms of these rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.errors import InputError, PlanMismatchError
from fairkern.model.sharded import whole
from fairkern.types import Axis, AxisGroup, FloatArray, GroupAxis, UnitMap

_ROWS, _COLUMNS = 2**8, 2**11  # of a part of a matrix that is made float64 at a time


def unit_weights(model: nn.Module, units: UnitMap, group: AxisGroup) -> dict[str, Tensor]:
    """Per weight that makes the group's units, by its name: a row for each, `[sets · units, values]`, in its dtype.

    These are parameters of two or more dimensions along an axis that holds the units and does not contract over them: a
    filter of a convolution, a row of a matrix, of a head its queries, keys and values. Vectors (biases, norms) count
    only where there is nothing else. Of a whole expert it is all that is its own, and of units that are modules
    (experts of a list, branches) all that they hold, under the name of the list. Parametrized weights are what the
    parametrization is given.

    Copies, without gradients. Raises InputError for modules of unequal size.
    """
    found = {}
    for held, parameter in _made_of(model, units, group):
        rows = whole(parameter).movedim(held.axis.dim, -1)
        places = torch.from_numpy(held.positions).to(rows.device)
        own = int(len(held.positions) != group.total)  # every set has its units anew, along dimension 0
        found[held.axis.tensor] = rows[..., places].movedim(-2, own).reshape(group.total, -1)
    for axis, modules in _modules_of(model, units, group):
        flat = [torch.cat([whole(p).reshape(-1) for p in parameters]) for parameters in modules]
        if len({len(row) for row in flat}) > 1:
            raise InputError(f"units of {group.name!r} are modules of unequal size, whose weights are no rows")
        found[axis.tensor] = torch.stack(flat)
    return found


def weight_norms(model: nn.Module, units: UnitMap) -> dict[str, dict[int, FloatArray]]:
    """By name, "l1" and "l2", and scored group: the norm of each unit's weights, all of them one row; float64
    `[sets · units]`.

    Models in shards: all processes have to ask. Cost: one read of the weights.
    """
    found: dict[str, dict[int, FloatArray]] = {"l1": {}, "l2": {}}
    for g in units.scored:
        group = units.groups[g]
        l1, l2 = np.zeros(group.total), np.zeros(group.total)
        for held, parameter in _made_of(model, units, group):
            sets = group.sets if len(held.positions) != group.total else 1
            for sums, norms in zip(_sums(whole(parameter), held.axis.dim, sets), (l1, l2), strict=True):
                norms += sums[:, held.positions].sum(-1).reshape(-1)
        for _, modules in _modules_of(model, units, group):
            for unit, parameters in enumerate(modules):
                for parameter in parameters:
                    magnitudes, powers = _sums(whole(parameter).reshape(1, -1), 0, 1)
                    l1[unit] += magnitudes.item()
                    l2[unit] += powers.item()
        found["l1"][g], found["l2"][g] = l1, np.sqrt(l2)
    return found


def _sums(weight: Tensor, dim: int, sets: int) -> tuple[FloatArray, FloatArray]:
    """Sums of magnitudes and of squares for every position along `dim`, `[sets, length]`; several sets lie along
    dimension 0."""
    length = weight.shape[dim]
    columns = max(_COLUMNS, _ROWS * _COLUMNS // max(1, length))  # as many elements at a time, however few the rows
    first, second = (torch.zeros(sets, length, dtype=torch.float64, device=weight.device) for _ in range(2))
    for k, own in enumerate([weight] if sets == 1 else weight):
        lines = own.movedim(dim - (sets > 1), 0).reshape(length, -1)
        for row, column in itertools.product(range(0, length, _ROWS), range(0, lines.shape[1], columns)):
            wide = lines[row : row + _ROWS, column : column + columns].abs().double()
            first[k, row : row + _ROWS] += wide.sum(1)
            second[k, row : row + _ROWS] += wide.square_().sum(1)
    return first.cpu().numpy(), second.cpu().numpy()


def _made_of(model: nn.Module, units: UnitMap, group: AxisGroup) -> Iterator[tuple[GroupAxis, nn.Parameter]]:
    """The axes of parameters that make the units."""
    found = []
    whole_ones = any(tap.side.whole for tap in group.taps)  # experts: what they read with is theirs as well
    for held in group.axes:
        path, _, name = held.axis.tensor.rpartition(".")
        if held.axis.tensor in units.shapes and (whole_ones or not held.consumer):
            parameter = _parameter(model, path, name)
            if parameter is not None:
                if tuple(parameter.shape) != units.shapes[held.axis.tensor]:
                    raise PlanMismatchError(
                        f"{held.axis.tensor} has shape {tuple(parameter.shape)}; the map was made for "
                        f"{units.shapes[held.axis.tensor]}"
                    )
                found.append((held, parameter))
    matrices = [(held, parameter) for held, parameter in found if parameter.ndim > 1]
    yield from matrices or found


def _parameter(model: nn.Module, path: str, name: str) -> nn.Parameter | None:
    """None for a buffer. Raises PlanMismatchError where the model has no such tensor."""
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if module is None or not (name in module._parameters or name in module._buffers):
        raise PlanMismatchError(f"{type(model).__name__} has no tensor {f'{path}.{name}'.lstrip('.')}, as the map has")
    return module._parameters.get(name)


def _modules_of(model: nn.Module, units: UnitMap, group: AxisGroup) -> Iterator[tuple[Axis, list[list[nn.Parameter]]]]:
    """Axes along which the units are modules, with the parameters of each unit."""
    for held in group.axes:
        name = held.axis.tensor
        if name in units.lists:
            paths = [[f"{name}.{entry}"] for entry in units.lists[name].names]
        elif name in units.branches:
            paths = [[part.module for part in branch.parts] for branch in units.branches[name]]
        else:
            continue
        chosen = [[path for place in row for path in paths[place]] for row in held.positions.tolist()]
        yield held.axis, [_parameters(model, own) for own in chosen]


def _parameters(model: nn.Module, paths: list[str]) -> list[nn.Parameter]:
    """Each once."""
    return list({id(p): p for path in paths for p in model.get_submodule(path).parameters()}.values())
