"""The last walk against one pass: what is left, segment by segment, is what `cut` leaves of the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.capture import Settings
from fairkern.compensate import Compensation
from fairkern.compensate.cut import cut
from fairkern.compensate.intercepts import Biases, Places
from fairkern.plans.build import build
from fairkern.walk.boundaries import Boundaries, kept_batches
from fairkern.walk.cutting import cut_segments, intercepts, left_of
from fairkern.walk.scoring import divided
from fairkern.walk.sides import Sides, Way
from fairkern.walk.traversal import Traversal
from tests.walk.models import Batches, Residual, vectors

SETTINGS = Settings(class_of=False, gram=True)


def planned(model: nn.Module, loader: Batches, before: int = 0) -> tuple[fk.Scores, fk.Plan]:
    """Half of the units of the blocks and of what is behind them; so many of what is before."""
    units = fk.trace(model, loader[0][0])
    scores = fk.score(model, loader, nn.CrossEntropyLoss(), units=units, class_of=False, gram=True, progress=False)
    removed = [np.arange(before if group.name == "enter" else group.units // 2) for group in units.groups]
    return scores, fk.Plan.of(build(units, removed))


def more(like: Batches) -> Batches:
    """Further batches, of the same dtype."""
    return [(x.to(like[0][0].dtype), y) for x, y in vectors((3, 2))]


def walked(
    model: nn.Module, loader: Batches, scores: fk.Scores, plan: fk.Plan, method: Compensation, folder: Path | None
) -> tuple[dict[str, Tensor], dict[tuple[Way, int], Tensor], list[Any]]:
    """What is left by its names, what the model returned for batches beside, and the corrections."""
    left: dict[str, Tensor] = {}
    heard: dict[tuple[Way, int], Tensor] = {}
    with Boundaries(folder) as store, Boundaries(folder) as beside, Boundaries(folder) as passing:
        division = divided(model, loader, scores.units, SETTINGS, loss_fn=nn.CrossEntropyLoss())
        ways = []
        for held, batches in ((store, loader), (beside, more(loader))):
            ways.append(Traversal(model, scores.units, division, held, SETTINGS))
            ways[-1].begin(kept_batches(held, batches))
        places = Places(model, plan, scores.units, Biases.AUTO)
        assert intercepts(model, plan, scores, method, places).flags == ()

        def write(changed: nn.Module, part: fk.Plan) -> None:
            left.update((name, tensor.clone()) for name, tensor in left_of(changed.state_dict(), changed, part))

        def hear(way: Way, number: int, output: Any) -> None:
            heard[way, number] = output

        found = cut_segments(Sides(ways, passing), plan, scores, method, places, write, hear)
    return left, heard, found


@pytest.mark.parametrize("method", ["none", "mean", "least_squares", "sequential"])
def test_segments_become_what_the_whole_model_becomes(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, kind = Residual().double().eval(), Compensation(method)
    loader = [(x.double(), y) for x, y in vectors()]
    scores, plan = planned(model, loader)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = cut(model, plan, kind, scores, loader, inplace=False)
    left, _, found = walked(model, loader, scores, plan, kind, tmp_path)
    expected = done.model.state_dict()
    assert left.keys() == expected.keys()
    assert all(torch.equal(left[name], expected[name]) for name in expected)
    said = {c.axis: (c.note, c.unexplained) for c in done.corrections}
    assert {c.axis: (c.note, c.unexplained) for c in found} == said
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert list(tmp_path.iterdir()) == []


class ByItsSize(nn.ReLU):
    """What no smaller model shows: from some width on it does something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 if x.shape[-1] > 9 else 3.0)


@pytest.mark.parametrize("method", ["none", "sequential"])
def test_a_segment_that_is_not_what_it_is_masked_is_refused(method: str) -> None:
    torch.manual_seed(0)
    model, loader = Residual().eval(), vectors()
    model.blocks[1].up = nn.Sequential(model.blocks[1].up, ByItsSize())
    units = fk.trace(model, loader[0][0], verify=False)
    scores = fk.score(model, loader, nn.CrossEntropyLoss(), units=units, class_of=False, gram=True, progress=False)
    names = [group.name for group in units.groups]
    removed = [np.arange(group.units // 2 if group.name.startswith("blocks") else 0) for group in units.groups]
    assert any(name.startswith("blocks.1") for name in names)
    plan = fk.Plan.of(build(units, removed))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(fk.InputError, match=r"what is left of blocks\.1\.\S+ .* differs from the same masked"):
        walked(model, loader, scores, plan, Compensation(method), None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_batches_beside_are_heard_on_both_ways() -> None:
    torch.manual_seed(0)
    model, loader = Residual().eval(), vectors()
    scores, plan = planned(model, loader)
    done = cut(model, plan, Compensation.SEQUENTIAL, scores, loader, inplace=False)
    _, heard, _ = walked(model, loader, scores, plan, Compensation.SEQUENTIAL, None)
    assert sorted(heard) == [(way, number) for way in Way for number in range(2)]
    with torch.no_grad():
        for number, (x, _) in enumerate(more(loader)):
            torch.testing.assert_close(heard[Way.UNCUT, number], model(x), rtol=0, atol=0)
            torch.testing.assert_close(heard[Way.CUT, number], done.model(x), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_cut_by_segments_is_refused() -> None:
    torch.manual_seed(0)
    model, loader = Residual().eval(), vectors()
    scores, plan = planned(model, loader, before=2)
    with pytest.raises(fk.InputError, match="cuts enter, which runs before the blocks"):
        walked(model, loader, scores, plan, Compensation.SEQUENTIAL, None)
    with pytest.raises(fk.InputError, match="all layers together"):
        walked(model, loader, *planned(model, loader), Compensation.JOINT, None)
