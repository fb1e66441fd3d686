"""Recurrent layers written out step by step: what their weights read, without the library's or torch's own loop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def cell(kind: str, x: Tensor, h: Tensor, c: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One step of one layer in one direction; `weights`: ih, hh and, if there are any, the biases bih and bhh."""
    left = x @ weights["ih"].T + weights.get("bih", 0)
    right = h @ weights["hh"].T + weights.get("bhh", 0)
    if kind == "RNN_TANH":
        return torch.tanh(left + right), c
    if kind == "RNN_RELU":
        return torch.relu(left + right), c
    if kind == "GRU":
        (lr, lz, ln), (rr, rz, rn) = left.chunk(3, -1), right.chunk(3, -1)
        reset, update = torch.sigmoid(lr + rr), torch.sigmoid(lz + rz)
        return (1 - update) * torch.tanh(ln + reset * rn) + update * h, c
    i, f, g, o = (left + right).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@torch.no_grad()
def loop(
    rnn: nn.RNNBase, sequences: Sequence[Tensor], h0: Tensor | None = None, c0: Tensor | None = None
) -> tuple[dict[str, np.ndarray], list[Tensor]]:
    """What each weight that reads hidden states read, [vectors, n] by its name, and the last layer's states.

    `sequences`: [steps, features] each, of any length; `h0`, `c0`: [layers · directions, sequences, hidden].
    """
    directions = 2 if rnn.bidirectional else 1
    read: dict[str, list[Tensor]] = defaultdict(list)
    outputs = []
    for s, sequence in enumerate(sequences):
        x = sequence
        for layer in range(rnn.num_layers):
            made = []
            for d in range(directions):
                suffix = f"_l{layer}" + ("_reverse" if d else "")
                weights = {"ih": getattr(rnn, f"weight_ih{suffix}"), "hh": getattr(rnn, f"weight_hh{suffix}")}
                if rnn.bias:
                    weights |= {"bih": getattr(rnn, f"bias_ih{suffix}"), "bhh": getattr(rnn, f"bias_hh{suffix}")}
                k = layer * directions + d
                zero = x.new_zeros(rnn.hidden_size)
                h = zero if h0 is None else h0[k, s]
                c = zero if c0 is None else c0[k, s]
                states = []
                for step in reversed(range(len(x))) if d else range(len(x)):
                    if layer:
                        read[f"weight_ih{suffix}"].append(x[step])
                    read[f"weight_hh{suffix}"].append(h)
                    h, c = cell(rnn.mode, x[step], h, c, weights)
                    states.append(h)
                made.append(torch.stack(states[::-1] if d else states))
            x = torch.cat(made, -1)
        outputs.append(x)
    return {name: torch.stack(rows).numpy() for name, rows in read.items()}, outputs
