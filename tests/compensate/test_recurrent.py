"""Compensation within recurrent layers, against fits made on loops written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern import compact, compensate
from fairkern.compensate import Compensation
from fairkern.plans.build import build
from tests.capture.test_recurrent import KINDS, Rows, Y, scored, sequences
from tests.compensate.test_refit import sequential
from tests.loops import loop

GONE = [1, 4]
SHAPES = [(1, False, True), (2, False, True), (2, True, True), (2, False, False)]  # layers, both directions, biases
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def model_of(kind: str, layers: int = 2, both: bool = False, bias: bool = True) -> nn.Module:
    torch.manual_seed(1)
    return Rows(KINDS[kind](4, 7, layers, bidirectional=both, bias=bias, batch_first=True)).double().eval()


def planned(scores: fk.Scores, units: Sequence[int] = GONE) -> fk.Plan:
    """Plan that removes hidden units alone."""
    gone = [np.array(units if "rnn" in g.name else [], dtype=np.int64) for g in scores.units.groups]
    return build(scores.units, gone)


def cut(model: nn.Module, scores: fk.Scores, method: str, units: Sequence[int] = GONE) -> nn.Module:
    plan = planned(scores, units)
    found = compensate.corrections(model, plan, scores, Compensation(method), ridge=1e-13)
    assert all(c.weight is not None for c in found)
    small = compact.apply(model, plan)
    compensate.fold(small, plan, found)
    return small


def stays(rnn: nn.RNNBase, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the gates and columns of the states that stay."""
    one = np.setdiff1d(np.arange(7), GONE)
    rows = np.concatenate([one + 7 * g for g in range(GATES[rnn.mode])])
    return rows, np.concatenate([one + 7 * d for d in range(columns // 7)])


@pytest.mark.parametrize(("layers", "both", "bias"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_gets_its_best_fit(kind: str, layers: int, both: bool, bias: bool) -> None:
    """Gates of what stays, fitted by another solver to the states that stay: the same weights and biases."""
    model, x = model_of(kind, layers, both, bias), sequences(24, 6)
    small = cut(model, scored(model, x, gram=True), "least_squares")
    read, _ = loop(model.rnn, list(x))
    before, after = dict(model.rnn.named_parameters()), dict(small.rnn.named_parameters())
    assert len(read) == (2 if both else 1) * (2 * layers - 1)
    for name, states in read.items():
        rows, columns = stays(model.rnn, states.shape[1])
        design = states[:, columns]
        if bias:
            design = np.hstack([design, np.ones((len(states), 1))])
        wanted = states @ before[name].detach().numpy()[rows].T
        fit = np.linalg.lstsq(design, wanted, rcond=None)[0]
        live = states[:, columns].any(0)  # a state that is always zero may be read in any way
        made = after[name].detach().numpy()
        np.testing.assert_allclose(made[:, live], fit[: len(columns)].T[:, live], rtol=1e-5, atol=1e-7)
        if bias:
            old, new = (p[name.replace("weight", "bias")].detach().numpy() for p in (before, after))
            np.testing.assert_allclose(new, old[rows] + fit[-1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["least_squares", "sequential"])
@pytest.mark.parametrize(("layers", "both", "bias"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_that_another_tells_is_not_missed(kind: str, layers: int, both: bool, bias: bool, method: str) -> None:
    """Unit 4 is always what unit 2 is, and unit 1 is always zero: without them nothing changes."""
    model, x = model_of(kind, layers, both, bias), sequences(24, 6)
    with torch.no_grad():
        for p in model.rnn.parameters():
            made = p.view(-1, 7, *p.shape[1:])  # gates, units, …
            made[:, 4] = made[:, 2]
            made[:, 1] = 0
    scores = scored(model, x, gram=True)
    if method == "least_squares":
        small = cut(model, scores, method)
    else:
        small = sequential(model, scores, planned(scores), [(x[:10], Y[:10]), (x[10:], Y[10:])])
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-6)


def test_means_go_into_the_biases_of_what_reads_them() -> None:
    model, x = model_of("GRU"), sequences(24, 6)
    small = cut(model, scored(model, x), "mean")
    read, _ = loop(model.rnn, list(x))
    for name, states in read.items():
        rows, columns = stays(model.rnn, 7)
        weight = getattr(model.rnn, name).detach().numpy()
        bias, made = (getattr(m.rnn, name.replace("weight", "bias")).detach().numpy() for m in (model, small))
        np.testing.assert_allclose(made, (bias + weight[:, GONE] @ states.mean(0)[GONE])[rows], rtol=1e-9)
        np.testing.assert_array_equal(getattr(small.rnn, name).detach().numpy(), weight[np.ix_(rows, columns)])


def test_without_biases_means_cannot_go_anywhere() -> None:
    model, x = model_of("LSTM", bias=False), sequences(24, 6)
    scores = scored(model, x)
    found = compensate.corrections(model, planned(scores), scores, Compensation.MEAN)
    told = {c.axis.tensor: c.note for c in found if c.weight is None}
    assert set(told) == {"rnn.weight_hh_l0", "rnn.weight_ih_l1", "rnn.weight_hh_l1"}
    assert all("no bias" in note for note in told.values())


def test_a_layer_that_runs_twice_is_fitted_to_both_calls() -> None:
    torch.manual_seed(1)
    model = Rows(nn.GRU(7, 7, batch_first=True), twice=True).double().eval()
    with torch.no_grad():  # the states of one call are the input of the next: its units are those of `enter`
        x = sequences(24, 6)
        scores = scored(model, x, gram=True)
        (group,) = [g for g in scores.units.groups if g.frozen is None]
        plan = build(scores.units, [np.array(GONE) if g is group else np.zeros(0, int) for g in scores.units.groups])
        found = compensate.corrections(model, plan, scores, Compensation.LEAST_SQUARES, ridge=1e-13)
        small = compact.apply(model, plan)
        compensate.fold(small, plan, found)
        first, between = loop(model.rnn, list(model.enter(x)))
        second, _ = loop(model.rnn, between)
    states = np.concatenate([first["weight_hh_l0"], second["weight_hh_l0"]])
    rows, columns = stays(model.rnn, 7)
    design = np.hstack([states[:, columns], np.ones((len(states), 1))])
    fit = np.linalg.lstsq(design, states @ model.rnn.weight_hh_l0.detach().numpy()[rows].T, rcond=None)[0]
    np.testing.assert_allclose(small.rnn.weight_hh_l0.detach().numpy(), fit[:-1].T, rtol=1e-5, atol=1e-7)


def test_sequential_fits_the_recurrence_to_its_own_changed_states() -> None:
    """First of all taps: its states come from the one-shot fit, and what the gates read before is given back."""
    model, x = model_of("LSTM", layers=1), sequences(24, 6)
    scores = scored(model, x, gram=True)
    once = cut(model, scores, "least_squares")
    small = sequential(model, scores, planned(scores), [(x, Y)])
    before, now = (loop(m.rnn, list(x))[0]["weight_hh_l0"] for m in (model, once))
    rows, _ = stays(model.rnn, 7)
    wanted = before @ model.rnn.weight_hh_l0.detach().numpy()[rows].T
    design = np.hstack([now, np.ones((len(now), 1))])
    fit = np.linalg.lstsq(design, wanted, rcond=None)[0]
    np.testing.assert_allclose(small.rnn.weight_hh_l0.detach().numpy(), fit[:-1].T, rtol=1e-4, atol=1e-6)


def error(model: nn.Module, x: Tensor, make: Callable[[], nn.Module]) -> float:
    with torch.no_grad():
        return float((make()(x) - model(x)).square().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_nearer_than_without(kind: str) -> None:
    """On inputs that were not scored, a layer most of whose units follow few."""
    model, x, new = model_of(kind, layers=2), sequences(24, 6), sequences(50, 6, seed=9)
    with torch.no_grad():
        for p in model.rnn.parameters():
            made = p.view(-1, 7, *p.shape[1:])
            made[:, [1, 4]] = made[:, [0, 3]] + 0.1 * made[:, [1, 4]]
    scores = scored(model, x, gram=True)
    fitted = error(model, new, lambda: cut(model, scores, "least_squares"))
    assert fitted < 0.3 * error(model, new, lambda: compact.apply(model, planned(scores)))


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, x = model_of("GRU"), sequences(24, 6)
    scores = scored(model, x, gram=True)
    small = cut(model, scores, "least_squares")
    fk.save_pruned(small, planned(scores), tmp_path / "small")
    again = fk.load_pruned(model_of("GRU"), tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(again.double()(x), small(x))
