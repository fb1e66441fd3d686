"""Prune to a tenth of the parameters, then fine-tune for a few epochs against the unpruned model's answers.

    python examples/finetune.py [--keep 0.1] [--epochs 4] [--teacher-epochs 12]

Plain PyTorch throughout. Needs scikit-learn for the digits; some seconds on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.demo.data import BATCH, Digits, digits, shuffled
from fairkern.demo.models import vgg
from fairkern.demo.train import accuracy

TEMPERATURE = 4.0  # softens both models' answers
HARD = 0.3  # weight of the labels beside the teacher's answers
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (logits, labels, images)


def sgd(model: nn.Module, rate: float) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, data: Digits, epochs: int) -> None:
    """Any training loop will do; the rate falls along a cosine."""
    generator = torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in range(epochs):
        for images, labels in shuffled(data.train_x, data.train_y, BATCH, generator):
            optimizer.zero_grad()
            loss(model(images), labels, images).backward()
            optimizer.step()
        schedule.step()
    model.eval()


def distillation(teacher: nn.Module) -> Loss:
    """Cross-entropy to the labels, and the divergence from the teacher's softened answers (Hinton et al. 2015)."""

    def loss(logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            soft = (teacher(images) / TEMPERATURE).softmax(1)
        told = nn.functional.kl_div((logits / TEMPERATURE).log_softmax(1), soft, reduction="batchmean")
        return HARD * nn.functional.cross_entropy(logits, labels) + (1 - HARD) * TEMPERATURE**2 * told

    return loss


def carry_momentum(
    old: torch.optim.SGD, model: nn.Module, new: torch.optim.SGD, small: nn.Module, plan: fk.Plan
) -> int:
    """Give the cut model's optimizer the momentum of the positions that stay; how many parameters got it.

    A plan names the axes that lose positions, so any state shaped like a parameter is cut like the parameter. A bias
    that compensation added has no history and starts without.
    """
    gone: dict[str, list[tuple[int, Tensor]]] = {}
    for cut in plan.axes:
        gone.setdefault(cut.axis.tensor, []).append((cut.axis.dim, torch.from_numpy(cut.removed)))
    before, carried = dict(model.named_parameters()), 0
    for name, parameter in small.named_parameters():
        momentum = old.state[before[name]].get("momentum_buffer") if name in before else None
        if momentum is None:
            continue
        for dim, removed in gone.get(name, []):
            stays = torch.ones(momentum.shape[dim], dtype=torch.bool)
            stays[removed] = False
            momentum = momentum.index_select(dim, stays.nonzero().squeeze(1))
        new.state[parameter]["momentum_buffer"] = momentum.clone()
        carried += 1
    return carried


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", type=float, default=0.1, help="share of the parameters that stays")
    parser.add_argument("--epochs", type=int, default=4, help="of fine-tuning")
    parser.add_argument("--teacher-epochs", type=int, default=12)
    chosen = parser.parse_args(arguments)

    data = digits()
    teacher = vgg(seed=0)
    optimizer = sgd(teacher, rate=0.05)
    train(teacher, optimizer, lambda logits, labels, _: nn.functional.cross_entropy(logits, labels), data,
          chosen.teacher_epochs)  # fmt: skip

    scores = fk.score(teacher, data.train_batches(), nn.CrossEntropyLoss(), gram=True, progress=False)
    plan = scores.plan(keep_params=chosen.keep)
    small = fk.apply(teacher, plan, compensate="least_squares", scores=scores)
    found = {"before": accuracy(teacher, data.test_batches()), "cut": accuracy(small, data.test_batches())}

    tuner = sgd(small, rate=0.01)
    carried = carry_momentum(optimizer, teacher, tuner, small, plan)
    train(small, tuner, distillation(teacher), data, chosen.epochs)
    found["tuned"] = accuracy(small, data.test_batches())

    kept = plan.result["params_after"] / plan.result["params_before"]
    print(f"parameters kept    {kept:.1%} (momentum carried over for {carried} tensors)")
    print(f"accuracy before    {found['before']:.1%}")
    print(f"cut, one shot      {found['cut']:.1%}")
    print(f"fine-tuned         {found['tuned']:.1%} after {chosen.epochs} epochs")
    return found


if __name__ == "__main__":
    main()
