"""What passes between the stages: plain data, no mathematics, no models."""

from __future__ import annotations

from fairkern.types.arrays import FloatArray, IndexArray
from fairkern.types.branches import Blocks, Branch, BranchPart, Entries, Numbers, numbered
from fairkern.types.build import Build
from fairkern.types.configuration import ConfigChange, ConfigField
from fairkern.types.files import FilePart, Files, FileTensor, Places
from fairkern.types.latency import LatencyCut, LatencyTable
from fairkern.types.plans import AttributeChange, Plan, PlanAxis, PlanGroup, RowsChange, SizeChange
from fairkern.types.report import Report
from fairkern.types.scores import JointMoments, Moments, Scores, signals_alone
from fairkern.types.sizes import Passed, Replacement, SiteNumber, SizeAttribute, SizeSite
from fairkern.types.told import Told, silent
from fairkern.types.units import (
    Axis,
    AxisGroup,
    CallSite,
    CostTerm,
    Extent,
    FrozenAxis,
    GroupAxis,
    KeptUnits,
    Side,
    Silence,
    Tap,
    UnitMap,
)

__all__ = [
    "AttributeChange",
    "Axis",
    "AxisGroup",
    "Blocks",
    "Branch",
    "BranchPart",
    "Build",
    "CallSite",
    "ConfigChange",
    "ConfigField",
    "CostTerm",
    "Entries",
    "Extent",
    "FilePart",
    "FileTensor",
    "Files",
    "FloatArray",
    "FrozenAxis",
    "GroupAxis",
    "IndexArray",
    "JointMoments",
    "KeptUnits",
    "LatencyCut",
    "LatencyTable",
    "Moments",
    "Numbers",
    "Passed",
    "Places",
    "Plan",
    "PlanAxis",
    "PlanGroup",
    "Replacement",
    "Report",
    "RowsChange",
    "Scores",
    "Side",
    "Silence",
    "SiteNumber",
    "SizeAttribute",
    "SizeChange",
    "SizeSite",
    "Tap",
    "Told",
    "UnitMap",
    "numbered",
    "signals_alone",
    "silent",
]
