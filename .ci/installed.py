"""`python installed.py native|reference`: an installed fairkern, outside of its checkout, does its whole job.

With `native` the compiled extension is there and is what operators run on by themselves; with `reference` it is not,
and `fairkern info` says so. Prints one line of JSON: on what it runs, and what came of the job, which is the same
either way but for the order of floating-point sums.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
from torch import nn

import fairkern as fk

BOTH = ("class_wasserstein", "wasserstein_1d", "taylor", "project", "gather", "tod_curve")  # compiled for CPUs too


def told() -> dict:
    """What the command `fairkern info` says, from the folder of this interpreter's commands."""
    command = [str(Path(sysconfig.get_path("scripts")) / "fairkern"), "info", "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def job() -> dict:
    """One pass over data, a plan for half of the parameters, a compensated cut."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)).double().eval()
    y = torch.arange(120) % 5
    x = torch.randn(120, 3, 8, 8, dtype=torch.float64) + y[:, None, None, None] / 3
    loader = list(zip(x.split(40), y.split(40), strict=True))
    scores = fk.score(model, loader, nn.CrossEntropyLoss(), gram=True)
    plan = scores.plan(keep_params=0.5)
    with plan.masked(model):
        masked = model(x)
    small = fk.apply(model, plan)
    torch.testing.assert_close(small(x), masked, rtol=1e-9, atol=1e-9)
    small = fk.apply(model, plan, compensate="least_squares", scores=scores)
    sums = {name: float(sum(values.sum() for values in signal)) for name, signal in scores.signals.items()}
    with torch.no_grad():
        output = float(small(x).abs().sum())
    return {"kept": [p.numel() for p in small.parameters()], **sums, "output": output}


def main(expected: str) -> None:
    info, place = told(), Path(fk.__file__).resolve().parent
    assert place.is_relative_to(Path(sysconfig.get_path("platlib")).resolve()), f"{place} is not what was installed"
    reasons = {name: info["operators"][name].get("native", "not compiled") for name in BOTH}
    if expected == "native":
        assert info["extension"]["unavailable"] is None, info["extension"]
        assert set(reasons.values()) == {None}, reasons
    else:
        assert "not built" in info["extension"]["unavailable"], info["extension"]
        assert all(reasons.values()), reasons
    built = {key: info["extension"].get(key) for key in ("compiler", "isa", "openmp", "unavailable")}
    print(json.dumps({"expected": expected, **built, **info["versions"], "job": job()}))


if __name__ == "__main__":
    main(sys.argv[1])
