"""Whatever has been entered around a stage: it gives what it gives without, or says what it cannot be called within."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fairkern as fk
from fairkern.surroundings import device_of_new_tensors

LOSS = nn.CrossEntropyLoss()


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.drop, self.f1, self.f2 = nn.Dropout(0.1), nn.Linear(12, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b2(self.c2(torch.relu(self.b1(self.c1(x))))))
        return self.f2(self.drop(torch.relu(self.f1(x.mean((2, 3))))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)
        self.fc1, self.fc2, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 4)
        self.own = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, tokens, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, -1))
        x = x + self.own(x, x, x, need_weights=False)[0]
        x = x + self.fc2(nn.functional.gelu(self.fc1(x)))
        return self.head(x.mean(1))


@dataclass
class Given:
    """A model, data, and what the stages before have made of them."""

    model: nn.Module
    fresh: Callable[[], nn.Module]
    loader: list[tuple[Tensor, Tensor]]
    folder: Path
    made: dataclasses.InitVar[Given | None] = None
    units: fk.UnitMap = field(init=False)
    scores: fk.Scores = field(init=False)
    plan: fk.Plan = field(init=False)
    small: nn.Module = field(init=False)
    plain: dict[str, Any] = field(init=False)

    def __post_init__(self, made: Given | None) -> None:
        if made is not None:  # with another model
            self.units, self.scores, self.plan, self.small, self.plain = (
                made.units,
                made.scores,
                made.plan,
                made.small,
                made.plain,
            )
            return
        self.units = fk.trace(self.model, self.x)
        self.scores = fk.score(self.model, self.loader, LOSS, units=self.units, gram=True, progress=False)
        self.plan = self.scores.plan(keep_params=0.5)
        self.small = fk.apply(self.model, self.plan)
        fk.save_pruned(self.small, self.plan, self.folder / "pruned")
        self.scores.save(self.folder / "scores")
        self.plan.save(self.folder / "plan")
        self.plain = {name: told(stage(self)) for name, stage in STAGES.items()}

    @property
    def x(self) -> Tensor:
        return self.loader[0][0]

    @property
    def copy(self) -> nn.Module:
        """Of ordinary tensors, also in inference mode."""
        with torch.inference_mode(False), unset_fake_temporarily():
            return copy.deepcopy(self.model)


def of_map(units: Any) -> Any:
    return (
        [(g.name, g.units, g.frozen, [a.positions for a in g.axes]) for g in units.groups],
        units.proven,
        units.params,
    )


def of_scores(scores: Any) -> Any:
    moments = {name: (m.gram, m.total, m.count) for name, m in scores.moments.items()}
    return dict(scores.signals), dict(scores.means), moments, dict(scores.grids)


def of_plan(plan: Any) -> Any:
    costs = {name: plan.result[name] for name in ("params_after", "flops_after", "units_removed")}
    return [(a.axis, a.removed) for a in plan.axes], costs


def of_model(model: nn.Module) -> Any:
    """The tensors by name, each a plain one on the CPU."""
    state = model.state_dict()
    assert all(t.device.type == "cpu" and not t.is_inference() for t in state.values())
    return {name: t.detach().clone() for name, t in state.items()}, [p.requires_grad for p in model.parameters()]


def told(value: Any) -> Any:
    """What a stage gave, as arrays and tensors."""
    kinds = {fk.UnitMap: of_map, fk.Scores: of_scores, fk.Plan: of_plan, nn.Module: of_model}
    if isinstance(value, tuple):
        return tuple(map(told, value))
    return next((of(value) for kind, of in kinds.items() if isinstance(value, kind)), value)


def masked(given: Given) -> Any:
    with given.plan.masked(given.model):
        within = of_model(given.model)
    return within, of_model(given.model)


def recalibrated(given: Given) -> Any:
    model = given.copy
    try:
        fk.recalibrate(model, given.loader)
    except fk.InputError as error:
        if "no BatchNorm" not in str(error):
            raise
    return model


def healed(given: Given) -> Any:
    with torch.inference_mode(False), unset_fake_temporarily():
        small = copy.deepcopy(given.small)
    done = fk.heal(small, given.model, given.loader, steps=3, lr=1e-2, progress=False)
    return small, done.losses, done.hidden


def saved(given: Given) -> Any:
    fk.save_pruned(given.small, given.plan, given.folder / "again")
    return fk.load_pruned(given.model, given.folder / "again"), (given.folder / "again" / "plan.json").read_bytes()


def files(given: Given) -> Any:
    for made, name in ((given.scores, "scores"), (given.plan, "plan")):
        made.save(given.folder / f"{name} again")
    scores, plan = fk.Scores.load(given.folder / "scores again"), fk.Plan.load(given.folder / "plan again")
    return scores, plan, (given.folder / "plan again").read_bytes()


def pruned(given: Given) -> Any:
    small, report = fk.prune(given.model, given.loader, LOSS, keep_params=0.5, progress=False)
    return small, report.plan, report.choices["compensation"]


STAGES: dict[str, Callable[[Given], Any]] = {
    "trace": lambda g: fk.trace(g.model, g.x),
    "trace without proof": lambda g: fk.trace(g.model, g.x, verify=False),
    "explain": lambda g: g.units.explain(),
    "score": lambda g: fk.score(g.model, g.loader, LOSS, units=g.units, gram=True, progress=False),
    "score by class": lambda g: fk.score(
        g.model,
        g.loader,
        LOSS,
        recipe="paper",
        reduction="per_class",
        projections=4,
        backend="reference",
        progress=False,
    ),
    "plan": lambda g: g.scores.plan(keep_params=0.5),
    "plan by tolerance": lambda g: g.scores.plan(tod=0.3),
    "plan at random": lambda g: g.units.plan(keep_flops=0.5),
    "masked": masked,
    "apply": lambda g: fk.apply(g.model, g.plan),
    "apply in place": lambda g: fk.apply(g.copy, g.plan, inplace=True),
    "apply, means": lambda g: fk.apply(g.model, g.plan, compensate="mean", scores=g.scores),
    "apply, least squares": lambda g: fk.apply(g.model, g.plan, compensate="least_squares", scores=g.scores),
    "apply, sequential": lambda g: fk.apply(g.model, g.plan, compensate="sequential", scores=g.scores, loader=g.loader),
    "apply, joint": lambda g: fk.apply(
        g.model, g.plan, compensate="joint", scores=g.scores, loader=g.loader, loss_fn=LOSS
    ),
    "recalibrate": recalibrated,
    "prune": pruned,
    "heal": healed,
    "save": saved,
    "load": lambda g: fk.load_pruned(g.model, g.folder / "pruned"),
    "files": files,
    # the environment of a report says how many threads there are
    "summarise": lambda g: replace(fk.summarise(g.plan, scores=g.scores, small=g.small), environment={}).table(),
}


class Seen(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """What is not written is NaN then."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


AROUND: dict[str, Callable[[], Any]] = {
    "device context": lambda: torch.device("meta"),
    "a device that is not there": lambda: torch.device("cuda:0"),
    "default device": lambda: default_device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": deterministic,
    "threads": lambda: threads(2),
    "function mode": Seen,
    "dispatch mode": Dispatched,
    "flops": lambda: FlopCounterMode(display=False),
    "fake tensors": FakeTensorMode,
    "saved on the CPU": torch.autograd.graph.save_on_cpu,
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
}
# The model itself runs under autocast, as its caller has it: tests/test_autocast.py.
OTHERWISE = {("autocast", name) for name in ("score", "score by class", "prune", "recalibrate", "heal")}
# Torch adds up gradients of weights in as many parts as there are threads.
OTHERWISE |= {("threads", "heal"), ("threads", "apply, joint")}


# Of which nothing could be seen there: the model is run by whoever masks it.
REFUSED = {("fake tensors", "masked")}


def same(expected: Any, found: Any) -> bool:
    if isinstance(expected, dict):
        return list(expected) == list(found) and all(same(expected[key], found[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return len(expected) == len(found) and all(map(same, expected, found))
    if isinstance(expected, Tensor):
        return expected.dtype == found.dtype and expected.device == found.device and torch.equal(expected, found)
    if isinstance(expected, np.ndarray):
        return expected.dtype == found.dtype and np.array_equal(expected, found, equal_nan=True)
    return bool(expected == found)


@pytest.fixture(scope="module", params=[Convolutions, Attention], ids=lambda kind: kind.__name__.lower())
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Given:
    torch.manual_seed(0)
    model = request.param().eval()
    x = torch.randn(24, 3, 5, 5) if request.param is Convolutions else torch.randn(24, 5, 16)
    loader = list(zip(x.split(12), (torch.arange(24) % 4).split(12), strict=True))
    return Given(model, lambda: request.param().eval(), loader, tmp_path_factory.mktemp("files"))


FOR_BOTH = ("a device that is not there", "bfloat16", "inference mode", "autocast", "function mode", "dispatch mode")


@pytest.mark.parametrize(
    ("given", "around"),
    [*((Convolutions, around) for around in AROUND), *((Attention, around) for around in FOR_BOTH)],
    indirect=["given"],
)
def test_the_same_within(given: Given, around: str) -> None:
    for name, stage in STAGES.items():
        if (around, name) in OTHERWISE:
            continue
        refused = (around, name) in REFUSED
        with AROUND[around](), pytest.raises(fk.InputError) if refused else contextlib.nullcontext():
            found = stage(given)
        assert refused or same(given.plain[name], told(found)), name


def nothing_but(run: Callable[[], Any]) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        run()
        return x.sum()

    return function


X = torch.ones(2, 3)
WITHOUT_VALUES: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "vmap": lambda run: torch.func.vmap(nothing_but(run))(X),
    "grad": lambda run: torch.func.grad(nothing_but(run))(X),
    "jvp": lambda run: torch.func.jvp(nothing_but(run), (X,), (X,)),
    "functionalize": lambda run: torch.func.functionalize(nothing_but(run))(X),
    "make_fx": lambda run: make_fx(nothing_but(run))(X),
    "jit.trace": lambda run: torch.jit.trace(nothing_but(run), X),
}
WITHOUT_TENSORS = {"explain", "summarise"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("around", WITHOUT_VALUES)
def test_refused_where_tensors_have_no_values(given: Given, around: str) -> None:
    before = of_model(given.model)
    stages = {
        **STAGES,
        "apply in place": lambda g: fk.apply(g.model, g.plan, inplace=True),
        "recalibrate": lambda g: fk.recalibrate(g.model, g.loader),
        "heal": lambda g: fk.heal(g.small, g.model, g.loader, steps=1),
        "latency": lambda g: fk.latency(g.model, g.x),
        "compare_latency": lambda g: fk.compare_latency(g.model, g.small, g.x),
        "latency_table": lambda g: fk.latency_table(g.model, g.units, g.x),
        "plan_latency": lambda g: fk.plan_latency(g.scores, g.model, g.x, 0.5),
        "picture": lambda g: fk.picture(g.scores, g.plan, g.folder / "picture"),
    }
    for name, stage in stages.items():
        if name not in WITHOUT_TENSORS:
            with pytest.raises(fk.InputError, match="call it outside of that"):
                WITHOUT_VALUES[around](lambda stage=stage: stage(given))
    assert same(before, of_model(given.model))


@pytest.mark.parametrize("given", [Convolutions], indirect=True)
def test_a_compiled_function_calls_stages_as_they_are(given: Given) -> None:
    model = given.model

    def function(x: Tensor) -> Any:
        units = fk.trace(model, x)
        with given.plan.masked(model):
            within = model(x).detach()
        small = fk.apply(model, given.plan, compensate="sequential", scores=given.scores, loader=given.loader)
        return units, small, within

    torch._dynamo.reset()
    try:
        units, small, within = torch.compile(function, backend="eager")(given.x)
        assert same(given.plain["trace"], of_map(units))
        assert same(given.plain["apply, sequential"], of_model(small))
        with given.plan.masked(model):
            assert torch.equal(model(given.x), within)
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("given", [Convolutions], indirect=True)
def test_latency(given: Given) -> None:
    for around in ("device context", "inference mode"):
        with AROUND[around]():
            table = fk.latency_table(given.model, given.units, given.x.clone(), shares=(1.0, 0.5))
            assert fk.latency(given.model, given.x.clone()) > 0
            plan = fk.plan_latency(given.scores, given.model, given.x.clone(), 1.0, latency=table, looks=1)
        assert len(plan.result["latency_looks"]) == 1


def test_data_made_in_inference_mode(given: Given) -> None:
    with torch.inference_mode():
        loader = [(x.clone(), y.clone()) for x, y in given.loader]
        model = nn.Sequential(nn.ReLU(inplace=True), given.model)  # writes to what it is given
    x = loader[0][0]
    expected = x.clone()
    for around in (torch.inference_mode, contextlib.nullcontext):
        with around():
            assert same(given.plain["trace"], of_map(fk.trace(given.model, x)))
            found = fk.score(given.model, loader, LOSS, units=given.units, gram=True, progress=False)
            assert same(given.plain["score"], of_scores(found))
            small = fk.apply(given.model, given.plan, compensate="sequential", scores=found, loader=loader)
            assert same(given.plain["apply, sequential"], of_model(small))
            assert fk.trace(model, x).proven
            assert fk.latency(model, x) > 0
            assert torch.equal(x, expected)


def test_a_model_made_in_inference_mode(given: Given) -> None:
    with torch.inference_mode():
        model = copy.deepcopy(given.model)
        other = dataclasses.replace(given, model=model, made=given)
    takes = {
        "trace",
        "trace without proof",
        "score",
        "score by class",
        "prune",
        "heal",
        "masked",
        "apply",
        "apply, sequential",
        "apply, joint",
    }
    for name, stage in STAGES.items():
        if name in takes:
            with pytest.raises(fk.InputError, match=r"made in torch\.inference_mode"):
                stage(other)
    for name in ("plan", "load", "save", "files"):
        assert same(given.plain[name], told(STAGES[name](other))), name
    with torch.inference_mode():
        whole = model(given.x)
        with given.plan.masked(model):
            masked = model(given.x)
        assert torch.equal(model(given.x), whole)
        assert torch.equal(masked, given.small(given.x)) or (masked - given.small(given.x)).abs().max() < 1e-5
        with torch.inference_mode(False):  # as the error says
            model = copy.deepcopy(model)
        assert same(given.plain["prune"], told(pruned(dataclasses.replace(given, model=model, made=given))))


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_a_fresh_model_is_made_within(given: Given, where: str) -> None:
    with torch.device(where):
        loaded = fk.load_pruned(given.fresh(), given.folder / "pruned")
    assert same(given.plain["load"], of_model(loaded))


SEEN: set[tuple[str, torch.dtype]] = set()


class Making(nn.Module):
    """Makes an index in its forward where the default says, if it is there, and writes down what the defaults are."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        default = device_of_new_tensors()
        SEEN.add((str(default), torch.get_default_dtype()))
        places = torch.arange(x.shape[1], device="cpu" if default.type == "cuda" else None)
        return self.last(torch.relu(self.first(x + self.table(places))).mean(1))


def with_places() -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(24, 5, 6, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split(12), (torch.arange(24) % 4).split(12), strict=True))


@pytest.mark.parametrize("compensate", ["least_squares", "sequential"])
def test_the_model_itself_has_the_defaults_in_every_thread(compensate: str) -> None:
    """On no device at all: whatever is made there is an error."""
    model, loader = Making().eval(), with_places()
    SEEN.clear()
    with torch.device("cuda:0"), default_dtype(torch.float64):
        fk.prune(model, loader, LOSS, keep_params=0.5, compensate=compensate, progress=False)
    assert {("cuda:0", torch.float64)} == SEEN


def test_a_model_that_makes_an_index_is_run_where_it_has_values() -> None:
    """On the meta device it would pick rows that nobody has written, without an error."""
    torch.manual_seed(0)
    model, loader = Making().eval(), with_places()
    expected = told(pruned(types.SimpleNamespace(model=model, loader=loader)))
    with torch.device("meta"):
        assert same(expected, told(pruned(types.SimpleNamespace(model=model, loader=loader))))
    with default_device("meta"):
        units = fk.trace(copy.deepcopy(model).to("meta"), loader[0][0].to("meta"), verify=False)
    assert same(of_map(fk.trace(model, loader[0][0], verify=False)), of_map(units))


A, B = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)).unbind()
A1, A3, B5, A0, B0, D1, D2 = A[:, :, None], A.view(8, 2, 2), B[:5], A[0], B[0], torch.ones(1, 1), torch.eye(2)
ROWS, LABELS, UNEVEN = torch.tensor([0, 2]), torch.arange(8) % 2, torch.tensor([0, 0, 1, 1, 1, 1, 1, 2])
VIEW = fk.ops.View((A.T @ A).double(), (B.T @ B).double(), torch.arange(4)[:, None])
OPERATORS: dict[str, Callable[[str], Any]] = {
    "taylor": lambda b: fk.ops.taylor(A, B, backend=b),
    "taylor_sums": lambda b: fk.ops.taylor_sums(A, B, out=fk.ops.TaylorSums.zeros(4), backend=b).fields,
    "gather": lambda b: fk.ops.gather(A, {1: ROWS}, backend=b),
    "class_wasserstein": lambda b: fk.ops.class_wasserstein(A, LABELS, backend=b),
    "uneven classes": lambda b: fk.ops.class_wasserstein(A, UNEVEN, "pairs", backend=b),
    "wasserstein_1d": lambda b: fk.ops.wasserstein_1d(A, B5, backend=b),
    "sliced": lambda b: fk.ops.sliced_wasserstein(A3, D2, LABELS, backend=b),
    "project": lambda b: fk.ops.project(A1, D1, rows=ROWS, backend=b),
    "tod": lambda b: fk.ops.tod_curves(A0, B0, [1, 3], backend=b),
}


@pytest.mark.parametrize("around", AROUND)
def test_operators(around: str) -> None:
    calls = {(name, b): partial(call, b) for name, call in OPERATORS.items() for b in ("auto", "reference")}
    calls |= {
        ("gram", "auto"): lambda: fk.ops.gram(A),
        ("eliminate", "auto"): lambda: fk.ops.eliminate([VIEW]),
    }
    if around != "fake tensors":  # nothing is given, and fake ones are what is asked for there
        calls["directions", ""] = lambda: fk.ops.directions(3, 2, 0)
    for name, call in calls.items():
        expected = call()
        refused = around == "fake tensors"
        with AROUND[around](), pytest.raises(fk.InputError) if refused else contextlib.nullcontext():
            found = call()
        assert refused or same(expected, found), name
