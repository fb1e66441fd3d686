"""The steps of one call of `heal`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.capture.batches import read
from fairkern.capture.structure import Parts, describe
from fairkern.errors import InputError, NonFiniteError
from fairkern.healing.answers import Compared, compared, shifted
from fairkern.healing.blocks import Heard, computed_again, hidden_loss, in_both
from fairkern.healing.resuming import Progress, load, save
from fairkern.healing.settings import Settings
from fairkern.healing.weights import Weights
from fairkern.model.autocast import Ambient
from fairkern.model.nested import call_model, map_tensors
from fairkern.model.process import drawing_from, let_others_in
from fairkern.model.sums import sum_of_batch
from fairkern.model.tensors import device_of

OnStep = Callable[[int, int | None, str], None]


class Run:
    """Trains `small` towards `model`. What is left afterwards of modes, hooks and gradients is the caller's care."""

    def __init__(self, small: nn.Module, model: nn.Module, settings: Settings, ambient: Ambient) -> None:
        self._small, self._model, self._settings, self._ambient = small, model, settings, ambient
        self._weights = Weights(small, settings)
        pairs = {} if settings.hidden == 0 else in_both(small, model, settings.hidden_at)
        if settings.hidden and not pairs:
            raise InputError(
                f"hidden={settings.hidden}: the models have no repeated block in common to compare; name modules with "
                "hidden_at=['…'], or leave hidden out"
            )
        self._pairs = pairs
        self._ours, self._theirs = Heard(small, list(pairs)), Heard(model, list(pairs.values()))
        self.progress = Progress()

    def run(self, loader: Iterable[Any], checkpoint: str | None, on_step: OnStep) -> int:
        """All steps that are not done yet; how many were, by a run before."""
        settings, said = self._settings, self._said()
        if checkpoint is not None:
            self.progress = load(checkpoint, self._small, self._model, self._weights, said)
        began, started = self.progress.steps, time.perf_counter()
        before = self.progress.seconds
        total = settings.steps
        if began == total:
            return began
        again = computed_again(self._small) if settings.gradient_checkpointing else contextlib.nullcontext()
        self._small.train()
        self._model.eval()
        with drawing_from(settings.seed), contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(again)
            for listening in (self._ours.listening(), self._theirs.listening(), self._weights.whole_steps()):
                stack.enter_context(listening)
            batches = stack.enter_context(contextlib.closing(self._batches(loader, began * settings.accumulate)))
            for number in range(began + 1, total + 1):
                self._step(number, batches)
                self.progress.seconds = before + time.perf_counter() - started
                if checkpoint is not None and (number % (settings.every or total) == 0 or number == total):
                    save(checkpoint, self._small, self._weights, self.progress, said)
                on_step(number, total, "healing")
                let_others_in()
        return began

    def _said(self) -> dict[str, Any]:
        return {**self._settings.said(), "trained": sorted({str(p.dtype) for p in self._small.parameters()})}

    def _batches(self, loader: Iterable[Any], skipped: int) -> Generator[Parts, None, None]:
        """Of the loader, as often as it takes, from the one after those that a run before has seen."""
        raw = _endless(loader, self._settings.steps * self._settings.accumulate)
        with contextlib.closing(raw):
            for index in range(skipped):
                batch = next(raw)
                if index == 0 and sum_of_batch(batch) != self.progress.first:
                    raise InputError(
                        "the loader begins with another batch than for the run that this one goes on with; give the "
                        "same data, in an order that is fixed or drawn from torch's, NumPy's or Python's own generator"
                    )
            for _, given, parts in read(raw, self._small):
                if not self.progress.first:
                    self.progress.first = sum_of_batch(given)
                yield parts

    def _step(self, number: int, batches: Iterator[Parts]) -> None:
        """One update, by the mean over all positions that count in its batches."""
        settings, progress = self._settings, self.progress
        self._weights.begin()
        total, count, samples = 0.0, 0, 0
        for part in range(settings.accumulate):
            parts = next(batches)
            with drawing_from((settings.seed + (number - 1) * settings.accumulate + part + 1) % 2**63):
                loss, of = self._loss(parts)
                value = float(loss.detach())
                if not abs(value) < float("inf"):
                    raise NonFiniteError(
                        f"the loss of step {number} is {value}; weights are as the step before left them{self._why()}"
                    )
                if of.count:
                    (loss * of.count).backward()
            self._weights.gather()
            total, count, samples = total + value * of.count, count + of.count, samples + of.samples
        if not count:
            raise InputError(
                f"no position in the batches of step {number} counts: all are padding, by the attention mask, or have "
                "a negative label"
            )
        self._weights.step(number, count)
        progress.losses.append(total / count)
        progress.samples += samples
        progress.tokens += count

    def _loss(self, parts: Parts) -> tuple[Tensor, Compared]:
        settings, progress = self._settings, self.progress
        if parts.lists or parts.hands_on:
            raise InputError(
                "batches of images in lists, or that the model hands on to itself, are those of detectors, which are "
                "not distilled: train the cut model on its own loss"
            )
        self._ours.outputs.clear()
        self._theirs.outputs.clear()
        with self._ambient.again():
            with torch.no_grad():
                device = device_of(self._model)
                theirs = call_model(self._model, map_tensors(parts.call, lambda t: t.to(device)))
            ours = call_model(self._small, parts.call)
            task = None if settings.loss_fn is None else settings.loss_fn(ours, parts.targets)
        if progress.shifted is None:
            progress.shifted = shifted(parts, theirs)
        of = compared(parts, ours, theirs, settings.divergence, settings.temperature, progress.shifted)
        loss = of.loss
        if not of.count:  # what else there is would be the mean of nothing
            return torch.zeros_like(loss), of
        if self._pairs:
            apart, names = hidden_loss(self._pairs, self._ours.outputs, self._theirs.outputs, of.positions)
            if apart is None and settings.hidden:
                raise InputError(
                    f"hidden={settings.hidden}: no module that both models have gives outputs of the same shape in "
                    "both; name others with hidden_at=['…'], or leave hidden out"
                )
            if apart is not None:
                loss = loss + (1.0 if settings.hidden is None else settings.hidden) * apart
            progress.hidden = progress.hidden or names
        if task is not None or settings.loss_fn is not None:
            if not isinstance(task, Tensor) or task.numel() != 1 or not task.is_floating_point():
                raise InputError(
                    f"loss_fn gives {describe(task)}; expected a tensor with one element, of a floating dtype"
                )
            loss = loss + settings.loss_weight * task.reshape(())
        return loss, of

    def _why(self) -> str:
        """Where it began, as far as it can be told from what was heard."""
        for whose, heard in (("uncut", self._theirs), ("cut", self._ours)):
            for name, output in heard.outputs.items():
                if not bool(torch.isfinite(output).all()):
                    return f": the first output that is not finite is that of {name} in the {whose} model"
        return ""


def _endless(loader: Iterable[Any], needed: int) -> Generator[Any, None, None]:
    count = 0
    while True:
        before = count
        for batch in loader:
            count += 1
            yield batch
        if not count:
            raise InputError("the loader yields no batch")
        if isinstance(loader, Iterator) or count == before:
            raise InputError(
                f"the loader ended after {count} of {needed} batches, and gives no more: give one that can be iterated "
                "again (a list, a DataLoader), or fewer steps"
            )
