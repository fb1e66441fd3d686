from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.report import FEW, compared, latency_ms, one_after_the_other, timed
from fairkern.report.latency import STEADY
from fairkern.report.wording import changed, shown, timing_lines
from fairkern.types import Report

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """Models on a clock of their own: each pass takes the next of the given seconds."""
    now = [0.0]

    class Slow(nn.Module):
        def __init__(self, *seconds: float) -> None:
            super().__init__()
            self.seconds: Iterator[float] = itertools.cycle(seconds)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            now[0] += next(self.seconds)
            return x

        def extra_repr(self) -> str:
            return f"{now[0]}"

    monkeypatch.setattr("fairkern.report.latency.clock_for", lambda inputs: lambda: now[0])
    return Slow


@pytest.mark.parametrize(("seconds", "least", "passes"), [(0.3, FEW, 4), (0.3, 10, 13), (0.02, FEW, 27)])
def test_a_slow_model_is_timed_by_a_few_passes(slow, seconds, least, passes):
    model = slow(seconds)
    assert latency_ms(model, torch.randn(2), least) == pytest.approx(1e3 * seconds)
    assert round(float(model.extra_repr()) / seconds) == passes


def test_latency_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[1].eval()
    modes = [module.training for module in model.modules()]
    statistics = model[1].running_mean.clone()
    assert 0 < latency_ms(model, torch.randn(3, 4)) < 1000
    assert latency_ms(nn.Bilinear(2, 2, 2), (torch.randn(3, 2), torch.randn(3, 2))) > 0
    assert latency_ms(nn.Linear(4, 4), {"input": torch.randn(3, 4)}) > 0
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[1].running_mean, statistics)
    with pytest.raises(RuntimeError):
        latency_ms(model, torch.randn(3, 5))
    assert [module.training for module in model.modules()] == modes


def test_what_slows_both_down_is_not_in_the_speedup(slow) -> None:
    """Every fifth pair meets other work, which makes both three times as slow."""
    made = compared(slow(*[0.03] * 4, 0.09), slow(*[0.01] * 4, 0.03), X)
    assert made["speedup"] == pytest.approx({"p20": 3, "p50": 3, "p80": 3})
    seconds = np.resize([30.0] * 4 + [90.0], 3 + made["passes"])[3:]  # after three to warm up
    assert made["before"] == pytest.approx({f"p{p}": np.percentile(seconds, p) for p in (20, 50, 80)})
    assert made["passes"] == 10  # the least
    assert made["inputs"] == ["2x3x4 float32"]
    assert made["threads"] == torch.get_num_threads()
    assert made["device"]["device"] == "cpu"


def test_half_a_second_is_for_both_models(slow) -> None:
    assert compared(slow(0.01), slow(0.01), X)["passes"] == 25


@pytest.mark.parametrize(("second", "steady"), [(0.12, True), (0.13, False)])
def test_a_clock_is_unsteady_from_a_stated_ratio_on(slow, second, steady) -> None:
    quiet, other = slow(0.1), slow(0.1, second)
    for made in (compared(quiet, other, X), compared(other, quiet, X), timed(other, X)):
        assert made["bound"] == STEADY == 1.25
        assert made["steady"] is steady
    assert one_after_the_other(timed(quiet, X), timed(other, X))["steady"] is steady
    assert timed(quiet, X)["steady"] is True


def test_of_models_that_took_no_turns_no_speedup_is_told(slow) -> None:
    made = one_after_the_other(timed(slow(0.2), X), timed(slow(0.1), X))
    assert (made["before"]["p50"], made["after"]["p50"]) == pytest.approx((200, 100))
    assert "speedup" not in made
    assert "one model after the other" in timing_lines(made)[0]


def test_an_unsteady_clock_gives_ranges_and_says_so() -> None:
    spread = {"before": {"p20": 10.0, "p50": 12.0, "p80": 40.0}, "after": {"p20": 1.0, "p50": 1.1, "p80": 1.2}}
    timing = {**spread, "speedup": {"p20": 8.0, "p50": 11.0, "p80": 27.99}, "steady": False, "bound": 1.25}
    latency = ({"latency_ms": 12.0}, {"latency_ms": 1.1})
    report = Report("Net", *latency, (), {}, timing=timing)
    assert [shown(report, "latency_ms", when) for when in ("before", "after")] == ["10–40 ms", "1–1.2 ms"]
    assert changed(report, "latency_ms", "after") == "8–28× as fast"
    assert "unsteady (80th percentile over 1.25 times the 20th)" in timing_lines(timing)[1]
    quiet = Report("Net", *latency, (), {}, timing={**timing, "steady": True})
    assert shown(quiet, "latency_ms", "before") == "12 ms"
    assert changed(quiet, "latency_ms", "after") == "−90.8 % (10.91×)"
    assert len(timing_lines(quiet.timing)) == 1


def test_a_report_of_prune_says_how_and_where_it_was_timed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    loader = [(torch.randn(12, 6), torch.arange(12) % 3)]
    for inplace in (False, True):
        _, report = fk.prune(
            model,
            loader,
            nn.CrossEntropyLoss(),
            keep_params=0.7,
            inplace=inplace,
            seed=3,
            projections=4,
            progress=False,
        )
        assert ("speedup" in report.timing) is not inplace
        assert report.timing["inputs"] == ["2x6 float32"]
        for when, measures in (("before", report.before), ("after", report.after)):
            assert report.timing[when]["p20"] <= measures["latency_ms"] <= report.timing[when]["p80"]
        assert report.environment["seeds"] == {"scoring": 3}
        assert report.environment["cores"] >= 1
        assert "20th to 80th percentile" in report.table()
