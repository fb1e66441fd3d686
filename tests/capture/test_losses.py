"""The loss of a batch where no function is given: the model's own, in eval mode or in its training call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from tests.axes.harness import Net
from tests.capture.test_own_batches import IMAGES, PAIRS, TARGETS, detector, same, score


def test_the_training_call_has_norms_and_dropout_of_eval_mode_and_draws_by_the_seed() -> None:
    model = detector()
    units = fk.trace(model, IMAGES[:2])
    found = score(model, PAIRS, units=units, seed=5)
    losses = []
    for i, (image, target) in enumerate(zip(IMAGES, TARGETS, strict=True)):
        torch.manual_seed(5 + i)
        features = model.body(image[None])
        places = torch.randperm(features.shape[2:].numel())[:5]
        logits = model.head(features[0].flatten(1).T[places])
        loss = F.cross_entropy(logits.mean(0), target["labels"][0]) + model.score(features).square().mean()
        losses.append(loss.item())
    assert found.provenance["loss"] == pytest.approx(np.mean(losses), rel=1e-12)


LOSSES: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda loss: loss,
    "a tuple": lambda loss: (loss, loss.detach() * 3),
    "a dictionary with one": lambda loss: {"loss": loss, "seen": torch.tensor(3)},
    "a dictionary of losses": lambda loss: {"a": loss / 4, "b": [loss / 4, loss / 2]},
    "losses and numbers for the log": lambda loss: {"loss_a": loss, "accuracy": torch.tensor(0.5)},
    "losses and a prediction": lambda loss: ({"a": loss}, torch.zeros(4, 3)),
}


@pytest.mark.parametrize("form", LOSSES)
@pytest.mark.parametrize("where", ["train mode", "eval mode"])
def test_the_forms_of_a_models_own_loss(form: str, where: str) -> None:
    def run(m: nn.Module, x: Tensor, y: Tensor | None = None) -> Any:
        out = m.b(m.drop(m.a(x).relu()))
        return out if y is None or not (m.training or where == "eval mode") else LOSSES[form](F.cross_entropy(out, y))

    torch.manual_seed(0)
    model = Net(run, a=nn.Linear(5, 8), b=nn.Linear(8, 3), drop=nn.Dropout(0.5)).double().eval()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
    units = fk.trace(model, x)
    expected = fk.score(model, [(x, y)], F.cross_entropy, units=units, progress=False)
    same(expected, fk.score(model, [(x, y)], units=units, progress=False))


def test_a_training_call_that_fails_says_what_to_pass() -> None:
    model = detector()
    wrong = [(x, [{"classes": t["labels"]} for t in y]) for x, y in PAIRS]
    with pytest.raises(
        fk.InputError, match=r"training call.*batch 0 fails \(KeyError: 'labels'\).*pass loss_fn"
    ) as info:
        score(model, wrong)
    assert isinstance(info.value.__cause__, KeyError)
    with pytest.raises(KeyError, match="labels"):  # not the first batch: the model's own error
        score(model, [PAIRS[0], wrong[1]])


def test_a_model_that_gives_no_loss_in_either_mode() -> None:
    model = Net(lambda m, x, y=None: m.b(m.a(x).relu()), a=nn.Linear(5, 8), b=nn.Linear(8, 3))
    with pytest.raises(fk.InputError, match=r"no loss in eval mode or in its own training call.*pass loss_fn"):
        score(model, [(torch.randn(4, 5), torch.arange(4))])


def test_labels_that_are_missing_are_asked_for() -> None:
    def run(m: nn.Module, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        made = {"logits": m.b(m.a(x).relu())}
        return made if labels is None else {"loss": F.cross_entropy(made["logits"], labels), **made}

    class Labelled(Net):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            return run(self, x, labels)

    model = Labelled(run, a=nn.Linear(5, 8), b=nn.Linear(8, 3))
    batch = {"x": torch.randn(4, 5)}
    with pytest.raises(
        fk.InputError, match="give the batches 'labels', which forward takes and these lack, or pass lo"
    ):
        fk.prune(model, [batch], keep_params=0.9, progress=False)
    fk.prune(model, [{**batch, "labels": torch.arange(4) % 2}], keep_params=0.9, progress=False)


def test_what_a_model_draws_at_random_is_drawn_by_the_seed() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        return m.b((m.a(x) * torch.rand((), dtype=x.dtype)).relu())

    torch.manual_seed(0)
    model = Net(run, a=nn.Linear(5, 8), b=nn.Linear(8, 3)).double().eval()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
    units = fk.trace(model, x, verify=False)
    found = []
    for ambient, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(ambient)
        found.append(fk.score(model, [(x, y)], F.cross_entropy, units=units, seed=seed, progress=False))
    np.testing.assert_array_equal(found[0].signals["taylor"][0], found[1].signals["taylor"][0])
    assert not np.array_equal(found[0].signals["taylor"][0], found[2].signals["taylor"][0])
