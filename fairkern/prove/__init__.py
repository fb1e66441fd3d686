"""Prove, then allow: which groups of a traced map hold, by running the model pruned and masked."""

from __future__ import annotations

from fairkern.prove.inputs import vary
from fairkern.prove.strategy import proven
from fairkern.prove.trial import check_values, difference, failure, not_finite, prove

__all__ = ["check_values", "difference", "failure", "not_finite", "prove", "proven", "vary"]
