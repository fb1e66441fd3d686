"""Every public function with every option of the wrong kind: InputError that names it and says what was expected."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk


class Odd:
    """Of no kind that anything takes."""


ARRAYS = {"vector": torch.ones(3), "array": np.ones(3)}
NO_NUMBER = {"text": "3", "bool": True, "none": None, "list": [1], "complex": 1j, "odd": Odd(), "class": int, **ARRAYS}
OUT_OF_RANGE = {"nan": math.nan, "inf": math.inf, "negative": -1}
NOTHING_OF_OURS = {"text": "plan.json", "path": Path("plan.json"), "number": 3, "odd": Odd(), "array": np.ones(3)}


def but(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


@dataclass(frozen=True)
class Kind:
    """What an option takes, by what it does not take; and what a correct value may be."""

    wrong: Mapping[str, Any]
    right: tuple[Any, ...] = ()


WHOLE = Kind(NO_NUMBER | OUT_OF_RANGE | {"half": 0.5, "zero": 0}, (np.int64(2), torch.tensor(2), np.array(2)))
SEED = Kind(NO_NUMBER | OUT_OF_RANGE | {"half": 0.5, "huge": 10**30}, (0, np.int64(2), torch.tensor(2)))
SHARE = Kind(but(NO_NUMBER, "none") | OUT_OF_RANGE | {"zero": 0}, (np.float32(0.75), torch.tensor(0.75)))
REAL = Kind(NO_NUMBER | {"nan": math.nan, "inf": math.inf})
RATE = Kind(NO_NUMBER | OUT_OF_RANGE | {"zero": 0}, (np.float32(0.5), torch.tensor(0.5)))
WEIGHT = Kind(NO_NUMBER | OUT_OF_RANGE, (0, np.float32(0.5)))
FLAG = Kind({"text": "no", "number": 1, "none": None, "list": [], **ARRAYS}, (np.bool_(False), torch.tensor(False)))
BIASES = Kind({"unknown": "yes", "number": 1, "none": None, "list": [True], "odd": Odd(), **ARRAYS}, (np.bool_(False),))
CHOICE = Kind({"unknown": "papr", "number": 3, "bool": True, "odd": Odd(), **ARRAYS})
PATH = Kind({"number": 3, "bool": True, "none": None, "empty": "", "zero byte": "a\0b", "bytes": b"x", **ARRAYS})
NAMES = Kind({"number": 3, "numbers": [3], "none": None, "bool": True, "scalar": torch.tensor(3)})
BATCHES = Kind({"text": "data", "number": 3, "none": None, "function": list, "scalar": torch.tensor(3)})
FUNCTION = Kind({"text": "ce", "number": 3, "class": nn.CrossEntropyLoss, "tensor": torch.ones(3)})
OURS = Kind(NOTHING_OF_OURS)
MODEL = Kind({**NOTHING_OF_OURS, "none": None, "class": nn.Linear})
TEXT = Kind({"number": 3, "list": ["x"]})
MAPPING = Kind({"list": [1], "text": "x", "number": 3, "none": None})
MEASURES = Kind(
    {"list": [1], "text": "x", "numbers": {1: 2.0}, "texts": {"accuracy": "high"}, "nan": {"loss": math.nan}}
)


class Parts:
    """A model and all that is made of it."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)]
        self.model, y = nn.Sequential(*layers).eval(), torch.arange(3).repeat(10)
        self.x = torch.randn(30, 6) + y[:, None]
        self.loader, self.loss = [(self.x, y)], nn.functional.cross_entropy
        self.units = fk.trace(self.model, self.x[:2])
        self.scores = fk.score(
            self.model, self.loader, self.loss, units=self.units, projections=4, gram=True, progress=False
        )
        self.plan = self.scores.plan(keep_params=0.6)
        self.small = fk.apply(self.model, self.plan)
        self.table = fk.latency_table(self.model, self.units, self.x[:2], shares=(1.0,))
        self.folder = folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("parts"))


def masked(plan: fk.Plan, model: Any) -> None:
    with plan.masked(model):
        pass


Base = Callable[[Parts], dict[str, Any]]
BY_KIND = {
    "empty kind": {"neuron": None},
    "text by kind": {"neuron": "4"},
    "half by kind": {"neuron": 0.5},
    "numbers": {3: 4},
}
DIVISORS = Kind({**WHOLE.wrong, **BY_KIND}, (*WHOLE.right, {"neuron": np.int64(2)}, {}))
DROP = Kind({**but(WHOLE.wrong, "none"), **BY_KIND, "empty": {}, "zero of": {"neuron": 0}})
SHARES = Kind(
    {"number": 0.5, "text": "0.5", "none": None, "texts": ["0.5"], "above": [1.5], "zero": [0.0], "nan": [math.nan]}
)
SERVE = Kind({**CHOICE.wrong, "list": ["hf"], "type": "gguf:q9"})
LIMITS = {"round_to": DIVISORS, "min_keep": WHOLE, "max_remove": SHARE, "ignore": NAMES, "serve": SERVE}
PLANNING = {**LIMITS, "allocation": CHOICE, "removal": CHOICE, "protect": Kind({**CHOICE.wrong, "none": None})}
SCORING = {
    "units": OURS, "samples_per_class": WHOLE, "projections": WHOLE, "seed": SEED, "class_of": FUNCTION,
    "samples_of": FUNCTION, "recipe": CHOICE, "reduction": CHOICE, "pairs": CHOICE, "loss_reduction": CHOICE,
    "backend": CHOICE, "memory_budget": Kind(but(WHOLE.wrong, "none")), "gram": FLAG, "progress": FLAG,
    "walk": CHOICE, "walk_folder": Kind(but(PATH.wrong, "none")),
}  # fmt: skip
FUNCTIONS: dict[str, tuple[Callable[..., Any], Base, dict[str, Kind]]] = {
    "trace": (
        fk.trace,
        lambda p: {"model": p.model, "example_inputs": p.x[:2], "verify": False},
        {"model": MODEL, "more": Kind({**BATCHES.wrong, "tensor": torch.ones(2, 6)}), "unused": NAMES, "verify": FLAG,
         "seed": SEED, "time_limit": Kind(but(NO_NUMBER, "none") | {"nan": math.nan, "zero": 0})},
    ),
    "score": (
        fk.score,
        lambda p: {"model": p.model, "loader": p.loader, "loss_fn": p.loss, "units": p.units, "progress": False},
        {"model": MODEL, "loader": BATCHES, "loss_fn": FUNCTION, **SCORING},
    ),
    "Scores.plan": (
        fk.Scores.plan,
        lambda p: {"self": p.scores, "keep_params": 0.75},
        {"keep_params": SHARE, "drop": DROP, "latency": OURS, **PLANNING},
    ),
    "UnitMap.plan": (
        fk.UnitMap.plan,
        lambda p: {"self": p.units, "keep_params": 0.75},
        {"keep_params": SHARE, "drop": DROP, "seed": SEED, **LIMITS},
    ),
    "apply": (
        fk.apply,
        lambda p: {"model": fk.apply(p.model, p.units.plan(keep_params=1.0)), "plan": p.plan},
        {"model": MODEL, "plan": Kind({**OURS.wrong, "none": None}), "scores": OURS, "compensate": CHOICE,
         "loader": Kind(but(BATCHES.wrong, "none")), "biases": BIASES, "inplace": FLAG, "backend": CHOICE},
    ),
    "prune": (
        fk.prune,
        lambda p: {"model": p.model, "loader": p.loader, "loss_fn": p.loss, "keep_params": 0.75, "progress": False},
        {"model": MODEL, "loader": BATCHES, "loss_fn": FUNCTION, "keep_params": SHARE, "drop": DROP, "latency": OURS,
         "iterations": WHOLE, "compensate": CHOICE, "biases": BIASES, "inplace": FLAG, "more": BATCHES, "unused": NAMES,
         "keep_scores": FLAG, "evaluate": FUNCTION, "budgets": SHARES, **PLANNING, **SCORING,
         "gram": Kind(but(FLAG.wrong, "none"))},
    ),
    "recalibrate": (
        fk.recalibrate,
        lambda p: {"model": p.model, "loader": p.loader},
        {"model": MODEL, "loader": BATCHES},
    ),
    "heal": (
        fk.heal,
        lambda p: {"small": copy.deepcopy(p.small), "model": p.model, "loader": p.loader, "steps": 2,
                   "progress": False},
        {"small": MODEL, "model": MODEL, "loader": BATCHES, "loss_fn": FUNCTION, "steps": WHOLE, "accumulate": WHOLE,
         "lr": RATE, "temperature": RATE, "clip": Kind(but(RATE.wrong, "none")), "weight_decay": WEIGHT,
         "loss_weight": WEIGHT, "hidden": Kind(but(WEIGHT.wrong, "none")), "divergence": CHOICE,
         "hidden_at": Kind(but(NAMES.wrong, "none")), "warmup": Kind(but(WHOLE.wrong, "none", "zero")),
         "every": Kind(but(WHOLE.wrong, "none")), "gradient_checkpointing": FLAG, "seed": SEED, "progress": FLAG,
         "checkpoint": Kind(but(PATH.wrong, "none"))},
    ),
    "summarise": (
        fk.summarise,
        lambda p: {"plan": p.plan, "scores": p.scores},
        {"plan": OURS, "scores": OURS, "title": TEXT, "before": MEASURES, "after": MEASURES,
         "healed": MEASURES, "stages": MEASURES,
         "corrected": Kind({"text": "x", "numbers": [1], "number": 1}), "compensation": TEXT, "small": OURS,
         "timing": Kind(but(MAPPING.wrong, "none")), "environment": Kind(but(MAPPING.wrong, "none")),
         "curve": Kind({"text": "x", "numbers": [1], "number": 1, "none": None}),
         "biases": TEXT, "flags": Kind({"text": "x", "numbers": [1], "number": 1}), "unplaced": NAMES},
    ),
    "sweep": (
        fk.sweep,
        lambda p: {"model": p.model, "loader": p.loader, "loss_fn": p.loss, "budgets": (0.75,), "methods": "l1",
                   "evaluate": lambda model: 1.0, "units": p.units, "progress": False},
        {"model": MODEL, "loader": BATCHES, "loss_fn": FUNCTION, "budgets": SHARES, "by": CHOICE, "compensate": CHOICE,
         "methods": Kind({"number": 3, "none": None, "texts": ["l3"], "odd": [Odd()]}), "biases": BIASES,
         "evaluate": Kind({**FUNCTION.wrong, "none": None}), "seeds": Kind({"number": 3, "text": "0", "half": [0.5]}),
         "on_row": FUNCTION, "more": BATCHES, "unused": NAMES, "depth": FLAG,
         **LIMITS, **{name: kind for name, kind in SCORING.items() if name not in ("seed", "gram")},
         "gram": Kind(but(FLAG.wrong, "none"))},
    ),
    "UnitMap.weights": (
        fk.UnitMap.weights,
        lambda p: {"self": p.units, "model": p.model, "group": "0"},
        {"model": MODEL, "group": Kind({"unknown": "none", "number": 3, "none": None, "odd": Odd()})},
    ),
    "Scores.to_pandas": (
        fk.Scores.to_pandas,
        lambda p: {"self": p.scores},
        {"plan": Kind({**NOTHING_OF_OURS})},
    ),
    "measured": (
        fk.measured,
        lambda p: {"evaluate": lambda model: 1.0, "model": p.model},
        {"evaluate": Kind({**FUNCTION.wrong, "none": None}), "model": MODEL},
    ),
    "latency": (
        fk.latency,
        lambda p: {"model": p.model, "example_inputs": p.x[:2]},
        {"model": MODEL, "example_inputs": OURS},
    ),
    "compare_latency": (
        fk.compare_latency,
        lambda p: {"model": p.model, "small": p.small, "example_inputs": p.x[:2]},
        {"model": MODEL, "small": MODEL, "example_inputs": OURS},
    ),
    "latency_table": (
        fk.latency_table,
        lambda p: {"model": p.model, "units": p.units, "example_inputs": p.x[:2], "shares": (1.0,)},
        {"model": MODEL, "units": OURS, "example_inputs": OURS, "cache": Kind(but(PATH.wrong, "none")),
         "shares": Kind({"number": 0.5, "text": "half", "texts": ["half"], "above": [1.5], "zero": [0.0]}),
         "round_to": DIVISORS, "seed": SEED},
    ),
    "plan_latency": (
        fk.plan_latency,
        lambda p: {"scores": p.scores, "model": p.model, "example_inputs": p.x[:2], "keep_latency": 1.0,
                   "latency": p.table, "looks": 1},
        {"scores": OURS, "model": MODEL, "example_inputs": OURS, "keep_latency": SHARE, "latency": OURS, "looks": WHOLE,
         "within": REAL},
    ),
    "masked": (masked, lambda p: {"plan": p.plan, "model": p.model}, {"model": MODEL}),
    "save_pruned": (
        fk.save_pruned,
        lambda p: {"small": p.small, "plan": p.plan, "folder": p.folder / "small"},
        {"small": MODEL, "plan": OURS, "folder": PATH, "report": Kind(but(OURS.wrong, "none")),
         "build": Kind({"number": 1, "numbers": [1], "no name": "resnet18", "no entry": {"arguments": {}}})},
    ),
    "load_pruned": (
        fk.load_pruned,
        lambda p: {"fresh_model": p.model, "folder": "x"},
        {"fresh_model": MODEL, "folder": PATH},
    ),
    "load_pruned by itself": (
        lambda folder, **options: fk.load_pruned(folder, **options),
        lambda p: {"folder": p.folder / "x"},
        {"trust": Kind(FLAG.wrong), "device": Kind({"text": "nowhere", "numbers": [1], "number": 1.5})},
    ),
    "picture": (
        fk.picture,
        lambda p: {"scores": p.scores, "plan": p.plan, "path": p.folder / "x.png"},
        {"scores": OURS, "plan": OURS, "path": PATH},
    ),
    "Scores.save": (fk.Scores.save, lambda p: {"self": p.scores, "path": p.folder / "s"}, {"path": PATH}),
    "Plan.save": (fk.Plan.save, lambda p: {"self": p.plan, "path": p.folder / "p"}, {"path": PATH}),
    "Report.save": (fk.Report.save, lambda p: {"self": fk.summarise(p.plan), "path": p.folder / "r"}, {"path": PATH}),
    "Report.with_healed": (
        fk.Report.with_healed,
        lambda p: {"self": fk.summarise(p.plan), "measures": {"loss": 1.0}},
        {"measures": Kind(but(MEASURES.wrong, "none")), "small": OURS},
    ),
    "Scores.load": (lambda path: fk.Scores.load(path), lambda p: {}, {"path": PATH}),
    "Plan.load": (lambda path: fk.Plan.load(path), lambda p: {}, {"path": PATH}),
    "Report.load": (lambda path: fk.Report.load(path), lambda p: {}, {"path": PATH}),
}  # fmt: skip
CASES = [(name, option) for name, (_, _, options) in FUNCTIONS.items() for option in options]


@pytest.mark.parametrize(("name", "option"), CASES, ids=[f"{name}-{option}" for name, option in CASES])
def test_what_is_of_the_wrong_kind_is_refused(name: str, option: str, parts: Parts) -> None:
    function, base, options = FUNCTIONS[name]
    for value in options[option].wrong.values():
        with pytest.raises(fk.InputError) as caught:
            function(**{**base(parts), option: value})
        said = str(caught.value)
        assert option in said or (option == "example_inputs" and "example inputs" in said), said
        assert "expected" in said or "give" in said or "pass" in said, said


SLOW = ("prune", "latency_table", "plan_latency", "sweep")  # a second each; they hand most of their options on
TAKEN = [(n, o) for n, o in CASES if FUNCTIONS[n][2][o].right and (n not in SLOW or o in ("keep_params", "round_to"))]


@pytest.mark.parametrize(("name", "option"), TAKEN)
def test_numbers_of_other_libraries_are_taken(name: str, option: str, parts: Parts) -> None:
    function, base, options = FUNCTIONS[name]
    for value in options[option].right:
        function(**{**base(parts), option: value})


def test_unknown_keywords_are_a_type_error(parts: Parts) -> None:
    for name in ("trace", "score", "Scores.plan", "UnitMap.plan", "apply", "prune", "plan_latency", "heal", "sweep"):
        function, base, _ = FUNCTIONS[name]
        with pytest.raises(TypeError, match="colour"):
            function(**base(parts), colour="red")


def test_scores_from_the_file_of_a_plan(parts: Parts, tmp_path: Path) -> None:
    parts.plan.save(tmp_path / "plan.json")
    parts.scores.save(tmp_path / "scores.safetensors")
    with pytest.raises(fk.ArtefactError):
        fk.Scores.load(tmp_path / "plan.json")
    with pytest.raises(fk.ArtefactError):
        fk.Plan.load(tmp_path / "scores.safetensors")
    with pytest.raises(fk.InputError, match=r"plan='.*plan.json' is a str; expected a Plan, .*Plan.load"):
        fk.apply(parts.model, str(tmp_path / "plan.json"))  # type: ignore[arg-type]
