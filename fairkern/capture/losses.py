"""The loss of a batch: by the user's function, or the model's own, in eval mode or in its training call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.capture.batches import Batch
from fairkern.capture.structure import describe
from fairkern.errors import InputError
from fairkern.model.nested import Call, call_model, can_take, takes_by_name, tensors_in
from fairkern.model.own_calls import training_call
from fairkern.model.process import seed_torch

LossFunction = Callable[[Any, Any], Tensor]
_LABELS = "labels"


class Losses:
    """How the losses of a loader's batches are had from a model in eval mode.

    Without a loss function: what the model gives on the batch, `.loss`, `["loss"]`, a number, or the first of a tuple
    if that is one. If the first batch has none, the model's own training call is made from then on, on inputs and
    targets, in which norms and dropout stay as in eval mode; a dictionary of losses is added up. What the model draws
    at random (proposals, points) goes by the seed and the batch's number.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction | None, seed: int) -> None:
        self._model, self._loss_fn, self._seed = model, loss_fn, seed
        self._training: bool | None = False if loss_fn is not None else None  # None: not known yet
        self._sure = False  # whether a loss was had in this way
        self._returned = ""

    def of(self, batch: Batch) -> Tensor | None:
        """The batch's loss; None where the model gives none in eval mode, after which it is asked in another way.

        Raises InputError for a model that gives no loss at all, and for one that is no number.
        """
        return self.once(batch)[1]

    def answered(self, batch: Batch) -> tuple[Any, Tensor]:
        """What the model returns for a batch, and the batch's loss. Raises as `of`."""
        output, loss = self.once(batch)
        if loss is None:
            output, loss = self.once(batch)
        assert loss is not None
        return output, loss

    def once(self, batch: Batch) -> tuple[Any, Tensor | None]:
        """What one run gives: what the model returns, and the loss, as `of` has it."""
        with seeded(self._seed + batch.number):
            output = self._output(batch)
            loss = self._given(batch, output) if self._loss_fn is None else self._loss_fn(output, batch.targets)
        if loss is None and self._training is None and self._tells(batch):
            self._training = True
            return output, None
        if loss is None and self._loss_fn is None:
            raise self._without(batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            raise InputError(
                f"the loss of batch {batch.index} is {describe(loss)}; expected a tensor with one element, "
                "of a floating dtype"
            )
        self._sure, self._training = True, bool(self._training)
        return output, loss.reshape(())

    def forward(self, batch: Batch) -> None:
        """The forward pass of `of` alone."""
        with seeded(self._seed + batch.number):
            self._output(batch) if self._training else call_model(self._model, batch.inputs)

    def _given(self, batch: Batch, output: Any) -> Tensor | None:
        """What the model itself gives as its loss."""
        self._returned = describe(output)
        return _found(output, added=bool(self._training) or batch.parts.hands_on)

    def _output(self, batch: Batch) -> Any:
        """What the model returns on the batch, in eval mode or in its training call."""
        call = batch.parts.call
        if not self._training:
            return call_model(self._model, call)
        with training_call(self._model):
            try:
                return call_model(self._model, _with_targets(batch))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                if self._sure:
                    raise
                raise InputError(
                    f"{type(self._model).__name__} gives no loss in eval mode, and its own training call on the inputs "
                    f"and targets of batch {batch.index} fails ({type(error).__name__}: {_first_line(error)}), while "
                    "loss_fn is None; pass loss_fn(output, targets)"
                ) from error

    def _tells(self, batch: Batch) -> bool:
        """Whether the model can be given the targets, as its own training call does."""
        return not batch.parts.hands_on and can_take(self._model, _with_targets(batch))

    def _without(self, batch: Batch) -> InputError:
        where = "in eval mode or in its own training call" if self._training else "in eval mode"
        return InputError(
            f"the model returns no loss {where} (what it returns is {self._returned}), and loss_fn is None; "
            f"{_unlabelled(self._model, batch)}pass loss_fn(output, targets)"
        )


def _unlabelled(model: nn.Module, batch: Batch) -> str:
    """What to do where the batch has no labels, which the model takes to work out a loss."""
    call = batch.parts.call
    lacks = isinstance(call, Mapping) and _LABELS not in call and takes_by_name(model, _LABELS)
    return f"give the batches {_LABELS!r}, which forward takes and these lack, or " if lacks else ""


def _with_targets(batch: Batch) -> Call:
    call = batch.parts.call
    return call if isinstance(call, Mapping) or not batch.parts.apart else (*call, batch.targets)


def _found(output: Any, *, added: bool) -> Tensor | None:
    """The loss in what a model returns. `added`: several numbers there are losses, which are added up."""
    loss = getattr(output, "loss", None)
    if loss is None and isinstance(output, Mapping):
        loss = output.get("loss")
    if loss is not None:
        return loss
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if isinstance(output, Tensor) and output.is_floating_point():
        if output.ndim == 0:
            return output
        return output.sum() if added and output.ndim == 1 else None
    if not added or not isinstance(output, (Mapping, list, tuple)):
        return None
    parts = list(tensors_in(output))
    if not parts or any(part.numel() != 1 or not part.is_floating_point() for part in parts):
        return None
    return torch.stack([part.reshape(()) for part in parts if part.requires_grad or not torch.is_grad_enabled()]).sum()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers by this seed inside; the state of all generators is put back."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        seed_torch(seed)
        yield


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
