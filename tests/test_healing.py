"""A cut model learns from the uncut one: what is compared and trained, what is left, how it goes on after a break."""

from __future__ import annotations

import copy
import doctest
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fairkern as fk
import fairkern.healing
from fairkern.capture.structure import Reader
from fairkern.healing.answers import compared, shifted
from fairkern.healing.blocks import blocks, in_both
from fairkern.healing.settings import Divergence
from fairkern.healing.weights import undecayed
from tests.interrupted import Left

ROOT = Path(__file__).resolve().parent.parent


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.drop = nn.LayerNorm(8), nn.Linear(8, width), nn.Dropout(0.1)
        self.down = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.drop(torch.relu(self.up(self.norm(x)))))


class Language(nn.Module):
    """Predicts the token that follows, and returns what transformers' models return."""

    def __init__(self, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(11, 8)
            self.layers = nn.ModuleList(Block(width) for _ in range(2))
            self.head = nn.Linear(8, 11)
        self.eval()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        made = {"logits": self.head(x)}
        if labels is not None:
            made["loss"] = F.cross_entropy(made["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return made


def net(width: int = 12, out: int = 3, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, out))
    return made.eval()


class Cast(nn.Module):
    """Computes in a type of its own."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.to(self.dtype))


def classes(batches: int = 4) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 6, generator=g), torch.arange(8) % 3) for _ in range(batches)]


def texts(batches: int = 3) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(2)
    made = [torch.randint(0, 11, (4, 7), generator=g) for _ in range(batches)]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids} for ids in made]


def test_the_uncut_model_given_as_the_cut_one() -> None:
    model = Language()
    small = fk.apply(model, fk.trace(model, texts()[0]["input_ids"]).plan(keep_params=0.7))
    with pytest.raises(fk.InputError, match=r"small has \d+ weights and the model .* give the cut model first"):
        fk.heal(model, small, texts(), steps=1, progress=False)
    for parameter in (p for name, p in small.named_parameters() if name.endswith("bias")):
        parameter.data = torch.zeros(1000)  # as many as compensation may add: no sign of another order
    fairkern.healing._check_smaller(small, model)


def test_what_is_printed_compares_means() -> None:
    one = fairkern.healing.Healed(1, [0.5], 0.1, 1, 1, ())
    assert str(one) == "healed in 1 step (1 samples, 0.1 s): loss 0.5 → 0.5"
    many = fairkern.healing.Healed(20, [3.0, 1.0, *[7.0] * 16, 1.5, 0.5], 0.1, 1, 1, ())
    assert str(many).endswith("loss 2 → 1 (means of the first and the last 2 steps)")


def heal(small: nn.Module, model: nn.Module, loader: Any, steps: int = 6, **options: Any) -> Any:
    return fk.heal(small, model, loader, **{"steps": steps, "lr": 1e-2, "progress": False, **options})


def trained(model: nn.Module, loss_of: Callable[[], Tensor], steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_what_a_hard_cut_has_cost_comes_back() -> None:
    g = torch.Generator().manual_seed(3)
    ids = torch.cumsum(torch.randint(0, 3, (48, 12), generator=g), 1) % 11
    model = Language(width=32)
    trained(model, lambda: model(ids, labels=ids)["loss"], 150)
    loader = [{"input_ids": part, "labels": part} for part in ids.split(16)]
    small = fk.apply(model, fk.score(model, loader, progress=False, class_of=False).plan(keep_params=0.4))

    def loss(of: nn.Module) -> float:
        with torch.no_grad():
            return float(of(ids, labels=ids)["loss"])

    cut = loss(small)
    healed = heal(small, model, loader, 60)
    assert loss(model) < loss(small) < cut - 0.5 * (cut - loss(model))
    assert healed.steps == len(healed.losses) == 60
    assert healed.losses[-1] < 0.5 * healed.losses[0]
    assert (healed.samples, healed.tokens) == (60 * 16, 60 * 16 * 11)  # nothing follows the last position
    assert healed.hidden == ("layers.0", "layers.1")
    assert "healed in 60 steps (960 samples, 10,560 tokens, " in str(healed)


def by_hand(small: nn.Sequential, model: nn.Module, loader: list[Any], rates: list[float], decay: float) -> None:
    """The definition: AdamW on the divergence of the answers, gradients clipped to one."""
    decayed = [p for p in small.parameters() if p.ndim > 1]
    bare = [p for p in small.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": decay}, {"params": bare, "weight_decay": 0.0}])
    small.train()
    for step, rate in enumerate(rates):
        x = loader[step % len(loader)][0]
        with torch.no_grad():
            target = model(x).softmax(1)
        loss = F.kl_div(small(x).log_softmax(1), target, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(small.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    small.eval()
    small.zero_grad(set_to_none=True)


def test_it_is_what_one_would_write_by_hand() -> None:
    model, small, loader = net(), net(5, seed=1), classes()
    expected = copy.deepcopy(small)
    rise = [0.01 * step / 2 for step in (1, 2)]
    fall = [0.01 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * k / 8, dtype=torch.float64)))) for k in range(8)]
    by_hand(expected, model, loader, rise + fall, 0.3)
    heal(small, model, loader, 10, warmup=2, weight_decay=0.3)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def parts_of(batch: Any, model: nn.Module) -> Any:
    return Reader(model).read(0, batch)


def apart(
    batch: Any, ours: Any, theirs: Any, how: str = "auto", temperature: float = 1.0, shifted: bool = False
) -> Any:
    parts = parts_of(batch, Language() if isinstance(batch, dict) else net())
    return compared(parts, ours, theirs, Divergence(how), temperature, shifted)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def test_divergences() -> None:
    torch.manual_seed(0)
    ours, theirs, batch = (
        torch.randn(4, 3).double(),
        torch.randn(4, 3).double(),
        (torch.ones(4, 6), torch.arange(4) % 3),
    )
    q, p = ours.softmax(1), theirs.softmax(1)
    torch.testing.assert_close(apart(batch, ours, theirs).loss, kl(p, q).mean())
    torch.testing.assert_close(apart(batch, ours, theirs, "reverse_kl").loss, kl(q, p).mean())
    torch.testing.assert_close(apart(batch, ours, theirs, "mse").loss, (ours - theirs).square().mean())
    soft = 4 * kl((theirs / 2).softmax(1), (ours / 2).softmax(1)).mean()
    torch.testing.assert_close(apart(batch, ours, theirs, temperature=2.0).loss, soft)
    values = (torch.ones(4, 6), torch.randn(4, 3))  # a regression's targets
    torch.testing.assert_close(apart(values, ours, theirs).loss, (ours - theirs).square().mean())
    for several in (
        torch.ones(4, 3, dtype=torch.int64),
        torch.ones(4, 3) > 0,
    ):  # classes that do not exclude each other
        torch.testing.assert_close(
            apart((torch.ones(4, 6), several), ours, theirs).loss, (ours - theirs).square().mean()
        )
    one = (torch.ones(4, 6), torch.arange(4) % 2)  # a softmax over one class says nothing
    torch.testing.assert_close(apart(one, ours[:, :1], theirs[:, :1]).loss, (ours - theirs)[:, :1].square().mean())


def test_classes_that_are_ruled_out_say_nothing() -> None:
    ours, theirs, batch = torch.randn(4, 3), torch.randn(4, 3), (torch.ones(4, 6), torch.arange(4) % 3)
    ours[:, 2] = theirs[:, 2] = -torch.inf
    ours.requires_grad_()
    loss = apart(batch, ours, theirs).loss
    torch.testing.assert_close(loss, kl(theirs[:, :2].softmax(1), ours[:, :2].softmax(1)).mean())
    (grad,) = torch.autograd.grad(loss, ours)
    assert bool(torch.isfinite(grad).all())


def test_classes_lie_where_the_targets_have_no_dimension() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    each = kl(theirs.softmax(1).movedim(1, -1), ours.softmax(1).movedim(1, -1))
    labels = torch.arange(40).reshape(2, 4, 5) % 3
    torch.testing.assert_close(apart((torch.ones(2, 6), labels), ours, theirs).loss, each.mean())
    channels_last = ours.permute(0, 2, 3, 1), theirs.permute(0, 2, 3, 1)
    torch.testing.assert_close(apart((torch.ones(2, 6), labels), *channels_last).loss, each.mean())
    labels[:, :, 2:] = -100
    found = apart((torch.ones(2, 6), labels), ours, theirs)
    torch.testing.assert_close(found.loss, each[:, :, :2].mean())
    assert found.count == 16


def test_padding_and_what_has_no_label_are_left_out() -> None:
    torch.manual_seed(0)
    ids, ours, theirs = torch.randint(0, 11, (2, 5)), torch.randn(2, 5, 11), torch.randn(2, 5, 11)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    each = kl(theirs.softmax(-1), ours.softmax(-1))
    found = apart({"input_ids": ids, "attention_mask": mask}, {"logits": ours}, {"logits": theirs})
    torch.testing.assert_close(found.loss, each[mask.bool()].mean())
    labels = torch.full_like(ids, -100)
    labels[0, 2], labels[1, 4] = 3, 4
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    found = apart(batch, {"logits": ours}, {"logits": theirs})
    torch.testing.assert_close(found.loss, (each[0, 2] + each[1, 4]) / 2)
    found = apart(batch, {"logits": ours}, {"logits": theirs}, shifted=True)
    torch.testing.assert_close(found.loss, (each[0, 1] + each[1, 3]) / 2)


@pytest.mark.parametrize("kind", [dict, lambda made: (made["loss"], made["logits"]) if "loss" in made else made])
def test_whether_labels_stand_behind_is_seen_from_the_loss(kind: Any) -> None:
    class Same(Language):
        """Fills in what is masked: labels stand where they are predicted."""

        def forward(self, *args: Any, labels: Tensor, **kwargs: Any) -> Any:
            made = super().forward(*args, **kwargs)
            loss = F.cross_entropy(made["logits"].flatten(0, 1), labels.flatten())
            return kind({"logits": made["logits"], "loss": loss})

    class Next(Language):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return kind(super().forward(*args, **kwargs))

    labels = texts()[0]["labels"].clone()
    labels[:, :5] = -100  # of seven: a question, and an answer of two tokens
    batch = {**texts()[0], "labels": labels}
    for model, expected in ((Next, True), (Same, False)):
        parts, output = parts_of(batch, model()), model()(**batch)
        assert shifted(parts, output) is expected


def test_padding_changes_nothing() -> None:
    """Two texts padded to one length are healed as they are apart."""
    model, small = Language(), Language(5, seed=1)
    other = copy.deepcopy(small)
    ids = torch.arange(8).reshape(1, 8)
    options = {"steps": 2, "accumulate": 2, "hidden": 0, "weight_decay": 0.0}
    model.layers[0].drop.p = model.layers[1].drop.p = 0.0
    for each in (small, other):
        for layer in each.layers:
            layer.drop.p = 0.0
    short = {"input_ids": ids[:, :3], "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    padded = {"input_ids": ids, "attention_mask": (torch.arange(8) < 3).long()[None]}
    whole = {"input_ids": ids, "attention_mask": torch.ones(1, 8, dtype=torch.int64)}
    heal(small, model, [short, whole], **options)
    both = {key: torch.cat([padded[key], whole[key]]) for key in padded}
    heal(other, model, [both], **{**options, "accumulate": 1})
    for name, value in state(small).items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_batches_of_a_step_weigh_by_their_positions() -> None:
    model, small = net(), net(5, seed=1)
    other = copy.deepcopy(small)
    x, y = torch.cat([x for x, _ in classes()]), torch.cat([y for _, y in classes()])
    one = heal(small, model, [(x, y)], 3)
    uneven = heal(other, model, list(zip(x.split([5, 20, 7]), y.split([5, 20, 7]), strict=True)), 3, accumulate=3)
    torch.testing.assert_close(torch.tensor(uneven.losses), torch.tensor(one.losses))
    assert uneven.samples == one.samples == 3 * 32
    for name, value in state(small).items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_hidden_states() -> None:
    model, small, batch = Language(), Language(5, seed=1), texts()[0]
    heard: dict[str, list[Tensor]] = {"small": [], "model": []}
    for name, each in (("small", small), ("model", model)):
        for layer in each.layers:
            layer.drop.p = 0.0
            layer.register_forward_hook(lambda module, args, output, name=name: heard[name].append(output))
    plain = heal(copy.deepcopy(small), model, [batch], 1, hidden=0)
    for each in heard.values():
        each.clear()
    with_it = heal(small, model, [batch], 1, hidden=0.5)
    pairs = [(a.detach()[:, :-1], b[:, :-1]) for a, b in zip(heard["small"], heard["model"], strict=True)]
    terms = [(ours - theirs).square().mean() / theirs.square().mean() for ours, theirs in pairs]
    assert with_it.hidden == ("layers.0", "layers.1")
    assert plain.hidden == ()
    assert with_it.losses[0] - plain.losses[0] == pytest.approx(0.5 * float(sum(terms)) / 2, rel=1e-4)
    named = heal(small, model, [batch], 1, hidden_at=["layers.*.down", "head"])
    assert named.hidden == ("layers.0.down", "layers.1.down", "head")


def test_blocks_that_return_nothing_are_left_out() -> None:
    model, small = Language(), Language(5, seed=1)
    model.layers[0].register_forward_hook(lambda module, args, output: 0 * output)
    healed = heal(small, model, texts())
    assert max(healed.losses) < 100


def test_blocks() -> None:
    conv = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
    stages = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(conv, copy.deepcopy(conv)), nn.Linear(1, 1))
    assert list(blocks(stages)) == ["1.0", "1.1"]
    assert list(blocks(Language())) == ["layers.0", "layers.1"]
    assert list(blocks(net())) == []
    assert list(blocks(nn.Sequential(Language(), nn.Sequential(nn.Linear(1, 1))))) == ["0.layers.0", "0.layers.1"]
    short = Language()
    short.layers = nn.ModuleList([Block(3)])
    assert in_both(short, Language(), None) == {"layers.0": "layers.1"}  # what has been through all of them
    assert heal(short, Language(), texts(), 2).hidden == ("layers.0",)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "another task": (lambda: heal(net(5, out=4), net(), classes()), r"answers with .*\(8, 4\).* where .*\(8, 3\)"),
    "no batches": (lambda: heal(net(5), net(), []), "the loader yields no batch"),
    "an empty iterator": (lambda: heal(net(5), net(), iter([])), "the loader yields no batch"),
    "an iterator that ends": (lambda: heal(net(5), net(), iter(classes(4))), "ended after 4 of 6 batches.*again"),
    "itself": (lambda: heal(*[net()] * 2, classes()), "0.weight of small is a tensor of the uncut model too"),
    "nothing to train": (lambda: heal(net(5).requires_grad_(False), net(), classes()), "no parameter .* asks for grad"),
    "float16": (lambda: heal(net(5).half(), net(), classes()), "float16, in which gradients vanish.*bfloat16"),
    "no labels": (lambda: heal(net(5), net(), [(torch.ones(8, 6), None)]), "logits or with values.*divergence="),
    "one class": (
        lambda: heal(net(5, 1), net(out=1), classes(), divergence="forward_kl"),
        "no two classes: pass divergence='mse'",
    ),
    "no blocks": (lambda: heal(net(5), net(), classes(), hidden=1), "no repeated block in common"),
    "no shape that agrees": (
        lambda: heal(net(5), net(), classes(), hidden_at=["0"]),
        "no module that both models have gives outputs of the same shape",
    ),
    "no module of that name": (lambda: heal(net(5), net(), classes(), hidden_at=["9"]), "hidden_at: no module of both"),
    "hidden twice": (lambda: heal(net(5), net(), classes(), hidden=0, hidden_at=["0"]), "leave out one of them"),
    "no list of blocks": (lambda: heal(net(5), net(), classes(), gradient_checkpointing=True), "no list of blocks"),
    "steps": (lambda: heal(net(5), net(), classes(), 0), "steps=0 is too small"),
    "all is padding": (
        lambda: heal(Language(5), Language(), [{k: v * 0 for k, v in texts()[0].items() if k != "labels"}]),
        "no position in the batches of step 1 counts",
    ),
    "a loss that is none": (
        lambda: heal(net(5), net(), classes(), loss_fn=lambda output, y: output),
        "loss_fn gives a torch.float32 tensor",
    ),
    "float16 by autocast": (lambda: within_float16(), "vanish under autocast to float16"),
    "detached": (
        lambda: heal(Detached(), net(), classes()),
        "does not depend on what is trained",
    ),
}  # fmt: skip


def within_float16() -> None:
    with torch.autocast("cpu", torch.float16):
        heal(net(5), net(), classes())


class Detached(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*net(5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach().requires_grad_()


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    run, said = REFUSED[what]
    with pytest.raises(fk.InputError, match=said):
        run()


def test_detectors_are_refused() -> None:
    class Boxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, images: list[Tensor], targets: Any = None) -> list[dict[str, Tensor]]:
            return [{"boxes": self.layer(image)} for image in images]

    batch = ([torch.ones(2, 4), torch.ones(3, 4)], [{"boxes": torch.ones(1, 4)}] * 2)
    with pytest.raises(fk.InputError, match="detectors, which are not distilled"):
        heal(Boxes(), Boxes(), [batch])


def test_a_loader_is_iterated_again() -> None:
    seen = []

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            for k, batch in enumerate(classes(2)):
                seen.append(k)
                yield batch

    assert heal(net(5), net(seed=1), Loader(), 5).samples == 40
    assert seen[:5] == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("where", ["loss", "teacher", "gradient"])
def test_what_is_not_finite_names_the_step(where: str) -> None:
    model, small = Language(seed=3), Language(5, seed=1)
    loader = texts(6)
    calls = []

    def task(output: Any, labels: Tensor) -> Tensor:
        calls.append(state(small))
        zero = 0.0 * output["logits"].sum()
        if len(calls) != 3:
            return zero
        if where == "loss":
            return zero + torch.nan
        if where == "teacher":
            return zero
        return zero.sqrt()  # zero, of which the slope is infinite

    if where == "teacher":

        class Broken(Language):
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                if len(calls) == 2 and not self.layers[1].down.bias.isinf().any():
                    self.layers[1].down.bias.data.fill_(torch.inf)
                return super().forward(*args, **kwargs)

        model = Broken(seed=3)
    said = {
        "loss": "the loss of step 3 is nan",
        "teacher": "the loss of step 3 is nan.*that is not finite is that of layers.1 in the uncut model",
        "gradient": "the gradient of step 3 has the norm nan",
    }
    with pytest.raises(fk.NonFiniteError, match=said[where]):
        heal(small, model, loader, loss_fn=task)
    assert same(state(small), calls[2])  # as the second step left it


def test_the_task_has_its_loss() -> None:
    x, y = classes()[0]
    small, model = net(5, seed=1), net()
    with torch.no_grad():
        cost = float(F.cross_entropy(small(x), y))
    alone = heal(copy.deepcopy(small), model, [(x, y)], 1).losses[0]
    both = heal(copy.deepcopy(small), model, [(x, y)], 1, loss_fn=F.cross_entropy, loss_weight=0.5).losses[0]
    assert both == pytest.approx(alone + 0.5 * cost, rel=1e-5)


def test_frozen_parameters_stay() -> None:
    small = net(5, seed=1)
    small[0].requires_grad_(False)
    before = state(small)
    heal(small, net(), classes(), weight_decay=0.5)
    after = state(small)
    assert {name for name in before if torch.equal(before[name], after[name])} == {"0.weight", "0.bias"}
    assert [p.requires_grad for p in small.parameters()] == [False, False, True, True]


def test_norms_and_biases_do_not_decay() -> None:
    small = nn.Sequential(nn.Conv2d(1, 2, 1), nn.LayerNorm([2, 3, 3]), nn.Flatten(), nn.Linear(18, 3))
    assert undecayed(small) == {"0.bias", "1.weight", "1.bias", "3.bias"}


def test_nothing_is_left_behind() -> None:
    model, small = Language(), Language(5, seed=1)
    model.train()
    small.layers[1].eval()
    small.head.weight.grad = kept = torch.ones(11, 8)
    left = Left(model)
    modes = [m.training for m in small.modules()]
    attributes = [set(vars(m)) for m in small.modules()]
    torch.manual_seed(5)
    left = Left(model)
    heal(small, model, texts(), gradient_checkpointing=True)
    assert left.differences() == []
    assert modes == [m.training for m in small.modules()]
    assert attributes == [set(vars(m)) for m in small.modules()]
    assert small.head.weight.grad is kept
    assert bool((kept == 1).all())
    assert all(p.grad is None for n, p in small.named_parameters() if n != "head.weight")
    assert not any(m._forward_hooks for each in (small, model) for m in each.modules())


def test_the_seed_decides() -> None:
    data = torch.utils.data.TensorDataset(*map(torch.cat, zip(*classes(), strict=True)))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    made = []
    for seed, drawn in ((0, 1), (0, 2), (1, 1)):
        small = nn.Sequential(nn.Dropout(0.3), net(5, seed=1))
        torch.manual_seed(drawn)
        heal(small, net(), loader, seed=seed)
        made.append(state(small))
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


def test_what_is_drawn_in_a_batch_goes_by_the_seed_and_its_number() -> None:
    def drawn(seed: int, start: int, batches: int = 4) -> list[tuple[float, float, float]]:
        random.seed(start)
        np.random.seed(start)  # noqa: NPY002
        torch.manual_seed(start)
        found = []

        def loss(output: Tensor, y: Tensor) -> Tensor:
            found.append((float(torch.rand(())), random.random(), float(np.random.rand())))  # noqa: NPY002
            return output.sum() * 0

        heal(net(5), net(), classes(), batches, seed=seed, loss_fn=loss)
        return found

    found = drawn(0, 1)
    assert all(len(set(each)) == 4 for each in zip(*found, strict=True))
    assert found == drawn(0, 2)
    assert found[:2] == drawn(0, 1, 2)
    assert not set(found) & set(drawn(9, 1))


def test_the_one_trains_and_the_other_answers() -> None:
    model, small, modes = Language().train(), Language(5, seed=1).eval(), []
    for name, each in (("model", model), ("small", small)):
        for module in each.modules():
            module.register_forward_pre_hook(
                lambda module, args, name=name: modes.append((name, module.training, torch.is_grad_enabled()))
            )
    with torch.no_grad():
        heal(small, model, texts(), 1)
    assert set(modes) == {("model", False, False), ("small", True, True)}
    assert model.training
    assert not small.training


def test_batch_norm_counts_in_whole_steps() -> None:
    def made(seed: int) -> nn.Sequential:
        first, last = net(4, seed=seed)[0], net(4, seed=seed)[2]
        return nn.Sequential(first, nn.BatchNorm1d(4), nn.ReLU(), last)

    small, seen = made(1), []

    def loss(output: Tensor, y: Tensor) -> Tensor:
        seen.append(state(small))
        return output.sum() * (0.0 if len(seen) < 3 else torch.nan)

    model = made(0)
    with pytest.raises(fk.NonFiniteError):
        heal(small, model, classes(), loss_fn=loss)
    assert int(small[1].num_batches_tracked) == 2
    assert int(seen[-1]["1.num_batches_tracked"]) == 3
    assert int(model[1].num_batches_tracked) == 0


def test_bfloat16_has_masters() -> None:
    """Changes that are too small for bfloat16 add up, as they do in float32."""
    loader = [(x.bfloat16(), y) for x, y in classes()]
    half, one = (net(5, seed=1).bfloat16() for _ in range(2))
    small = copy.deepcopy(half).float()
    before = state(small)
    options = {"lr": 2e-4, "warmup": 0, "weight_decay": 0.0}
    heal(small, net(), [(x.float(), y) for x, y in loader], 60, **options)
    heal(half, Cast(net(), torch.float32), loader, 60, **options)
    heal(one, Cast(net(), torch.float32), loader, 1, **options)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    weight = "0.weight"
    moved = small.state_dict()[weight] - before[weight]
    found = half.state_dict()[weight].float() - before[weight]
    assert float((found - moved).norm() / moved.norm()) < 0.2
    stuck = (one.state_dict()[weight].float() == before[weight]).float().mean()
    assert float(stuck) > 0.5  # a step alone is less than half of the distance to the next number


class Autocast(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x)


def test_autocast_around_is_that_of_the_models() -> None:
    """And the casts of weights that it keeps are those of the step."""
    model, small = net(), net(5, seed=1)
    expected = copy.deepcopy(small)
    heal(Autocast(expected), Autocast(model), classes(), clip=None)
    with torch.autocast("cpu", torch.bfloat16):
        healed = heal(small, model, classes(), clip=None)
    assert same(state(small), state(expected))
    assert healed.losses[-1] < healed.losses[0]


def test_a_teacher_in_another_type() -> None:
    assert heal(net(5), Cast(net(), torch.float64), classes()).losses[-1] > 0


@pytest.mark.parametrize("own", [False, True], ids=["blocks", "its own switch"])
def test_gradient_checkpointing_changes_nothing(own: bool) -> None:
    ran: list[int] = []

    class Switch(Language):
        again = False

        def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any]) -> None:
            assert gradient_checkpointing_kwargs == {"use_reentrant": False}
            self.again = True

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if not self.again:
                return super().forward(*args, **kwargs)
            return torch.utils.checkpoint.checkpoint(super().forward, *args, use_reentrant=False, **kwargs)

    kind = Switch if own else Language
    model, plain = Language(), kind(5, seed=1)
    again = copy.deepcopy(plain)
    again.layers[0].up.register_forward_hook(lambda *_: ran.append(1))
    one = heal(plain, model, texts())
    two = heal(again, model, texts(), gradient_checkpointing=True)
    assert one.losses == two.losses
    assert same(state(plain), state(again))
    assert len(ran) == 12
    assert not getattr(again, "again", False)


def shuffled() -> torch.utils.data.DataLoader[Any]:
    data = torch.utils.data.TensorDataset(*map(torch.cat, zip(*classes(), strict=True)))
    return torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)


class Stops:
    """A loader that is interrupted before its batch of this number, of all that it gives."""

    def __init__(self, batches: Any, at: int) -> None:
        self.batches, self.left = batches, at

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


def dropping() -> nn.Sequential:
    inner = net(5, seed=1)
    return nn.Sequential(inner[0], nn.BatchNorm1d(5), nn.Dropout(0.2), inner[1], inner[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_goes_on_to_the_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    model = net()
    options = {"steps": 9, "accumulate": 2, "every": 2, "weight_decay": 0.1}
    whole = Cast(dropping(), dtype)
    expected = heal(whole, model, shuffled(), **options)
    for at in (1, 5, 9, 13, 17):
        with pytest.raises(KeyboardInterrupt):
            heal(Cast(dropping(), dtype), model, Stops(shuffled(), at), checkpoint=tmp_path / str(at), **options)
        small = Cast(dropping(), dtype)
        found = heal(small, model, shuffled(), checkpoint=tmp_path / str(at), **options)
        assert same(state(whole), state(small))
        assert found.began == at // 4 * 2
        assert (found.losses, found.samples, found.tokens) == (expected.losses, expected.samples, expected.tokens)
        done = Cast(dropping(), dtype)
        assert heal(done, model, Stops([], 0), checkpoint=tmp_path / str(at), **options).began == 9
        assert same(state(whole), state(done))


def run_that_is_killed(folder: str) -> None:
    """Right before the second file takes the place of the first. In a process of its own: see the test."""
    replace, renamed = os.replace, []

    def killed(*args: Any) -> None:
        renamed.append(args)
        if len(renamed) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args)

    os.replace = killed
    heal(net(5, seed=1), net(), classes(), checkpoint=folder, steps=4, every=2)


def test_a_kill_leaves_what_was_there(tmp_path: Path) -> None:
    model, loader, options = net(), classes(), {"steps": 4, "every": 2}
    whole = net(5, seed=1)
    heal(whole, model, loader, **options)
    folder = tmp_path / "run"
    code = f"from tests.test_healing import run_that_is_killed; run_that_is_killed({str(folder)!r})"
    # not forked: a child of a process whose torch has threads may wait for them for ever
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    small = net(5, seed=1)
    found = heal(small, model, loader, checkpoint=folder, **options)
    assert found.began == 2
    assert same(state(whole), state(small))
    assert os.listdir(folder) == ["healing.safetensors"]


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    model, folder = net(), tmp_path / "run"
    small = net(5, seed=1)
    heal(small, model, classes(), checkpoint=folder)
    done = state(small)
    for options, said in (
        ({"lr": 1e-3}, r"written by heal\(lr=0.01, …\), and lr=0.001 is given"),
        ({"steps": 7}, "steps=6"),
        ({"loss_fn": F.cross_entropy}, "loss_fn=False"),
    ):
        with pytest.raises(fk.InputError, match=said):
            heal(small, model, classes(), **{"checkpoint": folder, **options})
    with pytest.raises(fk.ArtefactError, match=r"another model: 0.bias is float32 \[5\] there and float32 \[4\] here"):
        heal(net(4), model, classes(), checkpoint=folder)
    with pytest.raises(fk.InputError, match="trained"):
        heal(net(5).bfloat16(), model, classes(), checkpoint=folder)
    path = folder / "healing.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(fk.ArtefactError, match="truncated"):
        heal(small, model, classes(), checkpoint=folder)
    assert same(done, state(small))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_weights_of_the_same_shapes_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    """Half-way and at the end: another cut, another uncut model, what is frozen."""

    def cut(seed: int = 1) -> Cast:
        made = Cast(net(5, seed=seed), dtype)
        made.inner[0].bias.requires_grad_(False)
        return made

    model, at = net(), {"checkpoint": tmp_path / "run", "every": 2}
    reached = cut()
    with pytest.raises(KeyboardInterrupt):
        heal(reached, model, Stops(classes(), 2), **at)
    frozen = cut()
    with torch.no_grad():
        frozen.inner[0].bias += 1
    for began in (2, 6):
        for other in (cut(2), frozen):
            before = state(other)
            with pytest.raises(fk.ArtefactError, match="for another cut model: the weights of small are neither"):
                heal(other, model, classes(), **at)
            assert same(before, state(other))
        with pytest.raises(fk.ArtefactError, match="with another uncut model"):
            heal(cut(), net(seed=3), classes(), **at)
        assert heal(reached, model, classes(), **at).began == began
    whole = cut()
    heal(whole, model, classes())
    assert same(state(whole), state(reached))
    assert heal(cut(), model, classes(), **at).began == 6


def test_other_data_are_refused(tmp_path: Path) -> None:
    model = net()
    with pytest.raises(KeyboardInterrupt):
        heal(net(5), model, Stops(classes(), 3), checkpoint=tmp_path / "run", every=1)
    with pytest.raises(fk.InputError, match="begins with another batch"):
        heal(net(5), model, classes()[1:], checkpoint=tmp_path / "run", every=1)


def test_a_checkpoint_where_nothing_can_be_written(tmp_path: Path) -> None:
    small = net(5)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        heal(small, net(), classes(), checkpoint=tmp_path / "file" / "run")


def test_the_example() -> None:
    assert doctest.testmod(fairkern.healing).failed == 0
