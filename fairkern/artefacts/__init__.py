"""Files of scores, plans and latency tables: safetensors and JSON with a schema version and a sum, written atomically.

No pickle. What a report's file holds is said in `report/files.py`.
"""

from __future__ import annotations

from fairkern.artefacts.files import SCHEMA, read_json, write_json
from fairkern.artefacts.latency import load_latency, save_latency
from fairkern.artefacts.plans import load_plan, plan_text, read_plan_text, save_plan
from fairkern.artefacts.scores import load_scores, save_scores
from fairkern.artefacts.writing import replacing

__all__ = [
    "SCHEMA",
    "load_latency",
    "load_plan",
    "load_scores",
    "plan_text",
    "read_json",
    "read_plan_text",
    "replacing",
    "save_latency",
    "save_plan",
    "save_scores",
    "write_json",
]
