"""Prove, then allow: which groups of a traced map hold, by running the model pruned and masked."""

from __future__ import annotations

from fairkern.prove.choice import Verify, proof_bytes, proven_as
from fairkern.prove.inputs import vary
from fairkern.prove.strategy import proven
from fairkern.prove.trial import check_values, difference, failure, not_finite, prove

__all__ = [
    "Verify",
    "check_values",
    "difference",
    "failure",
    "not_finite",
    "proof_bytes",
    "prove",
    "proven",
    "proven_as",
    "vary",
]
