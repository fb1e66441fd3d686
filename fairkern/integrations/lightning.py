"""Pruning in the middle of a Lightning run: a callback that cuts the module, its optimizers' state, and checkpoints.

The module stays itself: what is cut are its tensors and their optimizers' state, in place. A checkpoint of a cut module
holds the plan, in an entry of its own; whoever resumes from it, with the same callback in the trainer, starts with the
uncut module, which is cut before its weights are read. Lightning asks callbacks about a checkpoint only after the
module has read its weights, so that is done in the module's own hooks.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from fairkern import artefacts, options
from fairkern.allocate import refuse_unknown
from fairkern.checks import check_data
from fairkern.compensate import Compensation
from fairkern.errors import ArtefactError, InputError
from fairkern.integrations.optimizers import Followed, Gained, cut_in_place
from fairkern.interrupts import interrupts_wait, undivided
from fairkern.pruning import PruningOptions, prune
from fairkern.pruning.options import KEYWORDS, check_steps, planned
from fairkern.results import PathLike, Plan, Report

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
    from lightning.pytorch.utilities.seed import isolate_rng
except ImportError as error:
    raise ImportError(
        f"fairkern.integrations.lightning needs lightning, which could not be imported ({error}): "
        "pip install 'fairkern[lightning]'",
        name="lightning",
    ) from error

__all__ = ["Prune", "restore"]

ENTRY = "fairkern"  # of a checkpoint: every cut that the module has had
CUTS = "_fairkern_cuts"  # the same, on the module
_OWN = ("keep_scores", "inplace", "ranks", "latency")  # options of `prune` that have no meaning here
_TARGETS = ("tod", "keep_params", "keep_flops", "keep_latency", "drop")


class Prune(Callback):
    """Prune the module at the beginning of an epoch, from the trainer's own data, and train on.

    `Trainer(callbacks=[Prune(loss_fn, epoch=3, keep_params=0.5)])`. What is cut stays the same object; momentum and
    second moments lose what the parameters lose, schedulers go on, and checkpoints written from then on can be resumed
    from with the uncut module and this callback, or read with `restore`.

    Args:
        loss_fn: `loss_fn(output, targets)` → scalar, as for `fairkern.prune`; None: the network's own.
        epoch: at the beginning of which epoch, counted from 0: 0 is before the first. A run that is resumed later than
            that, from a checkpoint of the uncut module, prunes at the next beginning of an epoch.
        network: the path of the module that is pruned within the LightningModule ("net", "model.encoder"); empty: the
            LightningModule itself, as its `forward` is called.
        batches: how many batches are read for it and kept meanwhile; None: all.
        loader: other data than `trainer.train_dataloader`: batches as `fairkern.prune` takes them.
        options: those of `fairkern.prune`, of which one budget has to be given (`keep_params=0.5`).

    Attributes: `plan`, by which the network was cut, and `report`, both None before that; a run that is resumed has no
    report.

    Raises, when it is made, InputError or TypeError for options that `fairkern.prune` would not take; when the run is
    set up, InputError for a path that leads nowhere, several processes, modules that the strategy wraps, and for
    another `Prune`; when the epoch begins, what `fairkern.prune` raises, and InputError where another callback holds an
    average of the module's weights, which would not be cut.
    Cost: what `fairkern.prune` takes.
    """

    def __init__(
        self,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        *,
        epoch: int = 0,
        network: str = "",
        batches: int | None = 32,
        loader: Iterable[Any] | None = None,
        **options_of_prune: Any,
    ) -> None:
        allowed = [name for name in KEYWORDS if name not in _OWN]
        refuse_unknown("Prune()", options_of_prune, PruningOptions.__annotations__, allowed)
        check_data(() if loader is None else loader, loss_fn)
        _, target, _ = planned(options_of_prune, *(options_of_prune.get(name) for name in _TARGETS))
        check_steps(options.whole("iterations", options_of_prune.get("iterations", 1), 1), target, None, ())
        if options_of_prune.get("compensate") is not None:
            options.choose(Compensation, "compensate", options_of_prune["compensate"])
        self.epoch = options.whole("epoch", epoch, 0)
        self.network = options.instance("network", network, str, "the path of a module, such as 'net'")
        self.batches = None if batches is None else options.whole("batches", batches, 1)
        self.plan: Plan | None = None
        self.report: Report | None = None
        self._loss_fn, self._loader, self._options = loss_fn, loader, options_of_prune
        self._module: LightningModule | None = None
        self._had = 0  # cuts of the module before this run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if sum(isinstance(other, Prune) for other in getattr(trainer, "callbacks", ())) > 1:
            raise InputError("there are two Prune callbacks; give one, and for several cuts iterations= or another fit")
        if getattr(trainer, "world_size", 1) > 1:
            raise InputError(
                f"Prune works in one process, and this trainer runs {trainer.world_size}: prune before the run, "
                "with fairkern.prune, and train what is left"
            )
        _part(pl_module, self.network)
        if self._module is not pl_module:  # another run
            self._module, self.plan, self.report = pl_module, None, None
            self._had = len(_cuts(pl_module))
        hooks: Any = pl_module
        hooks.on_save_checkpoint = partial(_save, pl_module)
        hooks.on_load_checkpoint = partial(_load, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.plan is None and len(_cuts(pl_module)) > self._had:  # by a checkpoint
            self.plan = Plan.of(artefacts.read_plan_text(_cuts(pl_module)[-1]["plan"], "the checkpoint"))
        if self.plan is not None or trainer.current_epoch < self.epoch:
            return
        network = _part(pl_module, self.network)
        if trainer.strategy.model is not pl_module:
            raise InputError(
                f"{type(trainer.strategy).__name__} wraps the module in a {type(trainer.strategy.model).__name__}, "
                "which holds its parameters as they are: prune before the run, with fairkern.prune"
            )
        _check_averages(getattr(trainer, "callbacks", ()), pl_module, network)
        data = self._data(trainer, pl_module)
        small, report = prune(network, data, self._loss_fn, **{"progress": False, **self._options})
        with interrupts_wait():
            followed = undivided(partial(self._cut, trainer, pl_module, small, report))
        if followed.anew:
            names = [f"{self.network}.{name}".lstrip(".") for name in followed.anew]
            rank_zero_warn(
                f"the optimizer's state of {options.several(names)} has another shape than the "
                "parameter, so that it cannot be cut with it: it starts anew"
            )
        before, after = report.before["params"], report.after["params"]
        rank_zero_info(f"pruned before epoch {trainer.current_epoch}: {before:,} → {after:,} parameters")

    def _cut(self, trainer: Trainer, module: LightningModule, small: nn.Module, report: Report) -> Followed:
        """The module is cut, knows it, and is trained by optimizers that hold all of it."""
        assert report.plan is not None
        followed = cut_in_place(_part(module, self.network), report.plan, trainer.optimizers, like=small)
        self.plan, self.report = report.plan, report
        _note(module, self.network, report.plan, Gained.of(small, report.plan))
        if followed.added:
            _take_in(trainer)
        return followed

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.plan is None:
            rank_zero_warn(
                f"Prune has cut nothing: the run ended before epoch {self.epoch} (counted from 0) began. Pass a "
                "smaller epoch= to Prune, or a larger max_epochs= to the trainer"
            )

    def _data(self, trainer: Trainer, module: LightningModule) -> list[Any] | Iterable[Any]:
        """Batches as the module gets them in training. What is drawn for it is drawn beside the run."""
        if self._loader is not None:
            return self._loader
        loader: Any = trainer.train_dataloader
        if isinstance(loader, (Mapping, list, tuple)):
            raise InputError("the trainer has several loaders: pass loader= with batches as fairkern.prune takes them")
        if not isinstance(loader, DataLoader) and iter(loader) is loader:
            raise InputError("the trainer's data can be read once only, and Prune would use it up: pass loader=")
        if isinstance(loader, DataLoader) and loader.persistent_workers:
            loader = copy.copy(loader)
            loader._iterator = None  # else the workers of the epoch that begins would be reset
        with isolate_rng():
            read = [module.on_before_batch_transfer(batch, 0) for batch in islice(iter(loader), self.batches)]
            return [trainer.strategy.batch_to_device(batch) for batch in read]


def restore(module: LightningModule, checkpoint: PathLike | Mapping[str, Any], *, strict: bool = True) -> list[Plan]:
    """Read a checkpoint that was written after `Prune` had cut the module, without a trainer.

    Args:
        module: a new LightningModule, uncut, as it was made for the run. It is cut in place, and gets the weights.
        checkpoint: its file (read by torch with `weights_only=True`), or what is in it.
        strict: as for `load_state_dict`.

    Returns the plans by which it was cut, one after the other.
    Raises InputError for a checkpoint of an uncut module, ArtefactError for one that is damaged, or whose plan is,
    PlanMismatchError for another module.
    """
    options.instance("module", module, nn.Module, options.MODEL)
    where, read = "the checkpoint", checkpoint
    if not isinstance(checkpoint, Mapping):
        where = options.place("checkpoint", checkpoint)
        try:
            read = torch.load(where, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ArtefactError(
                f"{where} is no checkpoint that torch can read, or a part of one: {said[:300]}"
            ) from error
    if not isinstance(read, Mapping) or not read.get(ENTRY) or "state_dict" not in read:
        raise InputError(
            f"{where} was not written after Prune had cut a module: use load_from_checkpoint of {type(module).__name__}"
        )
    plans = _follow(module, read[ENTRY], where)
    module.load_state_dict(read["state_dict"], strict=strict)
    return plans


def _cuts(module: LightningModule) -> list[dict[str, Any]]:
    """The cuts that a module has had, as checkpoints hold them."""
    return vars(module).get(CUTS, [])


def _save(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """In place of the module's own hook, which follows. A callback is not asked about checkpoints of weights alone."""
    if _cuts(module):
        checkpoint[ENTRY] = _cuts(module)
    type(module).on_save_checkpoint(module, checkpoint)


def _load(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """In place of the module's own hook, which follows: cut as the checkpoint was, before its weights are read."""
    _follow(module, checkpoint.get(ENTRY, ()), "the checkpoint")
    type(module).on_load_checkpoint(module, checkpoint)


def _note(module: LightningModule, network: str, plan: Plan, gained: Gained) -> None:
    """Write down on the module how it was cut: in what is pickled with it, and what checkpoints hold."""
    cut = {
        "plan": artefacts.plan_text(plan),
        "network": network,
        "biases": list(gained.biases),
        "flags": dict(gained.flags or {}),
    }
    setattr(module, CUTS, [*_cuts(module), cut])


def _follow(module: LightningModule, cuts: Sequence[Mapping[str, Any]], where: str) -> list[Plan]:
    """Cut a module as one was that went into a checkpoint; the plans of the cuts that it had not had."""
    had = _cuts(module)
    if list(cuts[: len(had)]) != had:
        what = "of the module before it was cut" if not cuts else "of another cut"
        raise InputError(f"{where} is {what}, and this {type(module).__name__} has been cut: load it into a new one")
    plans = []
    for cut in cuts[len(had) :]:
        try:
            network, biases, flags = cut["network"], tuple(cut["biases"]), dict(cut["flags"])
            plan = Plan.of(artefacts.read_plan_text(cut["plan"], f"the plan in {where}"))
        except (KeyError, TypeError, AttributeError):
            raise ArtefactError(f"{where} has an entry {ENTRY!r} that Prune did not write") from None
        with interrupts_wait():
            undivided(partial(_cut_again, module, network, plan, Gained(biases, flags)))
        plans.append(plan)
    return plans


def _cut_again(module: LightningModule, network: str, plan: Plan, gained: Gained) -> None:
    part = _part(module, network)
    cut_in_place(part, plan)
    gained.give(part, plan)
    _note(module, network, plan, gained)


def _part(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        known = [name for name, _ in module.named_modules() if name]
        raise InputError(
            f"network={path!r} is no module of {type(module).__name__}{options.near(path, known)}"
        ) from None


def _check_averages(callbacks: Iterable[Callback], module: LightningModule, network: nn.Module) -> None:
    """Raises InputError where a callback holds a copy of the network's weights, as averages of weights are."""
    shapes = {(name.rpartition(".")[2], tuple(p.shape)) for name, p in network.named_parameters()}
    own = set(module.modules())
    for callback in callbacks:
        for name, held in vars(callback).items():
            if not isinstance(held, nn.Module) or held in own:
                continue
            if shapes <= {(other.rpartition(".")[2], tuple(p.shape)) for other, p in held.named_parameters()}:
                raise InputError(
                    f"{type(callback).__name__}.{name} is a copy of the module, made before the cut, and would be of "
                    "other shapes afterwards: prune before the run, or average in a run that begins after the cut"
                )


def _take_in(trainer: Trainer) -> None:
    """Give biases that compensation added to the optimizers, in the places that `configure_optimizers` gives them.

    A run that is resumed makes its optimizers of the cut module, and reads their state by these places.
    """
    strategy = trainer.strategy
    used, schedulers = strategy.optimizers, strategy.lr_scheduler_configs
    strategy.setup_optimizers(trainer)
    fresh = strategy.optimizers
    strategy.optimizers, strategy.lr_scheduler_configs = used, schedulers
    if [len(o.param_groups) for o in used] != [len(o.param_groups) for o in fresh] or not all(
        {id(p) for p in now["params"]} <= {id(p) for p in then["params"]} for now, then in _groups(used, fresh)
    ):
        raise InputError(
            "compensation added biases, and configure_optimizers now makes other parameter groups than those in use "
            "(another callback has changed them): pass biases=False to Prune"
        )
    for now, then in _groups(used, fresh):
        for key in ("params", "param_names"):
            if key in now:
                now[key][:] = then[key]


def _groups(used: list[Optimizer], fresh: list[Optimizer]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [
        pair
        for now, then in zip(used, fresh, strict=True)
        for pair in zip(now.param_groups, then.param_groups, strict=True)
    ]
