"""When what holds positions back lapses."""

from __future__ import annotations

import enum


class Unless(enum.Enum):
    """When a freeze lapses.

    NEVER: whoever called the model sees these positions. All others lapse for experts that are modules of a list, since
    the trace sees no link between them and a router's choice: only a proof can tell. LISTED: in no other case. ROUTED:
    also for experts that a router can leave out, since one whose logit is −inf is as good as gone. PROVEN: also where
    a proof shows that the code follows the cut by itself, or by its size sites.
    """

    NEVER = "never"
    LISTED = "listed"
    ROUTED = "routed"
    PROVEN = "proven"
