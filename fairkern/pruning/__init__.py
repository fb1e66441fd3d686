"""Pruning from start to end: trace, score, plan and cut, in one step or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from fairkern import capture, report, types
from fairkern.allocate import refuse_unknown
from fairkern.capture.batches import first_batch, head
from fairkern.checks import RUN, check_data, check_model, check_more
from fairkern.compensate import Compensation
from fairkern.compensate.intercepts import Biases
from fairkern.errors import InputError
from fairkern.evaluating import Evaluate, check_evaluate
from fairkern.model.in_use import at_work
from fairkern.model.sharded import processes_of
from fairkern.options import UNITS, choose, flag, instance, names, whole
from fairkern.prove import check_values
from fairkern.pruning.options import (
    KEYWORDS,
    PruningOptions,
    check_method,
    check_scoring,
    check_steps,
    check_traced,
    fit_together,
    planned,
)
from fairkern.pruning.rows import further_budgets
from fairkern.pruning.steps import Asked, Run
from fairkern.ranks import RanksLike, entered, shared
from fairkern.results import Report
from fairkern.surroundings import stage

__all__ = ["PruningOptions", "prune"]


@stage
@shared
def prune(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    tod: float | None = None,
    keep_params: float | None = None,
    keep_flops: float | None = None,
    keep_latency: float | None = None,
    drop: Mapping[str, int] | None = None,
    latency: types.LatencyTable | None = None,
    iterations: int = 1,
    compensate: str | None = None,
    biases: str | bool = "auto",
    inplace: bool = False,
    more: Sequence[Any] = (),
    unused: Iterable[str] = (),
    depth: bool = False,
    keep_scores: bool | str = False,
    evaluate: Evaluate | None = None,
    budgets: Iterable[float] = (),
    ranks: RanksLike = None,
    **options: Unpack[PruningOptions],
) -> tuple[nn.Module, Report]:
    """Trace, score, plan and cut: the smaller model and what was done.

    Budget as in `Scores.plan`, `inplace` as in `apply`. Every other keyword is an option of `Scores.plan`
    (`allocation`, `removal`, `protect`, `round_to`, `max_remove`, `min_keep`, `ignore`, `serve`) or of `score`, with
    the defaults that they have there. What is left open is chosen so that it fits what is given: where the targets are
    no class labels (a language model's), nothing is asked for that compares classes, and no `class_of` is given, the
    U-score is left out (`class_of=False`); second moments are kept (`gram`) where compensation or a signal takes them,
    and where there is no U to plan by. The report holds the plan (`Report.plan`), as `save_pruned` needs it. FLOPs
    and latency are those of the first two samples of the first batch (of one, where they come one by one).

    Args:
        keep_latency: the share of the model's time, on a few samples of the loader's first batch, that may be left.
            Plans are checked by timing what they leave (`plan_latency`).
        latency: from `latency_table` for these inputs; measured here where none is given.
        iterations: in how many steps. Every step cuts, compensates, and is traced and scored anew; the budgets of the
            steps lie in equal ratios (0.25 in two steps: a half, a quarter), all of them shares of the whole model,
            biases counted that compensation has added before. `max_remove` is spread over the steps likewise. The plan
            is one plan for the whole model; `Report.choices["steps"]` has what each step left.
        compensate: None takes "sequential" where it can be had: the loader can be iterated again, the model need not be
            cut in place, the model keeps nothing of a batch in its modules (as a causal cache does), and what is held
            of all batches at one depth is expected to stay below 4 GiB; else "least_squares".
            `Report.choices["compensation"]` says which. "joint" leaves more of the model at the price of some thirty
            forward and backward passes; of several steps each is fitted to what the whole model gives, and
            `Report.choices["divergence"]` says how far the last was from it before and after.
        biases: as for `apply`. `Report.choices["biases"]` says by what it was decided which weights get one,
            `Report.choices["through_zero"]` what it costs where none was possible, and `Report.choices["config"]`
            which fields of the configuration were set.
        more, unused: as for `trace`, of every step; `units` that are given bring what is unused along.
        depth: as for `trace`, of every step: branches of residual blocks, and whole blocks, may go as well. `units`
            that are given say so themselves.
        ranks: as for `score`: several processes share the work, and all get the same model and the same report. The
            first of them measures latency.
        memory_budget: as for `score`, and for what the proof and the cut take: of each of these, bytes beyond the first
            128 MiB. What "sequential" takes is expected from the first batch; where nothing is said it is done if there
            is room. Second moments that do not fit go to files with `keep_moments="FOLDER"`.
        keep_scores: `Report.scores` has those of the last step, for other plans of the model that it was made of; with
            second moments, which take much memory; "signals": without these and means, enough for pages and pictures.
        evaluate: a function of a model that gives a number, or numbers by name such as {"top1": 0.93} (see `measured`).
            What it gives of the whole model, before anything is done, stands in `Report.before`, of what is left in
            `Report.after`. Of several processes the first calls it.
        budgets: further shares (or tolerances) of the kind that was asked for. The same scores are planned, cut,
            compensated and evaluated for each; `Report.curve` has a row for these and for the one that is kept.

    Raises what these stages raise, and InputError, before anything is run: options that contradict each other (what
    compares classes where there are none, compensation without what it takes), fewer than one step, several with
    `tod` or `drop`, with `budgets`, with `latency`, with a loader that can be iterated once only, or with `units` that
    were traced with `more` where `more` is not given.
    Cost: `iterations` times a trace with its proof, a pass over the data and a cut; a cut for each of `budgets`.
    """
    team = entered(ranks)
    check_model(model)
    if processes_of(model) > 1:
        raise InputError(
            f"this {type(model).__name__} lies in shards, and prune() measures times in one process: trace the model "
            "before fully_shard, then score(…, units=…, ranks=True), plan and apply"
        )
    check_data(loader, loss_fn)
    check_values(model, RUN)
    check_evaluate(evaluate)
    refuse_unknown("prune()", options, PruningOptions.__annotations__, KEYWORDS)
    more, unused, iterations = (
        check_more(more),
        names("unused", unused, "['mask_token']"),
        whole("iterations", iterations, 1),
    )
    inplace, depth = flag("inplace", inplace), flag("depth", depth)
    signals = isinstance(keep_scores, str) and keep_scores == "signals"
    kept = not signals and flag("keep_scores", keep_scores)
    given_biases = Biases.given(biases)
    if isinstance(options.get("ignore"), Iterator):
        options["ignore"] = list(options["ignore"])  # read by every plan
    planning, target, keep = planned(options, tod, keep_params, keep_flops, keep_latency, drop)
    further = further_budgets(budgets, target, keep, iterations)
    check_steps(iterations, target, latency, loader)
    method = None if compensate is None else choose(Compensation, "compensate", compensate)
    scoring: dict[str, Any] = {name: value for name, value in options.items() if name not in planning}
    shown = report.shown(scoring.pop("progress", True))
    show = shown if team.first else False
    given = scoring.pop("units", None)
    if given is not None:
        instance("units", given, types.UnitMap, UNITS)
        check_traced(given, iterations, more, depth)
        unused, depth = unused or given.unused, depth or given.depth
    check_scoring(scoring)
    check_method(method, scoring, loader, inplace)
    samples_of = scoring.get("samples_of")
    with at_work(model, "prune()"):
        first, batches = first_batch(loader)
        known = partial(capture.labelled, first, model, samples_of)
        fit_together(scoring, planning, target, method, known, kept)
        again = not isinstance(loader, Iterator) and not inplace and scoring["gram"]
        tracing = {"more": more, "unused": unused, "depth": depth}
        how = (scoring, tracing, method, given_biases, again, inplace, evaluate, further)
        asked = Asked(target.value, keep, latency, iterations, planning, *how)
        chosen = {**scoring, **planning, **tracing, target.value: keep, "compensate": method, "biases": given_biases}
        chosen |= {"evaluate": evaluate, "budgets": further}
        capture.check_same(team, "prune()", model, {**chosen, "iterations": iterations, "inplace": inplace})
        with report.progress(show) as told:
            run = Run(model, head(first, model, samples_of), batches, loss_fn, asked, team, told)
            for number in range(1, iterations + 1):
                run.step(number, given if number == 1 else None)
            made = run.report()
    if signals:
        return run.current, replace(made, scores=types.signals_alone(run.scores))
    return run.current, replace(made, scores=run.scores) if kept else made
