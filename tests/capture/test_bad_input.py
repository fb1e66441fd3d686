"""What cannot be scored is refused with a clear error, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    "a class with one sample": ([(X, (torch.arange(24) == 5).long())], "class 1 has one sample"),
    "float labels": ([(X, Y.float())], "integer class labels"),
    "bool labels": ([(X, Y.bool())], "integer class labels"),
    "negative labels": ([(X, Y - 1)], "negative label -1"),
    "too few labels": ([(X, Y[:-1])], r"shape \(23,\); expected \(24,\)"),
    "labels of two dimensions": ([(X, Y[:, None])], "one class label"),
    "no labels": ([(X, None)], "class_of"),
    "three things": ([(X, Y, Y)], "a tuple of 3"),
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
