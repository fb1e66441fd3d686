"""Random models of every piece: what a trace allows is exact, and nothing of a model is changed by looking at it.

`python -m bench.graphs --reduce SEED` takes pieces away from a model that fails.
"""

from __future__ import annotations

import pytest
import torch

from bench.graphs import Row, figures, run
from bench.graphs.check import Wrong, apart
from bench.graphs.grow import Recipe, Step, drawn
from bench.graphs.pieces import PIECES, Kind

IN_CI, NIGHTLY = range(100), range(2000)
FEW, MANY = 6, 9  # pieces of a model, at most, besides stems and ends
WHOLE = 0.75  # of the parameters: what half of all models can cut at least; it is 0.9, and 0 if all froze

pytestmark = pytest.mark.filterwarnings("ignore")  # pieces warn of padding, of lazy state, of what torch deprecates


def check(rows: list[Row]) -> None:
    assert [(row.seed, row.problem, row.pieces) for row in rows if row.problem] == []
    found = figures(rows)
    assert found["median_share"] > WHOLE
    assert found["with_groups"] > 0.9 * len(rows)
    assert found["felt"] > 0.9 * found["with_groups"]
    assert found["prunable"] > 0.98 * found["groups"]


def test_a_hundred_models() -> None:
    check(list(run(IN_CI, most=FEW)))


@pytest.mark.nightly
@pytest.mark.parametrize("start", range(NIGHTLY.start, NIGHTLY.stop, 100))
def test_two_thousand_models(start: int) -> None:
    check(list(run(range(start, start + 100), most=MANY)))


def test_signals_that_die_on_the_way_hide_no_wrong_cut() -> None:
    """Without half of all units nothing arrives in the output; the group that a division counts shows alone."""
    (row,) = run([1475])
    assert not row.problem
    assert "scaled_by_count" in row.pieces
    assert row.prunable < row.groups


def test_a_seed_says_the_same_twice() -> None:
    first, again = (next(run([7])) for _ in range(2))
    assert first.pieces
    assert (first.pieces, first.groups, first.share) == (again.pieces, again.groups, again.share)


def test_every_kind_is_begun_made_and_ended() -> None:
    given = {kind for seed in range(200) for kind in drawn(seed).given}
    assert given == {Kind.PIXELS, Kind.CLIP, Kind.SOUND, Kind.WORDS, Kind.FRAMES, Kind.FACTS, Kind.MASK}
    named = {step.piece for seed in NIGHTLY for step in drawn(seed).steps}
    ends = {name for name, p in PIECES.items() if p.gives is Kind.ANSWER}  # these follow by themselves
    assert set(PIECES) - named - ends == set()


def test_other_results_and_other_shapes_are_wrong() -> None:
    with pytest.raises(Wrong, match="shapes"):
        apart(torch.zeros(2), torch.zeros(3))
    with pytest.raises(Wrong, match="not finite"):
        apart(torch.full((2,), torch.nan), torch.zeros(2))
    assert apart([torch.ones(2), torch.ones(2)], [torch.ones(2), torch.tensor([1.0, 1.5])]) == 0.5


def test_a_step_may_be_taken_away() -> None:
    recipe = Recipe(0, (Kind.FACTS,), (Step("fact_stem", (0,), 1), Step("layer", (0,), 2), Step("highway", (0,), 3)))
    assert recipe.without(1).steps == (recipe.steps[0], recipe.steps[2])
