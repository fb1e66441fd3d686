"""Names that speak of a state: what a model keeps, returns or is given from one call to the next."""

from __future__ import annotations

import re

_STATE = frozenset(
    {"cache", "caches", "past", "kv", "kvs", "state", "states", "mems", "memory", "memories", "hidden", "hx", "carry"}
)


def words(name: str) -> set[str]:
    """`past_key_values` → past, key, values."""
    return set(re.split(r"[_\d]+", name.lower()))


def speaks_of_state(name: str) -> bool:
    """Whether a name is one of a cache or a recurrent state; `hidden_states` are what a layer makes."""
    return bool(words(name) & _STATE) and not name.endswith("hidden_states")
