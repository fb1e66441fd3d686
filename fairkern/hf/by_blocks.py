"""A folder pruned block by block: its model is never there as a whole, and what is left is written as it is done."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairkern import artefacts, report, types
from fairkern.allocate import Target
from fairkern.api import trace
from fairkern.artefacts.folders import copy_beside, said_of
from fairkern.artefacts.writing import new_folder
from fairkern.capture import LossReduction, Pairs, Recipe, Reduction, Settings
from fairkern.capture.keeping import check_folder
from fairkern.compact import apply
from fairkern.compensate import Compensation
from fairkern.compensate.intercepts import Biases, Places, fulfil, give_biases
from fairkern.errors import InputError
from fairkern.hf.absent import Absent, absent
from fairkern.hf.card import CARD, card
from fairkern.hf.file_names import files_of, named_if_said
from fairkern.hf.folder import Folder, first_line
from fairkern.hf.measures import Likelihood, cache_bytes_per_token
from fairkern.hf.needed import transformers
from fairkern.hf.output import PLAN, REPORT, as_asked, write_config
from fairkern.hf.sequences import Batch, Data
from fairkern.hf.verify import verify
from fairkern.model.in_use import at_work
from fairkern.options import UNITS, choose, instance, names
from fairkern.options import place as place_of
from fairkern.plans.serving import YES, Server
from fairkern.pruning.counted import SHARE, counted
from fairkern.pruning.options import check_method, fit_together
from fairkern.report import save_report
from fairkern.results import Plan, Report, Scores
from fairkern.summary import summarise
from fairkern.walk.boundaries import Boundaries, kept_batches
from fairkern.walk.cutting import Intercepts, cut_segments, intercepts
from fairkern.walk.scoring import by_blocks, divided
from fairkern.walk.segments import Division
from fairkern.walk.sides import Sides, Way
from fairkern.walk.traversal import Traversal
from fairkern.walk.writing import SegmentWriter

_SCRATCH = ".walk"
_PROMPT = 16  # tokens, of which the last is cached
_FEW = 2  # samples that are traced on, as where the model is there
_LEFT_OUT = {
    "tokens_per_second": "generating takes the whole model at once",
    "latency_ms": "timing takes the whole model at once",
}


@dataclass(frozen=True)
class Request:
    """What `hf.prune` was asked for, checked. `prepared`: the data for a model."""

    source: Folder
    target: Path
    dtype: torch.dtype | None
    device: torch.device
    budget: Target
    keep: Any
    planning: Mapping[str, Any]
    options: Mapping[str, Any]
    prepared: Callable[[nn.Module], Data]


def prune(asked: Request, choices: Callable[[Data, tuple[str, ...]], dict[str, Any]]) -> Report:
    """The folder, whole or not at all. `choices`: what the report says of data and weights that were ignored.

    Raises InputError for a model that is not a row of blocks, and what scoring, planning and writing raise.
    """
    run = _Run(asked)
    with said_of(asked.target), new_folder(asked.target) as place, ExitStack() as stack:
        scratch = place / _SCRATCH  # it goes with the new folder, whatever becomes of this process
        if run.folder is not None:
            os.makedirs(run.folder, exist_ok=True)
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".fairkern-walk-", dir=run.folder)))
        with run.timed("load"):
            there = stack.enter_context(absent(asked.source, asked.dtype, asked.device))
            data = asked.prepared(there.bare)
        stack.enter_context(at_work(there.model, "prune()"))
        with run.timed("trace"):
            units = run.traced(there, data)
        with run.timed("score"):
            division = divided(there.model, data.calibration, units, run.settings, there.weights, None)
            scores = run.scored(there, units, division, data, scratch)
        with run.timed("plan"):
            plan = run.planned(there, scores)
        with run.timed("cut"):
            cut = run.cut(there, scores, plan, division, data, place, scratch)
        if run.folder is None:
            shutil.rmtree(scratch)
        done = run.report(there, scores, plan, cut, data, choices(data, there.ignored))
        copy_beside(asked.source.path, place, code=asked.source.own_code)
        artefacts.save_plan(plan, place / PLAN)
        save_report(done, place / REPORT)
        said = card(cut.small, plan, asked.source, done, untrained=True)
        (place / CARD).write_text(said, encoding="utf-8")
        as_asked(place)
        verify(place, cut.small, asked.source.trust_remote_code, headers=True)
    return replace(done, scores=types.signals_alone(scores))


@dataclass(frozen=True)
class _Cut:
    """`small`: what is left, on meta. `corrected`: without values. `likelihoods`: of what was held out, by way."""

    small: Any
    method: Compensation
    said: Intercepts
    corrected: Sequence[Any]
    likelihoods: Mapping[Way, Likelihood]


class _Run:
    """The stages of one call."""

    def __init__(self, asked: Request) -> None:
        self._asked, self._stages = asked, dict[str, float]()
        given, given_units = (asked.options.get(name) for name in ("compensate", "units"))
        self._method = None if given is None else choose(Compensation, "compensate", given)
        scoring = {name: asked.options[name] for name in (*_PLAIN, *_CHOSEN) if name in asked.options}
        check_method(self._method, scoring, (), inplace=False)
        fit_together(scoring, asked.planning, asked.budget, self._method, labelled=lambda: False)
        self.settings = _settings(scoring)
        if given_units is not None:
            instance("units", given_units, types.UnitMap, UNITS)
        self._biases = Biases.given(asked.options.get("biases", "auto"))
        self._unused = names("unused", asked.options.get("unused", ()), "['mask_token']")
        folder = asked.options.get("walk_folder")
        self.folder = None if folder is None else place_of("walk_folder", folder)
        self._progress = report.shown(asked.options.get("progress", True))
        check_folder(self.settings.keep_moments)  # better known before an hour's work

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._stages[stage] = time.perf_counter() - started

    def traced(self, there: Absent, data: Data) -> types.UnitMap:
        given = self._asked.options.get("units")
        if given is not None:
            return given
        few = {name: tensor[:_FEW] for name, tensor in data.calibration[0].items()}  # with values: a proof runs on them
        return trace(copy.deepcopy(there.bare).float(), few, unused=self._unused, verify="sibling")

    def scored(self, there: Absent, units: types.UnitMap, division: Division, data: Data, scratch: Path) -> Scores:
        with report.progress(self._progress) as on_batch:
            kept = self.settings.keep_moments
            kept = str(scratch / "moments") if kept is True and self.settings.gram else kept
            settings = replace(self.settings, on_batch=on_batch, keep_moments=kept)
            how: dict[str, Any] = {"folder": scratch, "weights": there.weights, "division": division}
            return Scores.of(by_blocks(there.model, data.calibration, None, units, settings, **how))

    def planned(self, there: Absent, scores: Scores) -> Plan:
        budget, keep, planning = self._asked.budget.value, self._asked.keep, self._asked.planning
        method = self._method or (Compensation.SEQUENTIAL if scores.moments else Compensation.NONE)

        def solve(share: float) -> Plan:
            return scores.plan(**{budget: share, **planning})

        own = (there.bare, scores, method, self._biases)
        plan = counted(solve, keep, *own) if budget == SHARE else solve(keep)
        if plan.result["serves"][Server.HF.value] != YES:
            raise InputError(f"what is left cannot be written by blocks: {plan.result['serves'][Server.HF.value]}")
        return named_if_said(plan, self._asked.source)

    def cut(
        self, there: Absent, scores: Scores, plan: Plan, division: Division, data: Data, place: Path, scratch: Path
    ) -> _Cut:
        method = self._method or (Compensation.SEQUENTIAL if scores.moments else Compensation.NONE)
        places = Places(there.bare, plan, scores.units, self._biases)
        said = intercepts(there.bare, plan, scores, method, places)
        small = apply(there.bare, plan)
        give_biases(small, plan, said.given)
        fulfil(small, plan, said.flags)
        write_config(small, place, self._asked.source)
        stored = replace(plan, files=files_of(there.bare, None))  # as transformers writes it, whatever it read
        zeros = [name for flag in said.flags for name in flag.biases]
        told = {way: Likelihood() for way in Way}

        def hear(way: Way, number: int, output: Any) -> None:
            told[way].add(output.logits, data.held_out[number]["labels"].to(output.logits.device))

        with ExitStack() as stack:
            stores = [stack.enter_context(Boundaries(scratch)) for _ in range(3)]
            ways = []
            for store, batches in zip(stores, (data.calibration, _unlabelled(data.held_out)), strict=False):
                ways.append(Traversal(there.model, scores.units, division, store, self.settings, there.weights))
                ways[-1].begin(kept_batches(store, batches))
            writer = stack.enter_context(SegmentWriter(place, there.bare, small, stored, zeros))
            found = cut_segments(Sides(ways, stores[-1]), plan, scores, method, places, writer.write, hear)
            writer.finish()
        return _Cut(small, method, said, found, told)

    def report(self, there: Absent, scores: Scores, plan: Plan, cut: _Cut, data: Data, more: dict[str, Any]) -> Report:
        measures, left_out = [], dict(_LEFT_OUT)
        for way, model in zip(Way, (there.bare, cut.small), strict=True):
            found = {"perplexity": cut.likelihoods[way].perplexity}
            cache = _cache(model, data, left_out)
            measures.append({**found, **({} if cache is None else {"cache_bytes_per_token": cache})})
        made = summarise(
            plan,
            scores=scores,
            title=f"{type(there.model).__name__}, pruned",
            before=measures[0],
            after=measures[1],
            stages=self._stages,
            corrected=cut.corrected,
            small=cut.small,
            compensation=cut.method.value,
            biases=cut.said.rule,
            flags=[flag.change for flag in cut.said.flags],
            unplaced=cut.said.unplaced,
        )
        more["walk"] = {**more["walk"], "left_out": left_out}
        versions = {**made.versions, "transformers": transformers().__version__}
        return replace(made, choices={**made.choices, **more}, versions=versions)


_PLAIN = (
    "samples_per_class",
    "projections",
    "seed",
    "samples_of",
    "backend",
    "memory_budget",
    "class_of",
    "gram",
    "keep_moments",
    "max_remove",
)
_CHOSEN = ("recipe", "reduction", "pairs", "loss_reduction")


def _settings(scoring: Mapping[str, Any]) -> Settings:
    """As `fk.score` makes them."""
    kind = choose(Recipe, "recipe", scoring.get("recipe", "default"))
    default = Reduction.SIGNED if kind is Recipe.PAPER else Reduction.PER_SAMPLE
    reduction = scoring.get("reduction")
    return Settings(
        recipe=kind,
        reduction=default if reduction is None else choose(Reduction, "reduction", reduction),
        pairs=choose(Pairs, "pairs", scoring.get("pairs", "max")),
        loss_reduction=choose(LossReduction, "loss_reduction", scoring.get("loss_reduction", "mean")),
        **{name: scoring[name] for name in _PLAIN if name in scoring},
    )


def _unlabelled(batches: Sequence[Batch]) -> list[Batch]:
    return [{name: tensor for name, tensor in batch.items() if name != "labels"} for batch in batches]


def _cache(model: Any, data: Data, left_out: dict[str, str]) -> float | None:
    """Bytes of cache per token, by shapes alone; None where the model asks for values meanwhile, which is said."""
    try:
        return cache_bytes_per_token(model, data.calibration[0]["input_ids"][0][:_PROMPT])
    except RuntimeError as error:
        left_out["cache_bytes_per_token"] = f"a run without values asks for some ({first_line(error)})"
        return None
