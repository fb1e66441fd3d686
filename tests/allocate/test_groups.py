"""What a function that scores units is told of their group, and what it could always do with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.types import AxisGroup


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, fk.Scores]:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model, y = nn.Sequential(*layers, nn.Linear(5, 3)).eval(), torch.arange(12) % 3
    loader = [(torch.randn(12, 2, 8, 8) + y[:, None, None, None], y)]
    return model, fk.score(model, loader, nn.functional.cross_entropy, gram=True, progress=False)


def seen(scores: fk.Scores, **options: Any) -> list[fk.Group]:
    """The groups that a function is given."""
    groups: list[fk.Group] = []

    def signal(group: fk.Group) -> np.ndarray:
        groups.append(group)
        return np.arange(group.total)

    scores.plan(keep_params=0.7, allocation="uniform", **{"removal": signal, **options})
    return groups


def test_a_group_says_what_scoring_knows_of_it(made: tuple[nn.Module, fk.Scores]) -> None:
    scores = made[1]
    first, second = seen(scores)
    assert isinstance(first, AxisGroup)
    assert (first.name, first.kind, first.units, first.total, second.total) == ("0", "channel", 6, 6, 5)
    assert first.signals.keys() == {"wasserstein", "taylor", "residual", "activation", "l1", "l2"}
    for group, number in ((first, 0), (second, 1)):
        for name, values in group.signals.items():
            assert np.array_equal(values, scores.signals[name][number])
    assert np.array_equal(second.l1, scores.signals["l1"][1])
    assert np.array_equal(second.l2, scores.signals["l2"][1])
    (tap,) = first.taps
    assert np.array_equal(first.means[tap.name], scores.means[tap.name][:, None])
    assert torch.equal(first.moments[tap.name].gram, scores.moments[tap.name].gram)
    # a filter and its bias, and what the next layer reads of it; places: 6 × 6 and 4 × 4
    assert first.params == 2 * 9 + 1 + 5 * 9
    assert second.params == 6 * 9 + 1 + 3
    assert first.flops > second.flops > 0
    assert first.map is scores.units
    assert repr(second).startswith("<Group '2': 5 units of kind 'channel'; wasserstein, taylor, ")


def test_functions_of_before_work_as_they_did(made: tuple[nn.Module, fk.Scores]) -> None:
    """They look a group up in its map, by itself or by its name, and read what it is."""
    scores = made[1]
    groups = scores.units.groups
    for number, group in enumerate(seen(scores)):
        assert groups.index(group) == number
        assert group in groups
        assert group == groups[number]
        assert group != groups[1 - number]
        assert vars(groups[number]).items() <= vars(group).items()
        assert {group: 1}[group] == 1
        assert len(group.producer_modules) == 1
    assert seen(scores)[0] == seen(scores)[0]
    assert seen(scores)[0] != "0"


def test_scores_cannot_be_changed_through_it(made: tuple[nn.Module, fk.Scores]) -> None:
    group = seen(made[1])[0]
    for values in (group.signals["taylor"], group.l1, *group.means.values()):
        assert values is not None
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1.0
    with pytest.raises(TypeError):
        group.signals["mine"] = group.l1  # type: ignore[index]
    with pytest.raises(AttributeError):
        group.name = "other"  # type: ignore[misc]


def test_what_was_not_measured_is_not_there(made: tuple[nn.Module, fk.Scores]) -> None:
    scores = made[1]
    bare = fk.Scores(scores.units, {"taylor": scores.signals["taylor"]}, {}, {})
    group = seen(bare)[0]
    assert (group.signals.keys(), group.l1, group.l2) == ({"taylor"}, None, None)
    assert (dict(group.means), dict(group.moments)) == ({}, {})


def test_a_signal_of_ones_own_from_what_is_known(made: tuple[nn.Module, fk.Scores]) -> None:
    model, scores = made
    by_function = scores.plan(keep_params=0.5, allocation="uniform", removal=lambda group: group.l1)
    by_name = scores.plan(keep_params=0.5, allocation="uniform", removal="l1")
    assert [g.removed.tolist() for g in by_function.groups] == [g.removed.tolist() for g in by_name.groups]

    def own(group: fk.Group) -> torch.Tensor:
        (rows,) = group.map.weights(model, group).values()
        return rows.abs().sum(1)

    by_weights = scores.plan(keep_params=0.5, allocation="uniform", removal=own)
    assert [g.removed.tolist() for g in by_weights.groups] == [g.removed.tolist() for g in by_name.groups]
    tod = scores.plan(keep_params=0.5, allocation="tod", protect=lambda group: group.signals["residual"])
    assert tod.request["protect"] == "function <lambda>"
