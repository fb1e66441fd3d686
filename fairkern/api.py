"""The pipeline: trace · score · plan · apply · prune. Where the stages meet; no mathematics of its own."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from fairkern import axes, capture, compact, options, report, types
from fairkern.capture import LossReduction, Pairs, Recipe, Reduction, Settings
from fairkern.capture.batches import example, first_batch, head
from fairkern.compensate import Compensation, Loss
from fairkern.compensate.cut import cut
from fairkern.compensate.intercepts import Biases
from fairkern.deadline import Deadline
from fairkern.errors import InputError, NonFiniteError
from fairkern.model.autocast import without_autocast
from fairkern.model.in_use import at_work
from fairkern.model.nested import map_tensors
from fairkern.model.sharded import in_shards
from fairkern.ops import describe
from fairkern.options import choose
from fairkern.plans.build import build
from fairkern.plans.removals import nothing
from fairkern.prove import check_values, not_finite, proven
from fairkern.ranks import ALONE, RanksLike, entered, shared
from fairkern.results import PathLike, Scores, UnitMap
from fairkern.surroundings import check_ordinary, ordinary, stage

RUN = "nothing can be computed with it; build the model on a real device, with its weights"


@stage
def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    more: Sequence[Any] = (),
    unused: Iterable[str] = (),
    depth: bool = False,
    verify: bool = True,
    seed: int = 0,
    time_limit: float | None = 600.0,
) -> UnitMap:
    """What can be cut from `model`: run it once on example inputs and follow every axis position.

    Args:
        model: any eager module; it runs in eval mode and is left as it was. Parameters that eval mode does not
            reach (auxiliary heads) are looked for in one more run in train mode.
        example_inputs: a tensor, a tuple (positional) or a dict (keyword arguments), on the model's device; a list is
            what the model's own loop would make of it: the one argument of a detector that takes a list of images
            (where its `forward` says so; pass `(images,)` where it does not), positional elsewhere. Of a batch that
            the model takes whole, to hand on the images to itself, it is these. FLOPs are counted for these.
        more: further example inputs that reach more code.
        unused: names or `fnmatch` patterns of parameters and modules that no input ever reaches (a mask token of
            pretraining). They stay, and nothing is held back for what they might read. A module that the example inputs
            do not call holds nothing back anyway; a parameter of one that they call does, where it may meet axes there.
        depth: branches of residual blocks (attention, an MLP, convolutions) are units too, of kind "branch": those at
            one place in several blocks are a group. A branch that goes adds nothing to its stream, and its modules are
            gone; where all branches of a block in a list go, so does the block. Branches that have no other at their
            place stay, and so do those that are added to a projection of what they read.
        verify: prove every group by running the model pruned against masked on other inputs (in float64 where the
            model allows it); a group that fails is tried again with sizes substituted in its modules' code, and
            frozen if it still fails. False skips the proof, and with it those sizes and the configuration;
            `UnitMap.proven` says so. A model on the meta device (or of fake tensors) has nothing to prove on and needs
            False, as does one in shards (`fully_shard`), which is traced on the meta device.
        seed: of the proof's removals and inputs.
        time_limit: seconds for all of it, checked between operators and between the runs of the proof; None: any.

    Raises:
        InputError: inputs without a tensor or on another device; `unused` that names nothing, or what the inputs
            reach; a model without a single axis that can be cut; one
            that is compiled, scripted, distributed, packed or hooked, with what to pass instead; one on the meta
            device that asks for values.
        NonFiniteError: weights that hold NaN or Inf, by name, where nothing can be proven for it; elsewhere a note of
            the map names them.
        TimeLimitError: the time is up; the model is as it was.
        What the model raises passes through.

    Cost: one forward pass and about 0.2 ms per operator; the proof adds a copy of the model and three passes, and as
    much again for a model whose configuration counts units.

    Example:
        >>> import torch, fairkern as fk
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> [(g.name, g.units) for g in fk.trace(net, torch.randn(2, 4)).groups]
        [('0', 8)]
    """
    check_model(model)
    unused, more, seed = options.names("unused", unused, "['mask_token']"), check_more(more), options.seed(seed)
    depth, verify = options.flag("depth", depth), options.flag("verify", verify)
    with at_work(model, "trace()"), without_autocast():
        deadline = Deadline(time_limit)  # from when it is our turn
        if in_shards(model):
            if verify:
                raise InputError(
                    f"this {type(model).__name__} lies in shards, and to prove a cut takes all of it in one process: "
                    "trace the model before fully_shard, which changes no names, and pass units=; or pass verify=False"
                )
            model = compact.whole_on_meta(model)
        if verify:
            check_values(model)
        example_inputs, *more = (example(model, map_tensors(inputs, ordinary)) for inputs in (example_inputs, *more))
        certain, daring = axes.solutions(model, [example_inputs, *more], deadline, verify, unused, depth)
        units = certain.units
        if verify and (units.prunable or daring is not None):
            units = proven(model, certain, daring, (example_inputs, *more), seed, deadline)
    spoilt = _spoilt(model) if verify else ""
    if not units.prunable and spoilt:
        raise NonFiniteError(
            f"{spoilt}: what the model gives is not finite, and so no cut can be proven; give it finite weights"
        )
    if not units.prunable:
        said = "; ".join([*_main_reasons(units), *units.notes[:2]]) or "it has no parameters"
        raise InputError(f"no axis of this {type(model).__name__} can be cut; the main reasons: {said}")
    if spoilt:
        units = replace(units, notes=(spoilt, *units.notes))
    return UnitMap.of(replace(units, unused=unused, more=len(more), depth=depth))


@stage
@shared
def score(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    units: types.UnitMap | None = None,
    samples_per_class: int = 32,
    projections: int = 128,
    seed: int = 0,
    class_of: Callable[[Any], Tensor] | Literal[False] | None = None,
    samples_of: Callable[[Any], int] | None = None,
    recipe: str = "default",
    reduction: str | None = None,
    pairs: str = "max",
    loss_reduction: str = "mean",
    backend: str = "auto",
    memory_budget: int | None = None,
    gram: bool = False,
    progress: bool = True,
    ranks: RanksLike = None,
) -> Scores:
    """U-score and R-score of every unit that can be cut and that inputs change, in one pass over `loader`.

    The pass is a forward and a backward for activation gradients only; no weight gradient is computed. The model
    runs in eval mode and is left as it was (parameters, buffers, modes, `.grad`, hooks, random state), also after
    an error or Ctrl-C.

    Args:
        model: the model, on any one device; batches are moved to it.
        loader: any iterable of `(inputs, targets)` or of dicts (keyword arguments, or the one argument of a model that
            takes a batch whole). Inputs may be a list of images of any sizes, targets a list of dicts: these are run
            image by image.
        loss_fn: `loss_fn(output, targets)` → scalar; of a dict batch the targets are its "labels", or all of it. None:
            the model's own loss: `.loss`, `["loss"]`, a scalar or a tuple that begins with one, as it returns it in
            eval mode. A model that returns none there (torchvision's detectors) is called as its own training loop
            calls it, on inputs and targets in train mode, but with norms and dropout as in eval mode; a dict of losses
            is added up, and so are the several losses that a model returns of a batch that it takes whole
            (ultralytics' `model(batch)`).
        units: from `trace(model, …)`; traced on the first two samples of the first batch if not given (on one, where
            they come one by one), and FLOPs are counted for these.
        samples_per_class: how many samples of each class enter the U-score: the first ones. R uses all samples.
        projections: directions for the sliced distance; units with one value per sample need none.
        seed: of the directions, and of what the model or the loss draws at random.
        class_of: `class_of(batch)` → integer labels [samples], or [samples, places …] where every token or pixel has a
            class (negative: none); default: the targets, one per sample. Places are compared then, and
            `samples_per_class` counts them; an activation on a coarser grid has the nearest labels, and classes of one
            place are left out. A pooled activation, of one place per sample, has the class of most of the sample's
            places; units that are heard in one class only have no U (`provenance["no_classes"]`), and plans that read U
            leave them alone. False: there are no classes; the U-score is left out, and plans go by what is left (R, the
            residual, weights). Targets with a label per place are no classes unless `class_of=lambda batch: batch[1]`
            says so, since those of a language model are its vocabulary.
        samples_of: `samples_of(batch)` → how many samples a batch holds, where that cannot be told from its structure
            (lists with an item per sample, rows of tensors).
        recipe: "default" taps what the consumers read; "paper" what the layer itself returns, with signed sums.
        reduction: "signed" (R = |Σ_s t|), "per_sample" (R = Σ_s |t|) or "per_class" (|Σ| within each class, added up);
            None takes the recipe's: per_sample for "default", signed for "paper".
        pairs: U over pairs of classes: "max", the largest distance, or "mean", that of all pairs.
        loss_reduction: "mean" or "sum" over a batch's samples: what `loss_fn` does.
        backend: of the operators: "auto", "native", "triton" or "reference"; one that cannot run here raises.
        memory_budget: bytes that class samples may take; more passes over the data are made if needed.
        gram: keep second moments of what consumers read, which `apply(…, compensate="least_squares")` solves from:
            a float64 matrix [length, length] per tap, and C² multiply-adds per position.
        progress: show a progress bar on a terminal.
        ranks: True, or a process group: all its processes make this call, with the same model and the same loader, of
            which each runs every so many batches; all of them get the scores of one process. False: this process works
            by itself, whatever others do. None: there is no other.

    Returns:
        Scores; `provenance` says what was used: counts, passes, seconds per stage; `sample_bytes`, what the class
        samples took at most, and `predicted_bytes`, what was expected of the first batch's shapes: `samples` for all
        of them in one pass, `layer`, the largest activation and its gradient, and `moments` where `gram` is set.

    Raises:
        InputError: empty loader, fewer than two classes, a class with one sample, labels that are no class
            labels, a loss that does not depend on the model, unknown options.
        NonFiniteError: NaN or Inf in activations, gradients or the loss; names layer and batch.
        PlanMismatchError: `units` of another model.

    Cost: below one ordinary forward + backward over the same data; memory: the class samples
    (classes · samples_per_class · units · the lesser of a unit's positions and `projections`, per tap) on top of the
    activations of a batch.

    Source: FAIR-Pruner, arXiv 2508.02291 (Utilization Score, Reconstruction Score).
    """
    check_model(model)
    check_data(loader, loss_fn)
    check_values(model, RUN)
    kind = choose(Recipe, "recipe", recipe)
    default = Reduction.SIGNED if kind is Recipe.PAPER else Reduction.PER_SAMPLE
    settings = Settings(
        samples_per_class=samples_per_class,
        projections=projections,
        seed=seed,
        recipe=kind,
        reduction=default if reduction is None else choose(Reduction, "reduction", reduction),
        pairs=choose(Pairs, "pairs", pairs),
        loss_reduction=choose(LossReduction, "loss_reduction", loss_reduction),
        backend=backend,
        memory_budget=memory_budget,
        gram=gram,
        class_of=class_of,
        samples_of=samples_of,
        ranks=(team := entered(ranks)),
    )
    show, traced = options.flag("progress", progress) and team.first, 0.0
    with at_work(model, "score()"):
        if units is None:
            started = time.perf_counter()
            first, loader = first_batch(loader)
            units = trace(model, head(first, model, samples_of))
            traced = time.perf_counter() - started
        else:
            options.instance("units", units, types.UnitMap, options.UNITS)
            compact.check(model, build(units, nothing(units)))
        capture.check_same(team, "score()", model, the_unit_map=units, what_is_asked_for=replace(settings, ranks=ALONE))
        with report.progress(show) as on_batch:
            scores = capture.capture(model, loader, loss_fn, units, replace(settings, on_batch=on_batch))
    seconds = {"trace": team.told("the trace", lambda: traced), **scores.provenance["seconds"]}
    return Scores.of(replace(scores, provenance={**scores.provenance, "seconds": seconds}))


@stage
def apply(
    model: nn.Module,
    plan: types.Plan,
    *,
    compensate: str = "none",
    scores: types.Scores | None = None,
    loader: Iterable[Any] | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    biases: str | bool = "auto",
    inplace: bool = False,
    backend: str = "auto",
) -> nn.Module:
    """The smaller model that `plan` leaves: uncompensated, it computes what `plan.masked(model)` computes.

    Args:
        model: a model with the names and shapes that the plan was made for.
        plan: from `Scores.plan` or `Plan.load`.
        compensate: "mean" folds the removed units' means into the consumers' biases; "least_squares" also what the
            units that stay tell of them, into the consumers' weights (`score(…, gram=True)` keeps what it takes).
            "sequential" then refits one layer after the other on what it reads once those before it have been cut, also
            those that lose nothing themselves: errors do not add up, at the price of two forward passes over `loader`.
            "joint" goes on from there and fits all layers together to what the model gives in the end, by conjugate
            gradients over all of `loader`: about thirty forward and backward passes.
        loader: batches for "sequential", as for `score`, without need of labels. All of them are under way at once: of
            every batch the activations at one depth are held, twice. "joint" needs what the loss takes, but what the
            labels say does not count for it.
        loss_fn: as for `score`; read by "joint", to which it says how near two outputs are (`loss(z) − loss(z₀)` beyond
            what its slope at `z₀` says: the Kullback-Leibler divergence of cross-entropy, a squared distance of squared
            error), and so should be convex in what the model returns.
        scores: where means and moments are taken from; needed to compensate.
        biases: whether compensation gives a bias to weights that have none. "auto": where what the model ships in has a
            place for it. For a model that its class makes from its `config` (transformers) that is where a field of the
            configuration gives weights a bias; the field is set, and what else it brings is zeros, so that
            `save_pretrained` and `from_pretrained` bring all of it back. For one that is planned to be served as `deci`
            or `gguf`, output and down projections; for others, anywhere. True: anywhere (fields are set where there are
            any). False: nowhere. Weights without one are fitted through zero.
        inplace: cut `model` itself, tensor by tensor, freeing memory as it goes; default: a copy, `model` stays.
        backend: of the gathers.

    Raises:
        PlanMismatchError: a plan for another architecture; names the first axis that differs.
        InputError: a model that cannot be copied, compensation without the scores that it needs, or of means where no
            weight has a bias or is given one.
    """
    check_model(model)
    check_plan(plan)
    check_scores(scores)
    method = choose(Compensation, "compensate", compensate)
    if loader is not None:
        check_data(loader, loss_fn)
    chosen, inplace = Biases.given(biases), options.flag("inplace", inplace)
    loss = Loss(loss_fn)
    return cut(model, plan, method, scores, loader, inplace=inplace, backend=backend, biases=chosen, loss=loss).model


@stage
def recalibrate(model: nn.Module, loader: Iterable[Any]) -> int:
    """Take BatchNorm's running statistics anew from one forward pass over `loader`, in place.

    Worth a try after a harsh cut, before fine-tuning. Labels are not needed, modes stay. Returns how many layers there
    were; raises InputError where there is none, or no batch.
    """
    check_model(model)
    check_data(loader)
    check_values(model, RUN)
    return capture.recalibrate(model, loader)


@stage
def save_pruned(small: nn.Module, plan: types.Plan, folder: PathLike) -> None:
    """Write a pruned model: `folder/model.safetensors` and `folder/plan.json`; a new folder is complete or absent.

    One that exists is written into: these two files are replaced, others stay. `small` may have been trained since.
    Raises PlanMismatchError where it does not have the shapes that `plan` leaves, and OSError.
    """
    options.instance("small", small, nn.Module, options.MODEL)
    check_plan(plan)
    compact.save_pruned(small, plan, options.place("folder", folder))


@stage
def load_pruned(fresh_model: nn.Module, folder: PathLike) -> nn.Module:
    """A pruned model back from `save_pruned`: a cut copy of `fresh_model`, with the weights of the folder.

    Args:
        fresh_model: the unpruned architecture with any weights (meta is fine); it stays as it is. The copy is in its
            mode (train, as models are made, or eval), of its dtype, and on its device (of meta: on the CPU).
        folder: that `save_pruned` wrote, `fairkern apply` or `fairkern prune`.

    Raises ArtefactError (a file that is missing, damaged, edited, foreign or newer, weights of another plan),
    PlanMismatchError (another architecture, or pruned already), InputError (a model that cannot be copied).
    """
    options.instance("fresh_model", fresh_model, nn.Module, options.MODEL)
    return compact.load_pruned(fresh_model, options.place("folder", folder))


def info() -> dict[str, Any]:
    """What runs here: versions, the compiled extension, threads, devices, backends per operator and why not."""
    return describe()


def check_model(model: object) -> None:
    given = options.instance("model", model, nn.Module, options.MODEL)
    check_ordinary((*given.named_parameters(), *given.named_buffers()))


def check_data(loader: object, loss_fn: object = None) -> None:
    options.iterable("loader", loader, "an iterable of batches, as a DataLoader or a list")
    if loss_fn is not None:
        options.function("loss_fn", loss_fn, "a function of output and targets, or None for the model's own loss")


def check_plan(plan: object) -> None:
    options.instance("plan", plan, types.Plan, options.PLAN)


def check_scores(scores: object) -> None:
    if scores is not None:
        options.instance("scores", scores, types.Scores, options.SCORES)


def check_more(more: Any) -> list[Any]:
    if isinstance(more, (Tensor, Mapping)):  # one for all, and no list of them
        raise InputError(f"more is a {type(more).__name__}; expected a list of example inputs: pass more=[…]")
    options.iterable("more", more, "a list of example inputs")
    return list(more)


def _spoilt(model: nn.Module) -> str:
    """Which weights hold NaN or Inf; empty where none does."""
    names = not_finite(model)
    return f"{options.several(names)} {'holds' if len(names) == 1 else 'hold'} NaN or Inf" if names else ""


def _main_reasons(units: types.UnitMap, most: int = 3) -> list[str]:
    """Why nothing can be cut: of groups that failed, else what holds most axis positions, modules left out."""
    if units.groups:
        return [f"{g.name}: {g.frozen}" for g in units.groups[:most]]
    held: Counter[str] = Counter()
    for frozen in units.frozen:
        held[re.sub(r" in [\w.]*[\w]", "", frozen.reason)] += frozen.positions
    return [reason for reason, _ in held.most_common(most)]
