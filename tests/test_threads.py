"""Several threads: of two that work on one model the second is refused; two models come out as they would alone."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.model.in_use import _ASKING, in_use
from fairkern.model.process import let_others_in, own_turn
from tests.artefacts.same import same
from tests.interrupted import Left

LOSS = nn.functional.cross_entropy


class Net(nn.Module):
    """`BETWEEN` is called in the middle of its forward."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        BETWEEN(self)
        x = x + self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]
        return self.last(x)


def _nothing(model: nn.Module) -> None:
    pass


BETWEEN: Callable[[nn.Module], None] = _nothing


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[nn.Module], None]], None]:
    """Sets what is done in the middle of every forward pass, but of those that this leads to elsewhere."""

    def given(do: Callable[[nn.Module], None]) -> None:
        def here(model: nn.Module) -> None:
            if not threading.current_thread().name.startswith("elsewhere"):
                do(model)

        monkeypatch.setitem(globals(), "BETWEEN", here)

    return given


def batches(seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(seed))
    return list(zip(x.split(4), (torch.arange(24) % 3).split(4), strict=True))


X = batches()[0][0]


def drawing(output: Tensor, target: Tensor) -> Tensor:
    """A loss that draws from every generator that a process has."""
    time.sleep(0.001)  # whoever waits may have a turn
    kept = torch.rand(output.shape) + random.random() + float(np.random.rand())  # noqa: NPY002
    return LOSS(output * kept, target)


def scored(model: nn.Module, units: fk.UnitMap, loss: Any = LOSS) -> fk.Scores:
    return fk.score(model, batches(), loss, units=units, gram=True, progress=False)


def equal(one: fk.Scores, other: fk.Scores) -> bool:
    return all(
        np.array_equal(a, b)
        for name in one.signals
        for a, b in zip(one.signals[name], other.signals[name], strict=True)
    )


def elsewhere(do: Callable[[], Any]) -> Any:
    """What `do` gives, or raises, in another thread."""
    with ThreadPoolExecutor(1, "elsewhere") as pool:
        return pool.submit(do).result(timeout=60)


def test_two_models() -> None:
    models = [Net(0), Net(1)]
    units = [fk.trace(model, X) for model in models]
    alone = [scored(model, known) for model, known in zip(models, units, strict=True)]
    left = Left(*models)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            start = threading.Barrier(2)

            def go(k: int, start: threading.Barrier = start) -> fk.Scores:
                start.wait()
                return scored(models[k], fk.trace(models[k], X) if k else units[k])

            found = list(pool.map(go, range(2)))
            assert all(equal(a, b) for a, b in zip(alone, found, strict=True))
        left.before["threads"] += 2  # the pool's
        assert left.differences() == []


def test_what_two_threads_draw_is_what_each_would_draw_alone() -> None:
    """Of a loss by its seed, and of a loader that shuffles from where the process's generator was."""
    models = [Net(0), Net(1)]
    units = [fk.trace(model, X) for model in models]

    class Shuffled:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(6):
                rows = torch.randperm(24)[:6]
                yield torch.cat([x for x, _ in batches()])[rows], torch.arange(6) % 3

    def go(k: int) -> fk.Scores:
        return fk.score(models[k], Shuffled(), drawing, units=units[k], progress=False)

    torch.manual_seed(5)
    alone = [go(k) for k in range(2)]
    left = Left()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(go, range(2)))
    assert all(equal(a, b) for a, b in zip(alone, found, strict=True))
    assert left.differences() == []


STAGES: dict[str, Callable[[nn.Module, fk.Scores, Path], object]] = {
    "trace()": lambda model, scores, _: fk.trace(model, X),
    "score()": lambda model, scores, _: scored(model, scores.units),
    "prune()": lambda model, scores, _: fk.prune(model, batches(), LOSS, keep_params=0.7, progress=False),
    "a mask": lambda model, scores, _: scores.plan(keep_params=0.7).masked(model).__enter__(),
    "apply()": lambda model, scores, _: fk.apply(model, scores.plan(keep_params=0.7)),
    "recalibrate()": lambda model, scores, _: fk.recalibrate(model, batches()),
    "heal()": lambda model, scores, _: fk.heal(Net(2), model, batches(), steps=1, progress=False),
    "timing": lambda model, scores, _: fk.latency(model, X),
    "load_pruned()": lambda model, scores, path: fk.load_pruned(model, path),
}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[fk.Scores, Path]:
    model, path = Net(), tmp_path_factory.mktemp("pruned") / "small"
    scores = scored(model, fk.trace(model, X))
    plan = scores.plan(keep_params=0.7)
    fk.save_pruned(fk.apply(model, plan), plan, path)
    return scores, path


@pytest.mark.parametrize(
    ("first", "second"), [*(("a mask", second) for second in STAGES), ("score()", "score()"), ("score()", "apply()")]
)
def test_the_second_is_refused(first: str, second: str, known: tuple[fk.Scores, Path], between: Any) -> None:
    scores, path = known
    model, refused = Net(), list[str]()

    def do(_: nn.Module) -> None:
        with pytest.raises(fk.InputError) as caught:
            elsewhere(partial(STAGES[second], model, scores, path))
        refused.append(str(caught.value))

    between(do)
    left = Left(model)
    if first == "score()":
        assert equal(scored(model, scores.units), scores)
    else:
        with scores.plan(keep_params=0.7).masked(model):
            model(X)
    assert left.differences() == []
    assert f"{second} of this Net was asked for while {first} is under way in the thread 'MainThread'" in refused[0]
    between(_nothing)
    elsewhere(partial(STAGES[second], model, scores, path))  # and afterwards it may


class Backbone(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def tied(model: Net) -> nn.Module:
    other = Net(1)
    other.last.weight = model.last.weight
    return other


def same_memory(model: Net) -> nn.Module:
    other = Net(1)
    other.first.weight = nn.Parameter(model.first.weight.data)
    return other


@pytest.mark.parametrize("other", [Backbone, lambda model: model.attention, tied, same_memory])
def test_models_that_share_something_are_one(other: Callable[[Net], nn.Module]) -> None:
    model = Net()
    with in_use(model, "a mask"), pytest.raises(fk.InputError, match=r"with a Net.*shares modules or tensors"):
        elsewhere(lambda: in_use(other(model), "trace()").__enter__())
    with in_use(model, "a mask"):
        elsewhere(lambda: in_use(Net(1), "trace()").__enter__())


def test_models_are_read_together(known: tuple[fk.Scores, Path]) -> None:
    model, plan = Net(), known[0].plan(keep_params=0.7)
    with in_use(model, "apply()", reading=True):
        small = elsewhere(partial(fk.apply, model, plan))
        with pytest.raises(fk.InputError, match="apply"):
            elsewhere(partial(fk.apply, model, plan, inplace=True))
    torch.testing.assert_close(small(X), fk.apply(model, plan)(X), rtol=0, atol=0)


def test_one_thread_nests_what_it_likes(known: tuple[fk.Scores, Path], between: Any) -> None:
    scores, _ = known
    model, plan = Net(), scores.plan(keep_params=0.7)
    with plan.masked(model):
        inside = scored(model, scores.units)
        assert not equal(inside, scores)
        with plan.masked(model):
            fk.trace(model, X)
    between(lambda model: fk.apply(model, plan) and None)
    assert equal(scored(model, scores.units), scores)


@pytest.mark.parametrize("stage", ["trace", "score", "sequential"])
def test_a_plain_call_in_another_thread_disturbs_nothing(
    stage: str, known: tuple[fk.Scores, Path], between: Any
) -> None:
    """It gives what it gives, and nothing of it is taken for the stage's own."""
    scores, _ = known
    model, plan = Net(), scores.plan(keep_params=0.7)
    expected, found = model(X), list[Tensor]()

    def do(_: nn.Module) -> None:
        with torch.no_grad():
            found.append(elsewhere(partial(model, X)).detach())

    fitted = fk.apply(model, plan, compensate="sequential", scores=scores, loader=batches())
    between(do)
    if stage == "trace":
        assert same(fk.trace(model, X).groups, scores.units.groups)
    elif stage == "score":
        assert equal(scored(model, scores.units), scores)
    else:
        again = fk.apply(model, plan, compensate="sequential", scores=scores, loader=batches())
        assert all(torch.equal(a, b) for a, b in zip(fitted.parameters(), again.parameters(), strict=True))
    assert found
    for output in found:
        torch.testing.assert_close(output, expected.detach(), rtol=0, atol=1e-6)


def test_a_turn_ends_with_what_was_there() -> None:
    """Of three threads in any order; whoever is let in between finds what was there before."""
    left, seen = Left(), list[float]()

    def other() -> None:
        with own_turn():
            seen.append(float(torch.rand(())))

    with ThreadPoolExecutor(2) as pool:
        with own_turn():
            first = float(torch.rand(()))
            waiting = [pool.submit(other) for _ in range(2)]
            deadline = time.monotonic() + 30
            while not all(map(Future.done, waiting)) and time.monotonic() < deadline:
                time.sleep(0.001)
                let_others_in()
            second = float(torch.rand(()))
            torch.backends.mha.set_fastpath_enabled(False)
        assert seen == [first, first]
        left.before["threads"] += 2  # the pool's
        assert left.differences() == []
    with own_turn():
        assert [float(torch.rand(())), float(torch.rand(()))] == [first, second]


@pytest.fixture
def somebody() -> Iterator[threading.Event]:
    """Another thread has the turn until this is set."""
    has, done = threading.Event(), threading.Event()

    def hold() -> None:
        with own_turn():
            has.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    has.wait(60)
    yield done
    done.set()
    thread.join()


def test_an_interrupt_strikes_who_waits_for_a_turn(somebody: threading.Event) -> None:
    model, left = Net(), None
    left = Left(model)
    timer = threading.Timer(0.02, partial(signal.raise_signal, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        fk.trace(model, X)
    timer.join()
    left.before["threads"] = threading.active_count()
    assert left.differences() == []


def test_a_trace_has_its_time_once_it_is_its_turn(somebody: threading.Event) -> None:
    threading.Timer(0.3, somebody.set).start()
    fk.trace(Net(), X, time_limit=0.25, verify=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_waits_for_nobody(somebody: threading.Event) -> None:
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        with own_turn():
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_model_that_a_thread_has_not_given_back_is_not_waited_for() -> None:
    """The child of a fork has the model as it was half-way, and nobody there will put it back."""
    model, has, done = Net(), threading.Event(), threading.Event()

    def hold() -> None:
        with in_use(model, "score()"):
            has.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    has.wait(60)
    with _ASKING:  # which whoever holds it in the parent does not give back in the child
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            torch.set_num_threads(1)  # OpenMP's threads are not there either
            try:
                fk.trace(Net(), X)
                fk.trace(model, X)
            except fk.InputError as error:
                os._exit(0 if "is gone" in str(error) else 1)
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    done.set()
    thread.join()
    fk.trace(model, X)


def test_a_mask_that_a_thread_has_not_left(known: tuple[fk.Scores, Path]) -> None:
    model, (scores, _) = Net(), known
    mask = scores.plan(keep_params=0.7).masked(model)
    thread = threading.Thread(target=mask.__enter__)
    thread.start()
    thread.join()
    with pytest.raises(fk.InputError, match=r"that thread is gone.*leave the mask"):
        fk.trace(model, X)
    mask.__exit__(None, None, None)
    fk.trace(model, X)


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_no_thread_stays_when_sequential_compensation_fails(
    error: BaseException, known: tuple[fk.Scores, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, _ = known
    model, plan, calls = Net(), scores.plan(keep_params=0.7), iter(range(100))
    main = threading.get_ident()

    def fail(model: nn.Module) -> None:
        if threading.get_ident() != main and next(calls) == 9:
            raise error

    monkeypatch.setitem(globals(), "BETWEEN", fail)
    left = Left(model)
    with pytest.raises(type(error)):
        fk.apply(model, plan, compensate="sequential", scores=scores, loader=batches())
    assert left.differences() == []
