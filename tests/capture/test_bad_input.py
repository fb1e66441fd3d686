"""What cannot be scored is refused with a clear error, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from tests.capture.networks import Plain, build, loader, loss, samples

X, Y = samples(24, torch.float32)


def model() -> nn.Module:
    return build(Plain, torch.float32).eval()


def score(batches: Any, loss_fn: Any = loss, **options: Any) -> fk.Scores:
    net = options.pop("net", None) or model()
    units = options.pop("units", None) or fk.trace(net, X[:2], verify=False)
    return fk.score(net, batches, loss_fn, units=units, **{"projections": 4, "progress": False, **options})


BATCHES: dict[str, tuple[Any, str]] = {
    "no batch": ([], "yields no batch"),
    "empty batches": ([(X[:0], Y[:0])], "no sample"),
    "one class": ([(X, torch.zeros_like(Y))], "two or more"),
    "a class with one sample": ([(X, (torch.arange(24) == 5).long())], "class 1 has one sample.*class_of=False"),
    "float labels": ([(X, Y.float())], "integer class labels"),
    "bool labels": ([(X, Y.bool())], "integer class labels"),
    "negative labels": ([(X, Y - 1)], "negative label -1"),
    "too few labels": ([(X, Y[:-1])], r"shape \(23,\); expected \(24,\)"),
    "labels of two dimensions": ([(X, Y[:, None])], "one class label"),
    "no labels": ([(X, None)], "class_of"),
    "three things": ([(X, Y, Y)], "a tuple of 3"),
    "values on no device": ([(X.to("meta"), Y)], "batch 0 holds a tensor without values"),
    "only inputs": ([X], "expected \\(inputs, targets\\)"),
    "inputs without a tensor": ([("x", Y)], "no tensor"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches(name: str) -> None:
    batches, message = BATCHES[name]
    net = model()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(fk.InputError, match=message):
        score(batches, lambda output, _: loss(output, Y[: len(output)]) if len(output) else output.sum(), net=net)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert net.training is False


OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "samples": ({"samples_per_class": 1}, fk.InputError, "samples_per_class=1 is too small"),
    "samples as text": ({"samples_per_class": "32"}, fk.InputError, "samples_per_class"),
    "projections": ({"projections": 0}, fk.InputError, "projections=0 is too small"),
    "seed": ({"seed": -1}, fk.InputError, "seed=-1 is too small"),
    "recipe": ({"recipe": "papr"}, fk.InputError, "'default', 'paper'"),
    "reduction": ({"reduction": "max"}, fk.InputError, "'signed', 'per_sample'"),
    "loss reduction": ({"loss_reduction": "none"}, fk.InputError, "'mean', 'sum'"),
    "budget": ({"memory_budget": 0}, fk.InputError, "memory_budget=0 is too small"),
    "class_of": ({"class_of": 3}, fk.InputError, "class_of=3 is a int; expected a function"),
    "backend": ({"backend": "metal"}, fk.InputError, "backend is 'metal'"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str) -> None:
    options, error, message = OPTIONS[name]
    with pytest.raises(error, match=message):
        score(loader(X, Y, 8), **options)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="sample_per_class"):
        score(loader(X, Y, 8), sample_per_class=3)


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "detached": (lambda o, t: loss(o.detach(), t), "does not depend"),
    "of something else": (lambda o, t: torch.ones((), requires_grad=True) * 2, "does not depend"),
    "a vector": (lambda o, t: nn.functional.cross_entropy(o, t, reduction="none"), "one element"),
    "a float": (lambda o, t: 0.5, "one element"),
    "complex": (lambda o, t: torch.complex(loss(o, t), loss(o, t)), "complex64 tensor .*; expected .* floating dtype"),
    "whole numbers": (lambda o, t: o.argmax(), "int64 tensor .*; expected .* floating dtype"),
    "true or false": (lambda o, t: o.sum() > 0, "bool tensor .*; expected .* floating dtype"),
    "nothing": (lambda o, t: None, "of type NoneType; expected"),
    "a dictionary": (lambda o, t: {"loss": loss(o, t)}, "of type dict; expected"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    loss_fn, message = LOSSES[name]
    with pytest.raises(fk.InputError, match=message):
        score(loader(X, Y, 8), loss_fn)


def test_a_model_without_a_loss_needs_one() -> None:
    with pytest.raises(fk.InputError, match="loss_fn is None"):
        score(loader(X, Y, 8), None)


def test_not_a_number_in_the_input_names_the_first_layer_and_the_batch() -> None:
    x = X.clone()
    x[9, 0, 0, 0] = float("nan")
    with pytest.raises(fk.NonFiniteError, match="activations at conv2:input are not finite in batch 1"):
        score(loader(x, Y, 8))


def test_infinite_weight_names_the_layer_behind_it() -> None:
    net = model()
    units = fk.trace(net, X[:2], verify=False)
    net.fc1.weight.data[0, 0] = float("inf")
    with pytest.raises(fk.NonFiniteError, match=r"activations at fc2:input .* batch 0"):
        score(loader(X, Y, 8), net=net, units=units)


def test_infinite_gradient_is_told_from_activations() -> None:
    def steep(output: Tensor, target: Tensor) -> Tensor:
        return (output - output.detach()).abs().sqrt().sum()  # finite, with an infinite slope at 0

    with pytest.raises(fk.NonFiniteError, match="gradients at fc2:input"):
        score(loader(X, Y, 8), steep)


def test_a_loss_that_is_not_finite() -> None:
    with pytest.raises(fk.NonFiniteError, match="the loss of batch 0 is inf"):
        score(loader(X, Y, 8), lambda o, t: loss(o, t) + float("inf"))


def test_units_of_another_model() -> None:
    other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    units = fk.trace(other, torch.randn(2, 4), verify=False)
    with pytest.raises(fk.PlanMismatchError, match=r"0\.weight"):
        score(loader(X, Y, 8), units=units)


def test_dict_batches_and_class_of() -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(pixels)
            return {"loss": loss(logits, labels), "logits": logits}

    batches = [{"pixels": x, "labels": y} for x, y in loader(X, Y, 8)]
    scores = fk.score(WithLoss().eval(), batches, projections=4, progress=False)
    again = fk.score(
        WithLoss().eval(), batches, projections=4, progress=False, class_of=lambda batch: batch["labels"] // 2
    )
    assert len(scores.provenance["classes"]) == 3
    assert len(again.provenance["classes"]) == 2


def test_the_paper_recipe_says_why_it_cannot_read_a_recurrent_layer() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(x)[0][:, -1])

    model, x = Recurrent().eval(), torch.randn(6, 5, 4)
    batches = [(x, torch.arange(6) % 3)]
    with pytest.raises(fk.InputError, match=r"lstm returns a tuple.*recipe='default'"):
        fk.score(model, batches, nn.functional.cross_entropy, recipe="paper", progress=False)
    assert fk.score(model, batches, nn.functional.cross_entropy, progress=False).signals["taylor"][0].shape == (6,)


def test_empty_and_smaller_batches_change_nothing() -> None:
    whole = score(loader(X, Y, 12))
    batches = [(X[:0], Y[:0]), (X[:12], Y[:12]), (X[12:12], Y[12:12]), (X[12:23], Y[12:23]), (X[23:], Y[23:])]
    others = score(batches, lambda output, y: loss(output, y) if len(y) else output.sum())
    for name, values in whole.signals.items():
        for a, b in zip(values, others.signals[name], strict=True):
            assert a == pytest.approx(b, rel=1e-4)


class Changing:
    """A loader that yields less when it is asked again."""

    def __init__(self, *turns: list[Any]) -> None:
        self.turns = list(turns)

    def __iter__(self) -> Any:
        return iter(self.turns.pop(0) if self.turns else [])


def test_a_loader_that_yields_less_in_another_pass() -> None:
    batches = loader(X, Y, 12)
    whole = score(batches)
    budget = whole.provenance["sample_bytes"] - 1
    assert score(Changing(batches, batches), memory_budget=budget).provenance["passes"] == 2
    with pytest.raises(fk.InputError, match="12 samples in pass 2, and 24 in the first"):
        score(Changing(batches, batches[:1]), memory_budget=budget)
    with pytest.raises(fk.InputError, match="yields no batch"):
        score(Changing(batches), memory_budget=budget)


class Broken(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1])
def test_what_a_loader_raises_passes_through_and_the_model_is_put_back(at: int) -> None:
    def breaking() -> Any:
        for index, batch in enumerate(loader(X, Y, 12)):
            if index == at:
                raise Broken
            yield batch

    net = model().train()
    net.conv1.weight.requires_grad_(False)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    units = fk.trace(net, X[:2], verify=False)
    with pytest.raises(Broken):
        score(breaking(), net=net, units=units)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == [n != "conv1.weight" for n, _ in net.named_parameters()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_models_without_values_are_not_run() -> None:
    net = model()
    units = fk.trace(net, X[:2], verify=False)
    empty = build(Plain, torch.float32).to("meta")
    for run in (
        lambda: fk.score(empty, loader(X, Y, 8), loss, units=units, progress=False),
        lambda: fk.prune(empty, loader(X, Y, 8), loss, keep_params=0.5, progress=False),
        lambda: fk.recalibrate(empty, loader(X, Y, 8)),
    ):
        with pytest.raises(fk.InputError, match=r"conv1.weight has no values .* on a real device"):
            run()


def test_a_model_without_an_output() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: Tensor) -> None:
            self.net(x)

    with pytest.raises(fk.InputError, match=r"without any tensor.*return what the loss reads"):
        fk.trace(Silent(), X[:2])


def test_lazy_models_are_refused_wherever_they_are_given() -> None:
    lazy = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    ready = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    units = fk.trace(ready, x[:2], verify=False)
    plan = units.plan(keep_params=0.7)
    for run in (
        lambda: fk.trace(lazy, x[:2]),
        lambda: fk.score(lazy, [(x, y)], nn.functional.cross_entropy, units=units, progress=False),
        lambda: fk.prune(lazy, [(x, y)], nn.functional.cross_entropy, keep_params=0.7, progress=False),
        lambda: fk.apply(lazy, plan),
        lambda: plan.masked(lazy).__enter__(),
    ):
        with pytest.raises(fk.InputError, match="has no shape yet: run the lazy module once"):
            run()


def test_arrays_in_a_batch_are_called_what_they_are() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    arrays = [(np.zeros((4, 4), dtype=np.float32), np.arange(4) % 2)]
    with pytest.raises(fk.InputError, match=r"no tensor .* \(of type ndarray, in a tuple of 2\); give tensors"):
        fk.score(net, arrays, nn.CrossEntropyLoss(), progress=False)
