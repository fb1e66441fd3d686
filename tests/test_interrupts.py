"""Ctrl-C at any line leaves model, process and disk as they were, and the next run works."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.mutation_guard import install_generation_tagging_init

import fairkern as fk
from fairkern.artefacts import replacing
from fairkern.capture.joint import joint_moments, reading_points
from fairkern.interrupts import _Handlers, interrupts_wait, undivided
from fairkern.model.untouched import untouched
from tests import interrupted
from tests.interrupted import COMPILER, WATCHED, Interrupt, Left, places, sweep


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.last(torch.relu(self.norm(self.first(x))))


def made() -> Small:
    torch.manual_seed(0)
    return Small().eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    return list(zip(x.split(8), (torch.arange(16) % 3).split(8), strict=True))


LOSS = nn.functional.cross_entropy
MODEL = made()
UNITS = fk.trace(MODEL, batches()[0][0])
SCORES = fk.score(MODEL, batches(), LOSS, units=UNITS, gram=True, progress=False)
PLAN = SCORES.plan(keep_params=0.6)
CUT = fk.apply(MODEL, PLAN).last.weight.detach().clone()


def masked() -> None:
    with PLAN.masked(MODEL):
        MODEL.last(torch.ones(1, 6))


def run_untouched() -> None:
    with untouched(MODEL):
        MODEL.train()
        MODEL.first.register_forward_hook(lambda *_: None)
        MODEL(batches()[0][0])


def lockstep() -> None:
    points = reading_points(MODEL, batches(), UNITS, [])
    with contextlib.closing(joint_moments(MODEL, MODEL, batches(), UNITS, points)) as steps:  # type: ignore[type-var]
        for _ in steps:
            pass


def sequential() -> None:
    fk.apply(MODEL, PLAN, compensate="sequential", scores=SCORES, loader=batches())


def score() -> None:
    fk.score(MODEL, batches(), LOSS, units=UNITS, gram=True, progress=False)


def trace() -> None:
    fk.trace(MODEL, batches()[0][0])


def prune() -> None:
    fk.prune(MODEL, batches(), LOSS, keep_params=0.6, progress=False)


def heal() -> None:
    fk.heal(fk.apply(MODEL, PLAN), MODEL, batches(), steps=2, progress=False)


STAGES: list[tuple[Callable[[], None], int]] = [
    (masked, 2),
    (run_untouched, 4),
    (lockstep, 37),
    (sequential, 97),
    (score, 101),
    (trace, 397),
    (prune, 1499),
    (heal, 211),
]  # and at which share of the lines they are interrupted, where time is short


def swept(do: Callable[[], object], left: Left, every: int) -> None:
    do()  # what is done once only
    assert list(sweep(do, left.differences, places(do)[::every])) == []
    again = fk.score(MODEL, batches(), LOSS, units=UNITS, gram=True, progress=False).plan(keep_params=0.6)
    assert [axis.removed.tolist() for axis in again.axes] == [axis.removed.tolist() for axis in PLAN.axes]


@pytest.mark.parametrize(("do", "every"), STAGES, ids=lambda item: getattr(item, "__name__", ""))
def test_a_model_is_as_it_was(do: Callable[[], None], every: int) -> None:
    swept(do, Left(MODEL), every)


@pytest.mark.slow
@pytest.mark.parametrize("do", [do for do, _ in STAGES], ids=lambda do: do.__name__)
def test_a_model_is_as_it_was_at_every_line(do: Callable[[], None]) -> None:
    swept(do, Left(MODEL), 10 if do is prune else 1)


def test_none_is_lost_as_modules_go_that_the_compiler_has_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first compilation on, torch is called as any module goes, where Python drops what is raised."""
    install_generation_tagging_init()
    monkeypatch.setattr(interrupted, "WATCHED", (*WATCHED, COMPILER))
    trace()
    watch = Interrupt()
    with watch:
        trace()
    counted = [number for number, (path, *_) in enumerate(watch.come_to, 1) if path == COMPILER]
    assert len(counted) > 10
    assert list(sweep(trace, Left(MODEL).differences, counted)) == []


class InPlace:
    """A model that is changed for good, again and again: it is as it was or done, and nothing between."""

    def __init__(self, change: Callable[[Small], object]) -> None:
        self.change = change
        self.whole, self.done = made(), made()
        change(self.done)
        self.prepare()
        self.process = Left()

    def prepare(self) -> None:
        with torch.random.fork_rng([]):
            self.model = made()

    def do(self) -> None:
        self.change(self.model)

    def differences(self) -> list[str]:
        same = any(self._same(other) for other in (self.whole, self.done))
        return [*self.process.differences(), *([] if same else ["half done"])]

    def _same(self, other: Small) -> bool:
        one, two = self.model.state_dict(), other.state_dict()
        values = one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
        return values and repr(self.model) == repr(other) and not any(m.training for m in self.model.modules())

    def swept(self, every: int) -> list[str]:
        numbers = places(self.do)[::every]
        return list(sweep(self.do, self.differences, numbers, self.prepare))


CHANGES: dict[str, tuple[Callable[[Small], object], int]] = {
    "cut": (partial(fk.apply, plan=PLAN, inplace=True), 7),
    "cut and fitted": (partial(fk.apply, plan=PLAN, inplace=True, compensate="least_squares", scores=SCORES), 29),
    "recalibrated": (partial(fk.recalibrate, loader=batches()), 5),
    "healed": (partial(fk.heal, model=MODEL, loader=batches(), steps=1, lr=0.1, progress=False), 23),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_in_place_is_whole(name: str) -> None:
    change, every = CHANGES[name]
    assert InPlace(change).swept(every) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_in_place_is_whole_at_every_line(name: str) -> None:
    assert InPlace(CHANGES[name][0]).swept(1) == []


def test_files_are_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("old")
    process = Left()

    def do() -> None:
        path.write_text("old")
        with replacing(path) as temporary:
            temporary.write_text("new")

    def differences() -> list[str]:
        kept = path.read_text() in ("old", "new")
        beside = [p.name for p in tmp_path.iterdir() if p != path]
        return [*process.differences(), *beside, *([] if kept else ["damaged"])]

    assert list(sweep(do, differences, places(do))) == []


def healed(path: Path) -> None:
    with torch.random.fork_rng([]):
        small = fk.apply(made(), PLAN)
    fk.heal(small, MODEL, batches(), steps=1, checkpoint=path, progress=False)


@pytest.mark.parametrize("what", ["scores", "plan", "pruned", "healing"])
def test_what_is_saved_can_be_read(what: str, tmp_path: Path) -> None:
    small, fresh, path = fk.apply(MODEL, PLAN), made(), tmp_path / what
    process = Left()
    write, read = {
        "scores": (partial(SCORES.save, path), partial(fk.Scores.load, path)),
        "plan": (partial(PLAN.save, path), partial(fk.Plan.load, path)),
        "pruned": (partial(fk.save_pruned, small, PLAN, path), partial(fk.load_pruned, fresh, path)),
        "healing": (partial(healed, path), partial(healed, path)),
    }[what]

    def differences() -> list[str]:
        if path.exists():
            read()
        return [*process.differences(), *(p.name for p in tmp_path.iterdir() if p != path)]

    numbers, most = places(write), 20 if what == "healing" else 60
    assert list(sweep(write, differences, numbers[:: 1 + len(numbers) // most])) == []


@contextlib.contextmanager
def handling(number: int, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_comes_once_to_the_handler_of_the_process(number: int) -> None:
    came: list[int] = []

    def mine(number: int, frame: FrameType | None) -> None:
        came.append(number)

    with handling(number, mine):
        with interrupts_wait():
            with interrupts_wait():
                undivided(lambda: (signal.raise_signal(number), came.append(0)))
            until = time.monotonic() + 5
            while len(came) < 2 and time.monotonic() < until:  # a moment later
                time.sleep(0.001)
        assert came == [0, number]
        assert signal.getsignal(number) is mine
        signal.raise_signal(number)
        time.sleep(0.01)
    assert came == [0, number, number]


def test_at_the_latest_it_strikes_at_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        undivided(partial(signal.raise_signal, signal.SIGINT))
    time.sleep(0.01)  # and nothing comes a second time


def test_between_enter_and_exit_it_strikes_at_once() -> None:
    went_on = False
    with pytest.raises(KeyboardInterrupt), PLAN.masked(MODEL):  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        went_on = True
    assert not went_on


def test_a_signal_during_the_last_operation_in_a_mask_takes_it_off() -> None:
    """After an operator Python looks for signals in the next function that is entered: `__exit__`."""
    left, large = Left(MODEL), torch.randn(1500, 1500, generator=torch.Generator().manual_seed(0))

    def stopped(later: threading.Timer) -> None:
        later.start()
        with PLAN.masked(MODEL):
            _ = large @ large
        later.join()

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            stopped(threading.Timer(0.005, signal.raise_signal, [signal.SIGINT]))
        assert left.differences() == []


def test_handlers_that_are_set_within_stay() -> None:
    def mine(number: int, frame: FrameType | None) -> None:
        pass

    before = signal.getsignal(signal.SIGINT)
    try:
        with interrupts_wait():
            signal.signal(signal.SIGINT, mine)
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


def test_ignored_interrupts_stay_ignored() -> None:
    with handling(signal.SIGINT, signal.SIG_IGN):
        with PLAN.masked(MODEL):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_what_is_left_in_any_order_is_put_back_by_the_last() -> None:
    before = signal.getsignal(signal.SIGINT)
    first, second = interrupts_wait(), interrupts_wait()
    first.__enter__()
    second.__enter__()
    first.__exit__()
    assert signal.getsignal(signal.SIGINT) is not before
    second.__exit__()
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_may_leave_a_mask() -> None:
    """A generator that a pool of threads takes turns with."""
    left = Left(MODEL)
    mask = PLAN.masked(MODEL)
    mask.__enter__()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(mask.__exit__, None, None, None).result()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # through what stands in
    with PLAN.masked(MODEL):
        pass
    assert left.differences() == []


def test_other_threads_leave_handlers_alone() -> None:
    seen: list[object] = []

    def do() -> None:
        with interrupts_wait():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=do)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_what_sends_again_ends_though_nobody_says_that_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a second interrupt takes the place of the line that says so."""
    sent = threading.Event()
    monkeypatch.setattr(signal, "raise_signal", lambda number: sent.set())
    handlers = _Handlers(None)
    handlers._waiting.add(signal.SIGINT)
    thread = threading.Thread(target=handlers._send_again, daemon=True)
    thread.start()
    assert sent.wait(10)
    handlers._waiting.clear()
    thread.join(10)
    assert not thread.is_alive()
