"""An ordinary training loop on the CPU, seeded throughout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fairkern.demo.data import BATCH, digits, shuffled
from fairkern.demo.models import resnet, vgg

EPOCHS = {"vgg": 20, "resnet": 15}
LEARNING_RATE = 0.05


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epochs: int,
    seed: int = 0,
    on_epoch: Callable[[int], object] = lambda epoch: None,
) -> None:
    """Train `model` in place: SGD with momentum, one learning-rate cycle, small shifts. Leaves it in eval mode.

    `on_epoch(n)` is called after the n-th epoch. PyTorch's global generator is not used.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.2)
    loss_fn = nn.CrossEntropyLoss()
    model.train()
    with _one_thread():
        for epoch in range(1, epochs + 1):
            for images, labels in shuffled(x, y, BATCH, generator):
                optimizer.zero_grad()
                loss_fn(model(images), labels).backward()
                optimizer.step()
                schedule.step()
            on_epoch(epoch)
    optimizer.zero_grad()
    model.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Layers this small gain nothing from a second thread, and with one the weights do not depend on the machine's
    number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of samples whose largest logit is the label's, with `model` in the mode it is in."""
    right = total = 0
    with torch.inference_mode():
        for images, labels in batches:
            right += int((model(images).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


def trained_vgg() -> nn.Module:
    """The demo's VGG, trained (some seconds): for `fairkern score fairkern.demo.train:trained_vgg …`."""
    model = vgg()
    data = digits()
    train(model, data.train_x, data.train_y, EPOCHS["vgg"])
    return model


def trained_resnet() -> nn.Module:
    """The demo's ResNet, trained (some seconds)."""
    model = resnet()
    data = digits()
    train(model, data.train_x, data.train_y, EPOCHS["resnet"])
    return model
