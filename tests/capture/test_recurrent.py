"""What the weights within recurrent layers read, against loops written out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import fairkern as fk
from fairkern.model.recurrent import hidden_states, reading, reads_hidden
from tests.loops import loop

Y = torch.arange(24) % 3
KINDS = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}
FORMS = ["batch first", "steps first", "one sample", "one step", "packed", "initial states", "packed, initial states"]


def sequences(n: int, steps: int, seed: int = 3) -> Tensor:
    return torch.randn(n, steps, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("layers", "both", "bias"), [(1, False, True), (3, False, False), (1, True, True), (2, True, True)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_a_loop(kind: str, layers: int, both: bool, bias: bool, form: str) -> None:
    torch.manual_seed(0)
    first = form == "batch first"
    rnn = KINDS[kind](4, 5, layers, bidirectional=both, bias=bias, batch_first=first).double().eval()
    steps = 1 if form == "one step" else 6
    x = sequences(1 if form == "one sample" else 3, steps)
    each = list(x)
    given: object = x if first else x[0] if form == "one sample" else x.movedim(0, 1)
    h0 = c0 = hx = None
    if form.startswith("packed"):
        each = [x[0, :2], x[1], x[2, :5]]
        given = pack_sequence(each, enforce_sorted=False)
    if form.endswith("initial states"):
        h0, c0 = torch.randn(2, layers * (2 if both else 1), 3, 5, dtype=torch.float64)
        hx = (h0, c0) if kind == "LSTM" else h0
    output = rnn(given, hx)
    found = hidden_states(rnn, (given,), {"hx": hx}, output)
    expected, _ = loop(rnn, each, h0, c0)
    assert set(found) == {reading(name) for name in expected}
    for name, rows in expected.items():
        states = found[reading(name)].detach().numpy()
        assert states.shape == rows.shape
        order, other = (np.lexsort(v.round(9).T) for v in (states, rows))  # steps and samples may come in any order
        np.testing.assert_allclose(states[order], rows[other], rtol=1e-9, atol=1e-12)


def test_which_weights_read_states() -> None:
    lstm = nn.LSTM(4, 4, 2, bidirectional=True)
    told = {name for name, _ in lstm.named_parameters() if reads_hidden(lstm, name)}
    assert told == {f"weight_{k}{s}" for k in ("hh_l0", "ih_l1", "hh_l1") for s in ("", "_reverse")}
    assert not reads_hidden(nn.Linear(4, 4), "weight")

    class Own(nn.GRU):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)[0]

    assert not reads_hidden(Own(4, 4), "weight_hh_l0")


class Rows(nn.Module):
    def __init__(self, rnn: nn.RNNBase, twice: bool = False) -> None:
        super().__init__()
        self.rnn, self.twice = rnn, twice
        self.enter = nn.Linear(4, rnn.input_size) if twice else nn.Identity()
        self.out = nn.Linear(rnn.hidden_size * (2 if rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(self.enter(x))
        if self.twice:
            states, _ = self.rnn(states)
        return self.out(states[:, -1])


def scored(model: nn.Module, x: object, sizes: tuple[int, ...] = (24,), **options: object) -> fk.Scores:
    model = model.double().eval()
    units = fk.trace(model, x[:2])
    loader = list(zip(x.split(sizes), Y.split(sizes), strict=True))
    return fk.score(model, loader, nn.CrossEntropyLoss(), units=units, projections=4, progress=False, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_sums_over_what_is_read(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Rows(KINDS[kind](4, 5, 2, bidirectional=True, batch_first=True)), sequences(24, 6)
    scores = scored(model, x, gram=True)
    scores.save(tmp_path / "scores")
    again = fk.Scores.load(tmp_path / "scores")
    assert again.units.groups[0].taps[0].name == scores.units.groups[0].taps[0].name
    read, _ = loop(model.rnn, list(x))
    for held in (scores, scored(model, x, (1, 20, 3), gram=True), again):
        assert set(held.moments) == {"out:input", *(f"rnn:{reading(name)}" for name in read)}
        for name, rows in read.items():
            moments = held.moments[f"rnn:{reading(name)}"]
            np.testing.assert_allclose(moments.gram, rows.T @ rows, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(moments.total, rows.sum(0), rtol=1e-9, atol=1e-12)
            assert moments.count == 24 * 6
            np.testing.assert_allclose(held.means[f"rnn:{reading(name)}"], rows.mean(0), rtol=1e-9, atol=1e-12)


def test_means_come_without_moments() -> None:
    torch.manual_seed(0)
    model, x = Rows(nn.LSTM(4, 5, 2, batch_first=True)), sequences(24, 6)
    scores = scored(model, x)
    read, _ = loop(model.rnn, list(x))
    assert scores.moments == {}
    for name, rows in read.items():
        np.testing.assert_allclose(scores.means[f"rnn:{name}"], rows.mean(0), rtol=1e-9, atol=1e-12)


def test_every_call_of_a_layer_has_its_own() -> None:
    """The second call reads states as its input; what its recurrence reads is not taken for them."""
    torch.manual_seed(0)
    model, x = Rows(nn.GRU(4, 4, batch_first=True), twice=True), sequences(24, 6)
    scores = scored(model, x, gram=True)
    assert {"rnn#1:input", "rnn:weight_hh_l0", "rnn#1:weight_hh_l0", "out:input"} <= set(scores.moments)
    first, between = loop(model.rnn, list(model.enter(x)))
    second, _ = loop(model.rnn, between)
    for call, rows in (("rnn", first), ("rnn#1", second)):
        rows = rows["weight_hh_l0"]
        np.testing.assert_allclose(scores.moments[f"{call}:weight_hh_l0"].gram, rows.T @ rows, rtol=1e-9, atol=1e-12)


class Packed(nn.Module):
    """The last states of sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, 2, batch_first=True)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.out(self.rnn(packed)[1][0][-1])


def test_packed_sequences() -> None:
    torch.manual_seed(0)
    model, x, lengths = Packed().double().eval(), sequences(24, 6), torch.arange(24) % 6 + 1
    units = fk.trace(model, (x[:6], lengths[:6]))
    assert {t.name for g in units.groups if g.frozen is None for t in g.taps} == {
        "rnn:weight_hh_l0", "rnn:weight_ih_l1", "rnn:weight_hh_l1", "out:input",
    }  # fmt: skip
    batches = [((x[p], lengths[p]), Y[p]) for p in (slice(0, 10), slice(10, 24))]
    scores = fk.score(model, batches, nn.CrossEntropyLoss(), units=units, projections=4, gram=True, progress=False)
    read, _ = loop(model.rnn, [row[:n] for row, n in zip(x, lengths.tolist(), strict=True)])
    for name, rows in read.items():
        np.testing.assert_allclose(scores.moments[f"rnn:{name}"].gram, rows.T @ rows, rtol=1e-9, atol=1e-12)
        assert scores.moments[f"rnn:{name}"].count == int(lengths.sum())


def test_projected_states_stay() -> None:
    class Projected(Rows):
        def __init__(self) -> None:
            super().__init__(nn.LSTM(4, 6, 2, proj_size=5, batch_first=True))
            self.enter, self.out = nn.Linear(4, 4), nn.Linear(5, 3)

    units = fk.trace(Projected().eval(), torch.randn(2, 6, 4))
    assert [(g.name, g.frozen is None) for g in units.groups] == [("enter", True), ("rnn", False)]


def test_hooks_are_gone_and_nothing_is_changed() -> None:
    torch.manual_seed(0)
    model, x = Rows(nn.LSTM(4, 5, 2, batch_first=True)), sequences(24, 6)
    model.double().eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    scored(model, x, gram=True)
    assert not model.rnn._forward_hooks
    assert not model.rnn._forward_hooks_with_kwargs
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
