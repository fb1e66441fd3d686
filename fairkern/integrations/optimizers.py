"""A model that is cut while it is trained: it stays itself, and so do the optimizers that hold its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fairkern import compact, options
from fairkern.checks import check_model, check_plan
from fairkern.compact.config import follow_config
from fairkern.compact.cutting import gather_dense
from fairkern.compact.descriptors import Index, check_pruned, kept, match, may_be_added, shapes_after, tensors_of
from fairkern.errors import InputError, PlanMismatchError
from fairkern.interrupts import undivided
from fairkern.model.fields import bias_fields
from fairkern.model.in_use import in_use
from fairkern.model.linear import give_bias
from fairkern.model.tensors import named_tensors
from fairkern.plans.renaming import Renaming
from fairkern.surroundings import stage
from fairkern.types import ConfigChange, Plan

__all__ = ["Followed", "cut_in_place"]


@dataclass(frozen=True)
class Followed:
    """What came of an optimizer's parameters. Names are those of the cut model.

    added: biases that compensation gave weights which had none; no optimizer holds them yet.
    anew: parameters whose state has another shape than they have, so that it cannot be cut: it is empty now.
    """

    added: tuple[str, ...] = ()
    anew: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gained:
    """What a compensated model has that its plan does not say: added biases, and fields of the configuration."""

    biases: tuple[str, ...] = ()
    flags: Mapping[str, bool] | None = None

    @classmethod
    def of(cls, small: nn.Module, plan: Plan) -> Gained:
        planned = shapes_after(plan)
        biases = tuple(item.names[0] for item in tensors_of(small) if not any(name in planned for name in item.names))
        return cls(biases, bias_fields(small) if biases else None)

    def give(self, model: nn.Module, plan: Plan) -> None:
        """To a cut model without them: biases of zeros. Raises PlanMismatchError where there is no place for one."""
        before = Renaming(plan).before
        for name in self.biases:
            try:
                fits = may_be_added(model, name, plan, before(name))
            except AttributeError:
                fits = False
            if not fits:
                raise PlanMismatchError(f"{name} is said to be a bias that was added, and has no place in this model")
            give_bias(model.get_submodule(name.rpartition(".")[0]))
        own = bias_fields(model)
        changes = [ConfigChange(n, own[n], v) for n, v in (self.flags or {}).items() if n in own and own[n] != v]
        if changes:
            follow_config(model, changes)


@stage
def cut_in_place(
    model: nn.Module, plan: Plan, optimizers: Iterable[Optimizer] = (), *, like: nn.Module | None = None
) -> Followed:
    """Cut `model` itself, and with it what optimizers remember of its parameters; training goes on from there.

    `Parameter` objects stay, so optimizers and schedulers go on holding them. What an optimizer keeps for a parameter
    in the parameter's own shape (momentum, second moments) loses the same positions; numbers (the step) stay; what is
    of another shape cannot be cut, and starts anew. Parameters that go whole leave their optimizer.

    Args:
        model: the one that is trained, as the plan was made for it.
        plan: what goes.
        optimizers: those that hold its parameters.
        like: the model that is left, from `prune` or `apply` with compensation: `model` gets its values, and the biases
            that it has beside. They are in no optimizer: where they belong is for whoever groups parameters to say.

    Raises PlanMismatchError (a plan for another model, `like` of another plan) and InputError, before anything is done.
    Cost: as `apply(…, inplace=True)`, and as much again for each state of the size of the model.
    """
    check_model(model)
    check_plan(plan)
    options.iterable("optimizers", optimizers, "a list of torch.optim.Optimizer")
    held = [options.instance("optimizers", each, Optimizer, "torch.optim.Optimizer") for each in optimizers]
    gained = Gained()
    if like is not None:
        options.instance("like", like, nn.Module, options.MODEL)
        if like is model:
            raise InputError("like is the model itself; pass the smaller one that prune() or apply() returned")
        check_pruned(like, plan)
        gained = Gained.of(like, plan)
    compact.check(model, plan)
    own = {id(parameter) for parameter in model.parameters()}
    for each in held:
        if not any(id(parameter) in own for group in each.param_groups for parameter in group["params"]):
            raise InputError(
                f"this {type(each).__name__} holds no parameter of the model: it was made for another one, or before "
                "the model was copied; give the one that trains it"
            )
    with in_use(model, "cut_in_place()"), torch.no_grad():
        return undivided(lambda: _cut(model, plan, held, like, gained))


def _cut(model: nn.Module, plan: Plan, optimizers: list[Optimizer], like: nn.Module | None, gained: Gained) -> Followed:
    before = {id(parameter) for parameter in model.parameters()}
    indices = {id(item.tensor): index for item, index in match(model, kept(plan))}
    shapes = {id(parameter): parameter.shape for parameter in model.parameters()}
    compact.apply(model, plan, inplace=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    gone = before - names.keys()
    anew: dict[str, None] = {}
    for optimizer in optimizers:
        _forget_flat(optimizer, names, anew)
        for group in optimizer.param_groups:
            stays = [k for k, parameter in enumerate(group["params"]) if id(parameter) not in gone]
            for key in ("params", "param_names"):
                if key in group:
                    group[key][:] = [group[key][k] for k in stays]
        for parameter in list(optimizer.state):
            if id(parameter) in gone:
                del optimizer.state[parameter]
            elif id(parameter) in indices:
                state = optimizer.state[parameter]
                cut = _state(state, shapes[id(parameter)], indices[id(parameter)])
                if cut is None:
                    anew[names[id(parameter)]] = None
                    state.clear()
                else:
                    state.update(cut)
    gained.give(model, plan)
    if like is not None:
        values = like.state_dict()
        for name, tensor in named_tensors(model).items():
            if name in values:
                tensor.copy_(values[name])
    return Followed(gained.biases, tuple(anew))


def _forget_flat(optimizer: Optimizer, names: Mapping[int, str], anew: dict[str, None]) -> None:
    """What an optimizer keeps of all parameters in a row, as LBFGS does with their number, cannot be cut: it is
    forgotten, and taken from the gradients to come."""
    if not hasattr(optimizer, "_numel_cache"):
        return
    if optimizer.state:
        held = (id(parameter) for group in optimizer.param_groups for parameter in group["params"])
        anew.update(dict.fromkeys(names[key] for key in held if key in names))
    optimizer.state.clear()
    optimizer._numel_cache = None


def _state(state: Mapping[str, object], shape: torch.Size, index: Index) -> dict[str, Tensor] | None:
    """What changes of a parameter's state; None where some of it is neither a number nor of the parameter's shape."""
    wide = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.numel() > 1}
    if any(value.shape != shape for value in wide.values()):
        return None
    return dict(zip(wide, gather_dense([(value, index) for value in wide.values()], "auto"), strict=True))
