"""Forward passes that stop at every point and go on when told, so that many of them move through a model together."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from fairkern.capture.listener import Listener
from fairkern.capture.points import Point
from fairkern.model.nested import Call, call_model
from fairkern.surroundings import default_device

Around = Callable[[], contextlib.AbstractContextManager[object]]


class _Abandoned(BaseException):
    """The pass is not wanted any more."""


class Walk:
    """One forward pass over `inputs`, without gradients, in a thread that runs only while `advance` waits for it.

    What is heard at a point has not been read by its consumers yet, so their weights may be changed before the pass
    goes on. `around` is entered in the pass's own thread: what holds in one thread only (a function mode) goes there.

    Passes of one model may be under way together: of those, only the one that advances hears anything. A forward that
    switches modes of modules (to train mode, for its losses) finds them as it left them, and one that draws at random
    goes on where it was; with the same `seed` another pass draws the same. All else that modules hold is shared: those
    that hand on values of a batch there see those of another.
    """

    def __init__(self, model: nn.Module, inputs: Call, points: Sequence[Point], around: Around, seed: int = 0) -> None:
        self._model, self._inputs, self._around = model, inputs, around
        self._listener = Listener(model, points, gradients=False)
        self._listener.on_heard = self._arrive
        self._modes = {module: module.training for module in model.modules()}
        self._drawn = torch.Generator("cpu").manual_seed(seed).get_state()
        self._device = default_device()
        self._attached = contextlib.ExitStack()
        self._go: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._come: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._at: tuple[Point, Tensor] | None = None
        self._error: BaseException | None = None
        self._left = False

    def __enter__(self) -> Walk:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._listener.attached())
            self._listener.active = False
            self._thread.start()
            self._attached = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._attached:
            self._left = True
            self._go.put(None)
            self._thread.join()

    def advance(self) -> tuple[Point, Tensor] | None:
        """Go on to the next point; what is read there, or None at the end of the pass. Raises what the model raises."""
        self._at = None  # and what was heard there goes with it
        self._listener.active = True
        self._go.put(None)
        self._come.get()
        self._listener.active = False
        if self._error is not None:
            raise self._error
        return self._at

    def _arrive(self, point: Point, act: Tensor) -> None:
        self._check()
        self._at = (point, act)
        for module in self._modes:
            self._modes[module] = module.training
        self._drawn = torch.get_rng_state()
        self._come.put(None)
        self._go.get()
        self._check()
        self._go_on()
        self._listener.forget(point)

    def _check(self) -> None:
        if self._left:
            raise _Abandoned

    def _go_on(self) -> None:
        """Modes and random numbers of this pass, and not of the one that ran before it."""
        for module, training in self._modes.items():
            if module.training is not training:
                module.training = training
        torch.set_rng_state(self._drawn)

    def _run(self) -> None:
        self._go.get()
        try:
            if not self._left:
                self._go_on()
                with self._device(), torch.no_grad(), self._around(), self._listener.hearing():
                    call_model(self._model, self._inputs)
        except _Abandoned:
            pass
        except BaseException as error:  # handed to whoever waits for this pass
            self._error = error
        finally:
            self._come.put(None)


def in_step(walks: Sequence[Walk]) -> Iterator[list[tuple[Point, Tensor]]]:
    """Where all passes stand, point by point, until all have ended; they have to come the same way.

    Raises LookupError with the point that one of them comes to and another does not.
    """
    while True:
        places = [walk.advance() for walk in walks]
        names = {place[0].name if place else "" for place in places}
        if len(names) > 1:
            raise LookupError(" and ".join(sorted(names - {""})))
        reached = [place for place in places if place is not None]
        if not reached:
            return
        yield reached
