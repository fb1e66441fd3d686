"""An MLP on pixels and an LSTM on rows."""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Module):
    """Three hidden layers."""

    def __init__(self, classes: int, widths: tuple[int, ...] = (192, 128, 64)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = 256
        for width in widths:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class RowLSTM(nn.Module):
    """Reads an image row by row in two layers; the last state is classified."""

    def __init__(self, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.rows = nn.Linear(16, 32)
        self.lstm = nn.LSTM(32, hidden, num_layers=2, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.rows(x.squeeze(1)).relu())
        return self.fc(states[:, -1])
