"""How long something may take."""

from __future__ import annotations

import time

from fairkern.errors import InputError, TimeLimitError


class Deadline:
    """A number of seconds from now, or none. `check` is called between steps; a step is not interrupted.

    Raises InputError unless `seconds` is above 0, or None for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not (isinstance(seconds, (int, float)) and seconds > 0):
            raise InputError(f"time_limit={seconds!r} is not a number of seconds; expected one above 0, or None")
        self._seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def check(self, doing: str) -> None:
        """TimeLimitError if the time is up; `doing` ends "after … s in …"."""
        if self._end is not None and time.monotonic() > self._end:
            raise TimeLimitError(
                f"tracing stopped after {self._seconds:g} s in {doing}; the model is as it was. Give more with "
                "time_limit=, smaller example inputs, or verify=False to leave out the proof"
            )


NO_LIMIT = Deadline(None)
