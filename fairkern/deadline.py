"""How long something may take."""

from __future__ import annotations

import math
import time

from fairkern.errors import InputError, TimeLimitError
from fairkern.options import real

_EXPECTED = "a number of seconds above 0, or None"


class Deadline:
    """A number of seconds from now, or none. `check` is called between steps; a step is not interrupted.

    Raises InputError unless `seconds` is above 0, or None for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        unlimited = seconds is None or (isinstance(seconds, float) and seconds == math.inf)
        self._seconds = None if unlimited else real("time_limit", seconds, _EXPECTED)
        if self._seconds is not None and self._seconds <= 0:
            raise InputError(f"time_limit={seconds!r} is too small; expected {_EXPECTED}")
        self._end = None if self._seconds is None else time.monotonic() + self._seconds

    def check(self, doing: str) -> None:
        """TimeLimitError if the time is up; `doing` ends "after … s in …"."""
        if self._end is not None and time.monotonic() > self._end:
            raise TimeLimitError(
                f"tracing stopped after {self._seconds:g} s in {doing}; the model is as it was. Give more with "
                "time_limit=, smaller example inputs, or verify=False to leave out the proof"
            )


NO_LIMIT = Deadline(None)
