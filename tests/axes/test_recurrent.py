"""Hidden units of recurrent layers: several layers, both directions, cut exactly at every step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.compact import masked
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.prove import difference
from fairkern.types import Side
from tests.axes.harness import randomised


class Sequence(nn.Module):
    """Rows of an image, a recurrent layer, the last state or all of them, a linear layer."""

    def __init__(self, kind: type[nn.RNNBase], layers: int = 1, both: bool = False, last: bool = True) -> None:
        super().__init__()
        self.last = last
        self.enter = nn.Linear(6, 7)
        self.rnn = kind(7, 8, layers, batch_first=True, bidirectional=both)
        self.norm = nn.BatchNorm1d(16 if both else 8)
        self.leave = nn.Linear(16 if both else 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(torch.relu(self.enter(x)))
        y = y[:, -1] if self.last else y.mean(1)
        return self.leave(self.norm(y))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, False), (1, True), (2, True)])
@pytest.mark.parametrize("last", [True, False])
def test_hidden_units(kind: type[nn.RNNBase], layers: int, both: bool, last: bool) -> None:
    torch.manual_seed(0)
    model = randomised(Sequence(kind, layers, both, last).double().eval())
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    units = fk.trace(model, x)
    by_name = {g.name: g for g in units.groups}
    assert by_name["enter"].frozen is None
    (hidden,) = [g for g in units.groups if g.units == 8]
    assert hidden.frozen is None
    assert {a.axis.tensor for a in hidden.axes if a.consumer} >= {"rnn.weight_hh_l0", "leave.weight"}
    for fraction in (0.3, 0.7):
        plan = build(units, random_removal(units, fraction, seed=1))
        small = fk.apply(model, plan)
        with masked(model, plan):
            assert difference(model, small, x) < 1e-9
        assert small.rnn.hidden_size == small.rnn.weight_hh_l0.shape[1] < 8
        assert small.rnn.input_size == small.rnn.weight_ih_l0.shape[1] < 7


def test_scores_of_hidden_units() -> None:
    torch.manual_seed(0)
    model = Sequence(nn.LSTM).eval()
    scores = fk.score(
        model, [(torch.randn(30, 5, 6), torch.arange(30) % 3)], nn.CrossEntropyLoss(), projections=8, progress=False
    )
    hidden = [g.units for g in scores.units.groups].index(8)
    assert scores.signals["wasserstein"][hidden].shape == (8,)
    assert (scores.signals["taylor"][hidden] > 0).all()


def taps(units: fk.UnitMap) -> list[tuple[str, str, int, tuple[str, ...]]]:
    return [
        (t.name, t.side, t.length, tuple(str(w) for w in t.weights))
        for g in units.groups
        for t in g.taps
        if t.side is Side.HIDDEN
    ]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_its_own_weights_read(kind: type[nn.RNNBase]) -> None:
    """Once each, however many steps and runs read it; a second run does not double it."""
    model = Sequence(kind, layers=2, both=True).eval()
    expected = [
        ("rnn:weight_hh_l0", Side.HIDDEN, 8, ("rnn.weight_hh_l0:1",)),
        ("rnn:weight_hh_l0_reverse", Side.HIDDEN, 8, ("rnn.weight_hh_l0_reverse:1",)),
        ("rnn:weight_ih_l1", Side.HIDDEN, 16, ("rnn.weight_ih_l1:1", "rnn.weight_ih_l1_reverse:1")),
        ("rnn:weight_hh_l1", Side.HIDDEN, 8, ("rnn.weight_hh_l1:1",)),
        ("rnn:weight_hh_l1_reverse", Side.HIDDEN, 8, ("rnn.weight_hh_l1_reverse:1",)),
    ]
    for more in ([], [torch.randn(2, 7, 6)]):
        assert sorted(taps(fk.trace(model, torch.randn(3, 5, 6), more=more))) == sorted(expected)


def test_a_layer_with_code_of_its_own_shows_no_states() -> None:
    class Own(nn.LSTM):
        def forward(self, x: Tensor, hx: object = None) -> tuple:  # type: ignore[override]
            y, state = super().forward(x, hx)  # type: ignore[arg-type]
            return y * 2, state

    assert taps(fk.trace(Sequence(Own).eval(), torch.randn(3, 5, 6))) == []


class Joined(nn.Module):
    """A cell written by hand: input and state side by side."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.read = nn.Linear(inputs + hidden, hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.read(torch.cat([x, h], 1)))


class Steps(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.cell, self.leave = nn.Linear(6, 7), kind(7, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 8)
        for step in torch.relu(self.enter(x)).unbind(1):
            if isinstance(self.cell, nn.LSTMCell):
                h, c = self.cell(step, (h, c))
            else:
                h = self.cell(step, h)
        return self.leave(h)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, Joined])
def test_a_cell_called_step_by_step_loses_units_with_its_first_state(kind: type[nn.Module]) -> None:
    model, x = Steps(kind).double().eval(), torch.randn(3, 5, 6, dtype=torch.float64)
    units = fk.trace(model, x)
    assert [units.groups[g].units for g in units.prunable] == [7, 8]
    plan = units.plan(keep_params=0.7)
    small = fk.apply(model, plan)
    if kind is not Joined:
        assert (small.cell.input_size, small.cell.hidden_size) == tuple(
            t.shape[1] for t in list(small.cell.parameters())[:2]
        )
    with plan.masked(model):
        for given in (x, torch.randn(4, 9, 6, dtype=torch.float64)):
            assert torch.allclose(model(given), small(given), rtol=1e-9)


def test_a_cell_called_step_by_step_is_scored() -> None:
    """The size of that follows the cell, which is what meets it."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.cell, self.leave = nn.Linear(6, 7), nn.GRUCell(7, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), 8)
            for step in torch.relu(self.enter(x)).unbind(1):
                h = self.cell(step, h)
            return self.leave(h)

    torch.manual_seed(0)
    model, x = randomised(Steps().double().eval()), torch.randn(12, 5, 6).double()
    units = fk.trace(model, x)
    assert [g.name for g in units.groups if g.frozen is None] == ["enter", "cell"]
    scores = fk.score(model, [(x, torch.arange(12) % 3)], nn.CrossEntropyLoss(), units=units, progress=False)
    plan = scores.plan(keep_params=0.5)
    small = fk.apply(model, plan)
    assert small.cell.hidden_size < 8
    with plan.masked(model):
        assert difference(model, small, x) < 1e-9
