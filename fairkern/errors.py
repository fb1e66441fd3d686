"""What fairkern raises. Every message says what was given, what was expected, and what to do."""

from __future__ import annotations


class FairkernError(Exception):
    """Base of everything that fairkern raises on purpose. `rank`: the process that it comes from, where that is another
    one of several."""

    rank: int | None = None


class InputError(FairkernError, ValueError):
    """An argument, a batch or a label array that cannot be used: shapes, dtypes, options, an empty loader."""


class NonFiniteError(FairkernError, ArithmeticError):
    """NaN or Inf in the loss, in activations or in gradients; names the layer and the batch."""


class PlanMismatchError(FairkernError, ValueError):
    """A plan or scores made for another architecture; names the first axis that differs."""


class BackendError(FairkernError, RuntimeError):
    """A backend that was asked for cannot run here; says why."""


class BudgetError(FairkernError, ValueError):
    """A budget that no allowed plan reaches; gives the reachable range."""


class TimeLimitError(FairkernError, TimeoutError):
    """Tracing took longer than its time limit; says where it was."""


class ArtefactError(FairkernError, ValueError):
    """A file that is truncated, damaged or edited, not fairkern's, or written by a newer schema."""


class RankError(FairkernError, RuntimeError):
    """Another process of the run died, is somewhere else in the code, or was stopped by an error that is not ours."""
