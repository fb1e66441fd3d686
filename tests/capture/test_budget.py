"""A memory budget: what it covers, which passes it takes, what it refuses, and that it holds under a real limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from tests.capture.networks import Branches, Plain, build, loader, samples

ROOT = Path(__file__).resolve().parents[2]


def deep(width: int = 40, layers: int = 4) -> nn.Module:
    torch.manual_seed(0)
    inner = [m for _ in range(layers) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), *inner, nn.Linear(width, 3)).eval()


def data(n: int = 60) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(1))
    return list(zip(x.split(20), (torch.arange(n) % 3).split(20), strict=True))


def score(model: nn.Module, batches: Iterable[Any], **options: Any) -> fk.Scores:
    return fk.score(model, batches, nn.CrossEntropyLoss(), progress=False, **{"gram": True, **options})


def same(a: fk.Scores, b: fk.Scores) -> None:
    assert a.signals.keys() == b.signals.keys()
    for name, values in a.signals.items():
        for x, y in zip(values, b.signals[name], strict=True):
            np.testing.assert_array_equal(x, y)


def least(model: nn.Module, batches: Iterable[Any], **options: Any) -> int:
    """The least budget, as the error names it."""
    with pytest.raises(fk.InputError, match="The least that would do is") as caught:
        score(model, batches, memory_budget=1, **options)
    return int(str(caught.value).split("The least that would do is ")[1].split(" ")[0].replace(",", ""))


@pytest.mark.parametrize("classes", [None, False])
@pytest.mark.parametrize("keep", [True, False])
def test_the_least_that_is_named_does_and_no_less(classes: bool | None, keep: bool) -> None:
    model, batches, options = deep(), data(), {"class_of": classes, "keep_moments": keep}
    whole = score(model, batches, class_of=classes)
    named = least(model, batches, **options)
    found = score(model, batches, memory_budget=named, **options)
    same(whole, found)
    assert found.provenance["passes"] > (0 if keep else 1)
    with pytest.raises(fk.InputError, match="least that would do"):
        score(model, batches, memory_budget=named - 1, **options)


@pytest.mark.parametrize("kind", [Plain, Branches])
def test_moments_that_do_not_fit_are_heard_in_further_passes(kind: type[nn.Module], tmp_path: Path) -> None:
    model, batches = build(kind).eval(), loader(*samples(), 8)
    whole = score(model, batches, class_of=False)
    budget = least(model, batches, class_of=False, keep_moments=False)
    for number, share in enumerate((1.0, 1.3)):
        folder = tmp_path / str(number)
        found = score(model, batches, class_of=False, keep_moments=folder, memory_budget=int(share * budget))
        same(whole, found)
        assert list(found.moments) == list(whole.moments)
        for name, moments in whole.moments.items():
            assert torch.equal(found.moments[name].gram, moments.gram)
            assert torch.equal(found.moments[name].total, moments.total)


def test_a_loader_that_runs_out_is_refused_before_the_first_pass() -> None:
    model, batches = deep(), data()
    budget = least(model, batches, class_of=False, keep_moments=False)
    options: dict[str, Any] = {"class_of": False, "keep_moments": False, "memory_budget": budget}
    with pytest.raises(fk.InputError, match=r"re-iterable loader or memory_budget=[\d,]+$") as caught:
        score(model, iter(batches), **options)
    enough = int(str(caught.value).rpartition("=")[2].replace(",", ""))
    found = score(model, iter(batches), **{**options, "memory_budget": enough})
    assert found.provenance["passes"] == 1


@pytest.mark.parametrize(
    ("budget", "says"), [(0, "too small"), (-5, "too small"), ("1 GB", "whole number"), (1.5, "whole number")]
)
def test_budgets_that_are_none(budget: Any, says: str) -> None:
    with pytest.raises(fk.InputError, match=f"memory_budget.*{says}"):
        score(deep(), data(), memory_budget=budget)


def test_where_moments_are_kept(tmp_path: Path) -> None:
    model, batches = deep(), data()
    whole = score(model, batches)
    assert score(model, batches, keep_moments=False).moments == {}
    found = score(model, batches, keep_moments=tmp_path / "new" / "moments")
    files = sorted((tmp_path / "new" / "moments").iterdir())
    assert len(files) == len(whole.moments)
    plan = whole.plan(keep_params=0.5)
    small = fk.apply(model, plan, compensate="least_squares", scores=whole)
    other = fk.apply(model, plan, compensate="least_squares", scores=found)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), other.parameters(), strict=True))
    found.save(tmp_path / "scores.safetensors")
    back = fk.Scores.load(tmp_path / "scores.safetensors")
    assert list(back.moments) == list(whole.moments)
    assert all(torch.equal(back.moments[name].gram, m.gram) for name, m in whole.moments.items())
    with pytest.raises(fk.InputError, match="new or an empty one"):
        score(model, batches, keep_moments=tmp_path / "new" / "moments")
    with pytest.raises(fk.InputError, match="gram=True"):
        score(model, batches, gram=False, keep_moments=tmp_path / "other")
    with pytest.raises(fk.InputError, match="keep_moments=3"):
        score(model, batches, keep_moments=3)
    files[0].write_bytes(files[0].read_bytes()[:-8])
    with pytest.raises(fk.ArtefactError, match="truncated"):
        _ = [found.moments[name] for name in found.moments]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the address space are Linux's")
@pytest.mark.parametrize(("case", "options"), [("language", {"keep_moments": False}), ("language", {}), ("images", {})])
def test_a_budget_holds_under_a_real_limit(case: str, options: dict[str, Any]) -> None:
    """Where tensors are given back as they go: what glibc's heap has in pieces between others is none that is held."""
    apart = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "tests.limited", case, json.dumps(options), "1", "1.5", "2.2"]
    done = subprocess.run(command, cwd=ROOT, env=apart, capture_output=True, text=True, check=True)
    whole, unbounded, refused, *found = map(json.loads, done.stdout.splitlines())
    assert "can't allocate memory" in unbounded["says"], "the limit has to be one that matters"
    assert refused["error"] == "InputError"
    assert len(found) == 3
    for one in found:
        assert one.get("found", one).get("plan") == whole["found"]["plan"], one


def test_moments_that_are_gone_or_of_another_scoring_are_refused(tmp_path: Path) -> None:
    model, folder = deep(layers=1), tmp_path / "moments"
    first = score(model, data(), keep_moments=folder)
    name = next(iter(first.moments))
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(fk.ArtefactError, match="is gone"):
        first.moments[name]
    second = score(model, [(2 * x, y) for x, y in data()], keep_moments=folder)
    assert second.moments[name].count == score(model, data()).moments[name].count
    with pytest.raises(fk.ArtefactError, match="another scoring"):
        first.moments[name]


def test_what_a_batch_takes_and_holds() -> None:
    """One and two samples tell of all: activations that go backwards, and those that stand at a layer."""
    x = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(256, 256), nn.ReLU())), nn.Linear(256, 3)).eval()
    batches = [(x, torch.arange(16) % 3)]
    predicted = score(model, batches, gram=False, memory_budget=10**9).provenance["predicted_bytes"]
    layer = 16 * 256 * 4
    assert 6 * layer < predicted["batch"] < 16 * layer  # of every ReLU its result, and gradients on the way
    assert layer <= predicted["held"] < 4 * layer
