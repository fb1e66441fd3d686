"""What is before the segments and behind them: the model with stubs in their places, which take and give boundaries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.capture import LossReduction, capture
from fairkern.capture.batches import batches
from fairkern.capture.listener import Beside
from fairkern.capture.losses import Losses, LossFunction
from fairkern.errors import InputError, NonFiniteError
from fairkern.model.kept import Kept as KeptObjects
from fairkern.model.kept import changed, kept_objects
from fairkern.model.nested import tensors_in
from fairkern.types import Scores
from fairkern.walk.boundaries import Kept
from fairkern.walk.chain import INSTEAD, Block, nowhere_a_number, runs_alone
from fairkern.walk.linear import along
from fairkern.walk.segments import Given, part_of
from fairkern.walk.traversal import Traversal, kept_in, running

_NEAR = 1e-5  # relative difference of a loss: rounding


class Outside:
    """A model of which the segments are not run: what passes out of the last one is given, and what passes into the
    first is taken."""

    def __init__(self, way: Traversal, kept: Kept, loss_fn: LossFunction | None) -> None:
        self._way, self._kept, self._loss_fn = way, kept, loss_fn
        self._number_of = {known.index: number for number, known in enumerate(way.known)}
        self._leaf: Tensor | None = None  # what passed out of the last segment, in the last run
        self._passed: Tensor | None = None  # what passed into the first
        self._rows: Tensor | None = None  # which samples of the batch these runs are of; None: all
        self.loss = 0.0  # the mean of a sample
        self.keeps: list[str] = []  # attributes that every batch puts something into
        self._strict = False  # whether what blocks are given besides may hang on weights

    def check(self, groups: Sequence[int]) -> None:
        """Runs the first batch. `groups`: of what is before the segments, to be scored.

        Raises InputError where what is behind the segments reads more of them than what the last one passes on, and
        where these groups act on anything but what passes into the first; NonFiniteError.
        """
        settings, end = self._way.settings, self._way.blocks[-1].path
        with self._running() as model:
            for name in {held.axis.tensor for g in groups for held in self._way.units.groups[g].axes}:
                parameter = dict(model.named_parameters()).get(name)
                if parameter is not None:
                    parameter.requires_grad_(True)
            self._strict = True
            losses = Losses(model, self._loss_fn, settings.seed)
            for batch in batches(self._kept, model, settings.class_of, settings.samples_of):
                if batch.samples:
                    break
            with torch.enable_grad(), runs_alone(f"what is behind {end}"):
                output, loss = losses.answered(batch)
            self._strict = False
        if not bool(torch.isfinite(loss.detach())):
            if not bool(torch.isfinite(self._end(self._number_of[batch.index])).all()):
                raise NonFiniteError(f"what {end} passes on is not finite in batch {batch.index}")
            raise InputError(
                f"the loss of batch {batch.index} is {float(loss)} where of the blocks nothing is there but what {end} "
                f"passes on: something reads what other blocks return (a skip connection across them); {INSTEAD}"
            )
        self._compare(float(loss.detach()), sum(1 for _ in tensors_in(output)))
        if loss.requires_grad:
            raise InputError(
                f"units before the blocks act on the loss beside what passes into {self._way.blocks[0].path}; {INSTEAD}"
            )

    def _compare(self, loss: float, returned: int) -> None:
        """Raises InputError where the first batch has another loss than in the model as a whole, or gives less."""
        chain, end = self._way.division.chain, self._way.blocks[-1].path
        near = max(_NEAR, 0.25 * (torch.finfo(chain.passed.dtype).eps if chain.passed is not None else 0.0))
        same = chain.loss is None or abs(loss - chain.loss) <= near * abs(chain.loss)
        if not same or chain.returned not in (None, returned):
            raise InputError(
                f"the first batch has the loss {loss:.6g} and {returned} tensors of output with what {end} passes on, "
                f"in the model as a whole {chain.loss:.6g} and {chain.returned}: something is collected from the "
                "blocks themselves, as router logits and hidden states are; switch that off "
                f"(output_router_logits=False, output_hidden_states=False), or {INSTEAD}"
            )

    def behind(self, groups: Sequence[int]) -> Scores | None:
        """Keeps the gradient of the loss at what passes out of the last segment; the scores of these groups, if there
        are any. Then `loss` and `keeps` are known."""
        way, settings = self._way, self._way.settings
        if groups:
            with way.outside(self._stub) as model:
                beside = Beside(self._leaves, self._take)
                part, where = part_of(way.units, groups), kept_in(settings, "behind")
                scores = capture(model, self._kept, self._loss_fn, part, where, beside)
            self.loss, self.keeps = float(scores.provenance["loss"]), scores.provenance.get("keeps", [])
            return scores
        total = 0.0
        before: KeptObjects = {}
        with self._running() as model, torch.enable_grad():
            losses = Losses(model, self._loss_fn, settings.seed)
            for batch in batches(self._kept, model, settings.class_of, settings.samples_of):
                if not batch.samples:
                    continue
                if batch.index == 1:  # the first may make what all use
                    before = kept_objects(model)
                _, loss = losses.answered(batch)
                if batch.index == 1:
                    self.keeps = changed(before, kept_objects(model))
                if not bool(torch.isfinite(loss.detach())):
                    raise NonFiniteError(f"the loss of batch {batch.index} is {float(loss)}")
                self._take(torch.autograd.grad(loss, self._leaves(), allow_unused=True))
                weight = batch.samples if settings.loss_reduction is LossReduction.MEAN else 1
                total += float(loss.detach()) * weight
        self.loss = total / sum(known.samples for known in way.known)
        return None

    def before(self, groups: Sequence[int]) -> Scores:
        """The scores of these groups, from the gradients at what passes into the first segment."""
        way = self._way

        def loss(output: Any, targets: Any) -> Tensor:
            assert self._passed is not None
            return along(self._passed, way.gradient(0, self._number(), self._passed.device, self._rows))

        self._strict = True
        with way.outside(self._stub) as model:
            scores = capture(model, self._kept, loss, part_of(way.units, groups), kept_in(way.settings, "before"))
        self._strict = False
        return scores

    @contextmanager
    def _running(self) -> Iterator[nn.Module]:
        with self._way.outside(self._stub) as model, running(model, self._way.units):
            yield model

    def _number(self) -> int:
        return self._number_of[self._kept.current]

    def _end(self, number: int) -> Tensor:
        return self._way.boundary(len(self._way.division.segments), number, torch.device("cpu"))

    def _leaves(self) -> Sequence[Tensor]:
        assert self._leaf is not None
        return [self._leaf]

    def _take(self, found: Sequence[Tensor | None]) -> None:
        number = self._number()
        self._way.keep_gradient(len(self._way.division.segments), number, found[0])

    def _stub(self, number: int, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given, boundary = Given.of(args, kwargs, block.given)
        if self._strict and any(t.requires_grad for t in tensors_in(given)):
            raise InputError(
                f"{block.path} is given more of what units before the blocks make than what passes between blocks; "
                f"{INSTEAD}"
            )
        if number == 0:
            self._passed = boundary
            self._rows = self._way.samples_in(self._number(), boundary.detach())
        if number < len(self._way.blocks) - 1:
            return block.output(nowhere_a_number(boundary))
        known = self._number()
        passed = self._way.boundary(len(self._way.division.segments), known, boundary.device, self._rows)
        self._leaf = passed.detach().requires_grad_(torch.is_grad_enabled() and not self._strict)
        return block.output(self._leaf.clone())
