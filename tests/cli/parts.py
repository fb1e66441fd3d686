"""What the command line is given in its tests: models, loaders, functions; each test finds it as `parts`."""

import torch
from torch import nn

WIDTH = 12
number = 3


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3))


made = model()


def wide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 3))


class TwoWays(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.aside, self.out = nn.Linear(6, WIDTH), nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x, aside=False):
        return self.out(torch.relu(self.aside(x) if aside else self.fc(x)))


def two_ways():
    torch.manual_seed(0)
    return TwoWays()


def without_biases():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 5, bias=False), nn.ReLU(), nn.Linear(5, 3))


def other_way():
    return {"x": inputs(), "aside": True}


def other_model():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def inputs():
    return torch.randn(2, 6, generator=torch.Generator().manual_seed(1))


def loader():
    y = torch.arange(3).repeat(10)
    return [(torch.randn(30, 6, generator=torch.Generator().manual_seed(2)) + y[:, None], y)]


def loader_of_soft_targets():
    return [(x, nn.functional.one_hot(y, 3).float()) for x, y in loader()]


def class_of():
    return lambda batch: batch[1].argmax(1)


def samples_of():
    return lambda batch: len(batch[1])


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, images: list[torch.Tensor], targets=None):
        found = [self.head(self.body(image[None]).relu()) for image in images]
        if self.training:
            return {
                "size": sum(f.square().mean() * t["weight"] for f, t in zip(found, targets, strict=True)) / len(images)
            }
        return [{"scores": f.flatten(1)[0]} for f in found]


def detector():
    torch.manual_seed(0)
    return Detector()


def images():
    return [torch.rand(3, 8, 8), torch.rand(3, 8, 6)]


def images_and_targets():
    torch.manual_seed(1)
    return [(images(), [{"weight": torch.tensor(1.0)}, {"weight": torch.tensor(2.0)}]) for _ in range(2)]


def broken_loader():
    yield from loader()
    raise OSError("the disk is gone")


def hungry(n):
    return n


def interrupted():
    raise KeyboardInterrupt


def evaluate(model):
    with torch.no_grad():
        return {"top1": float(sum((model(x).argmax(1) == y).float().mean() for x, y in loader()))}


def pictures():
    y = torch.arange(2).repeat(4)
    return [(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(3)) + y[:, None, None, None], y)]


def last_first(group):
    return -group.l1.argsort().argsort()
