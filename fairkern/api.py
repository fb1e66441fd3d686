"""The pipeline: trace · score · plan · apply · prune. Where the stages meet; no mathematics of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from fairkern import axes, capture, compact, options, report, types
from fairkern.capture import LossReduction, Pairs, Recipe, Reduction, Settings
from fairkern.capture.batches import example, first_batch, head
from fairkern.checks import (
    RUN,
    check_data,
    check_model,
    check_more,
    check_plan,
    check_scores,
    main_reasons,
    spoilt,
)
from fairkern.compensate import Compensation, Loss
from fairkern.compensate.cut import cut
from fairkern.compensate.intercepts import Biases
from fairkern.deadline import Deadline
from fairkern.errors import InputError, NonFiniteError
from fairkern.model.autocast import without_autocast
from fairkern.model.in_use import at_work
from fairkern.model.nested import map_tensors
from fairkern.model.process import only_new_is_collected
from fairkern.model.sharded import in_shards
from fairkern.model.wrappers import check_unwrapped
from fairkern.ops import describe
from fairkern.options import choose
from fairkern.plans.build import build
from fairkern.plans.removals import nothing
from fairkern.prove import Verify, check_values, proven_as
from fairkern.ranks import ALONE, RanksLike, entered, shared, together
from fairkern.report import Shown
from fairkern.results import PathLike, Scores, UnitMap
from fairkern.surroundings import ordinary, stage
from fairkern.walk import Walk
from fairkern.walk.scoring import by_blocks


@stage
def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    more: Sequence[Any] = (),
    unused: Iterable[str] = (),
    depth: bool = False,
    verify: bool | str = True,
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
            `UnitMap.proven` says so. "whole": on a copy of the model in float64, which takes 16 bytes for a parameter.
            "sibling": on a smaller model that its class builds from its `config` (transformers), with fewer blocks of
            every kind and smaller sizes; what is found is carried over group by group, what has no counterpart stays,
            and a model with values is cut once itself, in its own dtype. True: "sibling" for models that have a
            configuration and weights of 256 MiB or more, or none (on the meta device), as far as one speaks for the
            model, which the map says; else "whole". A model without values and without a sibling needs False; one in
            shards (`fully_shard`) is traced without its values.
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
    depth, how = options.flag("depth", depth), Verify.given(verify)
    proves = how is not Verify.NONE
    with at_work(model, "trace()"), without_autocast(), only_new_is_collected():
        deadline = Deadline(time_limit)  # from when it is our turn
        if in_shards(model):
            model = compact.whole_on_meta(model)
        how.by_sibling(model)  # refuses what cannot be proven, before anything runs
        example_inputs, *more = (example(model, map_tensors(inputs, ordinary)) for inputs in (example_inputs, *more))
        certain, daring = axes.solutions(model, [example_inputs, *more], deadline, proves, unused, depth)
        units = certain.units
        if proves and (units.prunable or daring is not None):
            runs = (example_inputs, *more)
            units = proven_as(how, model, certain, daring, runs, seed, deadline, unused, depth)
    bad = spoilt(model) if proves else ""
    if not units.prunable and bad:
        raise NonFiniteError(
            f"{bad}: what the model gives is not finite, and so no cut can be proven; give it finite weights"
        )
    if not units.prunable:
        said = "; ".join([*main_reasons(units), *units.notes[:2]]) or "it has no parameters"
        raise InputError(f"no axis of this {type(model).__name__} can be cut; the main reasons: {said}")
    if bad:
        units = replace(units, notes=(bad, *units.notes))
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
    max_remove: float = 1.0,
    keep_moments: bool | PathLike = True,
    walk: str = "whole",
    walk_folder: PathLike | None = None,
    progress: Shown = True,
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
        memory_budget: bytes beyond the weights that class samples, second moments and the order made of them may take
            together, and what a batch's own pass takes beyond 128 MiB. It is held against what one and two samples of
            the first batch take, before anything is kept; more passes over the data are made if needed, and the scores
            are the same.
        gram: second moments of what consumers read, from which the residual is made and
            `apply(…, compensate="least_squares")` solves: half of a float64 matrix [length, length] per tap, and C²
            multiply-adds per position.
        max_remove: with `gram`, the largest share of a group that plans from these scores may ask for. The residual
            puts so many in order one by one, others by what each would add next; larger plans are refused.
        keep_moments: True: they stay in memory, in `Scores.moments`. A new or empty folder: each is written to a file
            there when the order of its layer is known, and `Scores.moments` reads it when asked. False: they are
            dropped then, and least squares cannot be had from these scores.
        walk: "whole", or by "blocks": a model that is a row of blocks (modules of a list, of which each is given what
            the one before it returns) goes forwards, then backwards, a block at a time (blocks that share units
            together), so that memory holds the activations of one. The scores are the same, at the price of another
            forward pass. InputError for other models.
        walk_folder: with "blocks", what passes between blocks lies in files there for the time; None: in memory.
        progress: show a progress bar on a terminal; or a function that is told `(done, total or None, stage)` instead.
        ranks: True, or a process group: all its processes make this call, with the same model and the same loader, of
            which each runs every so many batches; all of them get the scores of one process. False: this process works
            by itself, whatever others do. None: there is no other.

    Returns:
        Scores; `provenance` says what was used: counts, passes, seconds per stage; `sample_bytes`, what the class
        samples took at most, and `predicted_bytes`, what was expected of the first batch's shapes: `samples` for all
        of them in one pass, `layer`, the largest activation and its gradient, `moments` where `gram` is set, and
        `batch`, what the first batch's own pass takes, where there is a `memory_budget`.

    Raises:
        InputError: empty loader, fewer than two classes, a class with one sample, labels that are no class
            labels, a loss that does not depend on the model, unknown options, a `memory_budget` that is too small,
            with the least that would do.
        NonFiniteError: NaN or Inf in activations, gradients or the loss; names layer and batch.
        PlanMismatchError: `units` of another model.

    Cost: below one ordinary forward + backward over the same data. Memory, on top of the activations of a batch: the
    class samples (classes · samples_per_class · units · the lesser of a unit's positions and `projections`, per tap);
    with `gram`, 4 length² bytes per tap, and while a layer's order is made some float64 matrices of its width.

    Source: FAIR-Pruner, arXiv 2508.02291 (Utilization Score, Reconstruction Score).
    """
    check_model(model)
    check_unwrapped(model)
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
        max_remove=max_remove,
        keep_moments=keep_moments,
        class_of=class_of,
        samples_of=samples_of,
        ranks=(team := entered(ranks)),
    )
    show, traced = report.shown(progress) if team.first else False, 0.0
    by, folder = Walk.asked(walk, walk_folder, team)
    with at_work(model, "score()"):
        if units is None:
            started = time.perf_counter()
            first, loader = first_batch(loader)
            units = trace(model, head(first, model, samples_of))
            traced = time.perf_counter() - started
        else:
            options.instance("units", units, types.UnitMap, options.UNITS)
            compact.check(model, build(units, nothing(units)))
        capture.check_holders(team, "score()", model)
        capture.check_same(team, "score()", model, {"units": units, **vars(replace(settings, ranks=ALONE))})
        with report.progress(show) as on_batch:
            settings = replace(settings, on_batch=on_batch)
            if by is Walk.BLOCKS:
                scores = by_blocks(model, loader, loss_fn, units, settings, folder=folder)
            else:
                scores = capture.capture(model, loader, loss_fn, units, settings)
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
    progress: Shown = True,
    ranks: RanksLike = None,
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
        progress: as for `score`, of the layers that "sequential" refits and the steps of "joint".
        ranks: as for `score`, for "sequential" and "joint", which share the loader's batches out. All else is a
            function of what it is given: processes that make the same call get the same, whatever is said here.

    Raises:
        PlanMismatchError: a plan for another architecture; names the first axis that differs.
        InputError: a model that cannot be copied, compensation without the scores that it needs, or of means where no
            weight has a bias or is given one.
    """
    check_model(model)
    check_unwrapped(model)
    check_plan(plan)
    check_scores(scores)
    method = choose(Compensation, "compensate", compensate)
    if loader is not None:
        check_data(loader, loss_fn)
    show = report.shown(progress)
    how: dict[str, Any] = {"inplace": options.flag("inplace", inplace), "biases": Biases.given(biases)}
    with together(ranks if method.compares or ranks is not None else False, "apply()") as team:
        given = {"plan": plan, "compensate": compensate, "loss_fn": loss_fn, "biases": biases}
        capture.check_same(team, "apply()", model, given)
        with report.progress(show if team.first else False) as told:
            how |= {"backend": backend, "loss": Loss(loss_fn), "ranks": team, "told": told}
            return cut(model, plan, method, scores, loader, **how).model


@stage
@shared
def recalibrate(model: nn.Module, loader: Iterable[Any], *, ranks: RanksLike = None) -> int:
    """Take BatchNorm's running statistics anew from one forward pass over `loader`, in place.

    Worth a try after a harsh cut, before fine-tuning. Labels are not needed, modes stay. Returns how many layers there
    were; raises InputError where there is none, or no batch. `ranks`: as for `score`.
    """
    check_model(model)
    check_data(loader)
    check_values(model, RUN)
    team = entered(ranks)
    capture.check_holders(team, "recalibrate()", model)
    capture.check_same(team, "recalibrate()", model, {})
    return capture.recalibrate(model, loader, ALONE if in_shards(model) else team)  # there all make every pass


def info() -> dict[str, Any]:
    """What runs here: versions, the compiled extension, threads, devices, backends per operator and why not."""
    return describe()
