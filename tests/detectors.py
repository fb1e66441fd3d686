"""Miniature detectors, called as those of the libraries are: lists of images of any size, losses in train mode."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, PICKED = 3, 5


class Detector(nn.Module):
    """A box for each of the places with the highest scores; in train mode a dictionary of losses of places at random.

    Images are padded to one size. The head reads rows of all images, one after the other.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1), nn.ReLU(), nn.Dropout(0.5)
        )
        self.score = nn.Conv2d(6, 1, 1)
        self.head = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, CLASSES))
        nn.init.normal_(self.body[1].running_mean, std=0.1)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        return self.detect(images, targets)

    def detect(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None) -> Any:
        sizes = [max(image.shape[d] for image in images) for d in (1, 2)]
        batch = torch.stack([F.pad(i, (0, sizes[1] - i.shape[2], 0, sizes[0] - i.shape[1])) for i in images])
        features = self.body(batch)
        scores = self.score(features)
        places = scores.flatten(1)
        if self.training:
            assert targets is not None
            picked = [torch.randperm(places.shape[1])[: PICKED + i] for i in range(len(images))]
        else:
            picked = [row.topk(PICKED + i).indices for i, row in enumerate(places)]
        rows = torch.cat([f.flatten(1).T[index] for f, index in zip(features, picked, strict=True)])
        logits = F.dropout(self.head(rows), 0.5, training=self.training).split([len(index) for index in picked])
        if not self.training:
            return [{"labels": found.argmax(1), "scores": found.softmax(1).amax(1)} for found in logits]
        assert targets is not None
        classes = [F.cross_entropy(row.mean(0), t["labels"][0]) for row, t in zip(logits, targets, strict=True)]
        return {"loss_classes": torch.stack(classes).mean(), "loss_scores": scores.square().mean()}


class Unannotated(Detector):
    """The same, whose signature says nothing of lists."""

    def forward(self, images, targets=None):  # type: ignore[no-untyped-def]
        return self.detect(images, targets)


class TakesBatches(nn.Module):
    """The losses of a whole batch, around its own prediction; a prediction of images alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1))
        self.head = nn.Conv2d(6, CLASSES, 1)

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return self.loss(x) if isinstance(x, dict) else self.head(self.body(x).relu())

    def loss(self, batch: dict[str, Tensor], found: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        found = self.forward(batch["img"]) if found is None else found
        logits = found.mean((2, 3))[batch["batch_idx"].long()]
        classes = F.cross_entropy(logits, batch["cls"][:, 0].long())
        losses = torch.stack([classes, logits.square().mean()])
        return losses, {"classes": losses[0].detach(), "size": losses[1].detach()}


class Queries(nn.Module):
    """Classes of a few queries, and their loss where labels are given: a list of dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 8)
        self.classify = nn.Linear(8, CLASSES)

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, labels: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        hidden = self.embed(pixel_values)
        logits = self.classify(hidden + self.down(self.up(hidden).relu()))
        if labels is None:
            return {"logits": logits}
        pairs = zip(logits, (t["class_labels"] for t in labels), strict=True)
        found = [F.cross_entropy(rows[: len(classes)], classes) for rows, classes in pairs]
        return {"loss": torch.stack(found).mean(), "logits": logits}


def images(*sizes: tuple[int, int], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator, dtype=torch.float64) for size in sizes]


def targets(n: int) -> list[dict[str, Tensor]]:
    return [{"labels": torch.tensor([i % CLASSES])} for i in range(n)]


class Records(nn.Module):
    """Takes a dictionary for every image, which holds all that is known of it."""

    def __init__(self) -> None:
        super().__init__()
        self.detector = Detector()

    def forward(self, batched):  # type: ignore[no-untyped-def]
        return self.detector([record["image"] for record in batched], batched)
