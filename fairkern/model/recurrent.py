"""What the weights within a recurrent layer read: states of its own layers, which no call of a module shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

_FORWARDS = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)
_FUNCTIONS = {"RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu", "LSTM": "lstm", "GRU": "gru"}


def reads_hidden(module: nn.Module | None, name: str) -> bool:
    """Whether the parameter `name` reads states of `module` itself: the recurrence, and every layer but the first.

    False where the module runs code of its own.
    """
    if not isinstance(module, nn.RNNBase) or type(module).forward not in _FORWARDS:
        return False
    kind, _, layer = name.removesuffix("_reverse").rpartition("_l")
    return kind == "weight_hh" or (kind == "weight_ih" and layer != "0")


def reading(name: str) -> str:
    """The name of what a weight reads, as `hidden_states` has it: both directions of a layer read the one before."""
    return name.removesuffix("_reverse") if name.startswith("weight_ih") else name


def hidden_states(module: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> dict[str, Tensor]:
    """What each weight that reads states of `module` itself read in the call that gave `output`, in order.

    By the weight's name, [vectors, n]: for `weight_hh` of a layer and direction the state before every step, also the
    first; for `weight_ih` of a layer above the first what the layer below gave, both directions side by side.
    Padded, packed and unbatched sequences alike. In eval mode: there is no dropout between layers.

    Cost: a forward pass of every layer but the last, whose states are the output.
    """
    x, hx = (*args, None, None)[:2]
    x, hx = kwargs.get("input", x), kwargs.get("hx", hx)
    with torch.no_grad(), torch._C.DisableTorchFunction():
        return dict(_read(module, *_steps_first(module, x, hx, output[0])))


def _steps_first(module: nn.RNNBase, x: Any, hx: Any, output: Any) -> tuple[Tensor, Tensor | None, Any, Tensor]:
    """Input and output as [steps, samples, …], or [rows, …] and how many samples each step has; initial states."""
    if isinstance(x, PackedSequence):
        return x.data, x.batch_sizes, None if hx is None else module.permute_hidden(hx, x.sorted_indices), output.data
    if x.ndim == 2:  # one sample
        if hx is not None:
            hx = tuple(h.unsqueeze(1) for h in hx) if isinstance(hx, tuple) else hx.unsqueeze(1)
        return x.unsqueeze(1), None, hx, output.unsqueeze(1)
    return (x.transpose(0, 1), None, hx, output.transpose(0, 1)) if module.batch_first else (x, None, hx, output)


def _read(module: nn.RNNBase, x: Tensor, sizes: Tensor | None, hx: Any, output: Tensor) -> Iterator[tuple[str, Tensor]]:
    directions = 2 if module.bidirectional else 1
    width = output.shape[-1] // directions
    samples = x.shape[1] if sizes is None else int(sizes[0])
    if hx is None:
        first = x.new_zeros((module.num_layers * directions, samples, width))
        cell = x.new_zeros((*first.shape[:2], module.hidden_size))
    else:
        first, cell = hx if isinstance(hx, tuple) else (hx, hx)
    for layer in range(module.num_layers):
        own = slice(layer * directions, (layer + 1) * directions)
        if layer:
            yield f"weight_ih_l{layer}", x.flatten(0, -2)
        x = output if layer == module.num_layers - 1 else _layer(module, x, sizes, first[own], cell[own], own)
        for d, states in enumerate(x.split(width, -1)):
            before = _before(states, sizes, first[own][d], backwards=d == 1)
            yield f"weight_hh_l{layer}{'_reverse' if d else ''}", before


def _layer(module: nn.RNNBase, x: Tensor, sizes: Tensor | None, first: Tensor, cell: Tensor, own: slice) -> Tensor:
    """What one layer gives, both directions side by side."""
    function = getattr(torch._VF, _FUNCTIONS[module.mode])
    hx = (first.contiguous(), cell.contiguous()) if module.mode == "LSTM" else first.contiguous()
    weights = [w for held in module.all_weights[own] for w in held]
    options = (weights, module.bias, 1, 0.0, False, module.bidirectional)
    given = (x, hx, *options, False) if sizes is None else (x, sizes, hx, *options)
    made: Tensor = function(*given)[0]
    return made


def _before(states: Tensor, sizes: Tensor | None, first: Tensor, *, backwards: bool) -> Tensor:
    """[vectors, n]: the state that each step starts from, given the one that each step ends with."""
    if sizes is None:
        earlier = states[1:] if backwards else states[:-1]
        return torch.cat([first[None], earlier]).flatten(0, 1)
    if backwards:  # every sequence starts at its own end; its first state is read by none
        return torch.cat([first, states[int(sizes[0]) :]])
    starts = sizes.cumsum(0) - sizes
    runs = zip(starts[:-1].tolist(), sizes[1:].tolist(), strict=True)
    index = [place for start, length in runs for place in range(start, start + length)]
    return torch.cat([first, states[torch.tensor(index, dtype=torch.int64, device=states.device)]])
