"""What is trained of the cut model: its weights, by AdamW, in float32 where they are shorter themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from fairkern.errors import InputError, NonFiniteError
from fairkern.healing.settings import Settings
from fairkern.interrupts import undivided
from fairkern.model.autocast import forget_casts
from fairkern.model.tensors import named_tensors

_AS_THEY_ARE = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Weights:
    """The parameters that ask for gradients, each with its master: itself, or a float32 copy of one in bfloat16.

    Gradients are added up at the masters. Weights and buffers change in whole steps: what a forward pass does to
    buffers in a step that is not finished is undone when `whole_steps` is left.
    """

    def __init__(self, small: nn.Module, settings: Settings) -> None:
        self._settings = settings
        self._parameters = {name: p for name, p in small.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise InputError(
                "no parameter of the cut model asks for gradients, so nothing can be healed: requires_grad_(True) on "
                "what is to be trained"
            )
        self.masters = {name: _master(name, p) for name, p in self._parameters.items()}
        held = named_tensors(small)
        self.buffers = {name: tensor for name, tensor in held.items() if not isinstance(tensor, nn.Parameter)}
        self._before = {name: buffer.detach().clone() for name, buffer in self.buffers.items()}
        bare_ones = undecayed(small)
        groups = [
            {"params": [m for n, m in self.masters.items() if (n in bare_ones) is bare], "weight_decay": decay}
            for bare, decay in ((False, settings.weight_decay), (True, 0.0))
        ]
        self._optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.lr)

    @contextlib.contextmanager
    def whole_steps(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._put_back_buffers()

    def begin(self) -> None:
        """Before the first backward pass of a step."""
        for master in self.masters.values():
            master.grad = None

    def gather(self) -> None:
        """After a backward pass: gradients of what has a master of its own are added to those there."""
        for name, parameter in self._parameters.items():
            master = self.masters[name]
            if master is parameter or parameter.grad is None:
                continue
            grad = parameter.grad.to(master.dtype)
            master.grad = grad if master.grad is None else master.grad.add_(grad)
            parameter.grad = None

    def step(self, number: int, count: int) -> None:
        """The step of this number, from 1 on; `count`: what the gradients are to be divided by.

        Raises NonFiniteError, before anything has changed.
        """
        given = [m for m in self.masters.values() if m.grad is not None]
        if not given:
            raise InputError(
                "no weight of the cut model got a gradient: what it returns does not depend on what is trained"
            )
        for master in given:
            assert master.grad is not None
            master.grad.div_(count)
        limit = float("inf") if self._settings.clip is None else self._settings.clip
        norm = float(nn.utils.clip_grad_norm_(given, limit))
        if not norm < float("inf"):
            raise NonFiniteError(
                f"the gradient of step {number} has the norm {norm}; weights are as the step before left them"
                + (": try a smaller lr" if number > 1 else "")
            )
        rate = self._settings.rate(number)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        undivided(self._update)

    def _update(self) -> None:
        with torch.device("cpu"):  # where the optimizer makes its counts
            self._optimizer.step()
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if self.masters[name] is not parameter:
                    parameter.copy_(self.masters[name])
            for name, buffer in self.buffers.items():
                self._before[name].copy_(buffer)
        forget_casts()

    def _put_back_buffers(self) -> None:
        with torch.no_grad():
            for name, buffer in self.buffers.items():
                if not torch.equal(buffer, self._before[name]):
                    buffer.copy_(self._before[name])

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers and what the optimizer keeps, by name."""
        kept = {
            f"optimizer.{key}.{name}": value
            for name, master in self.masters.items()
            for key, value in self._optimizer.state.get(master, {}).items()
        }
        return {
            **{f"weight.{name}": master.detach() for name, master in self.masters.items()},
            **{f"buffer.{name}": buffer for name, buffer in self.buffers.items()},
            **kept,
        }

    def misfit(self, state: Mapping[str, Tensor]) -> str | None:
        """What of a state is not that of this model, in words."""
        own = {
            **{f"weight.{name}": master for name, master in self.masters.items()},
            **{f"buffer.{name}": buffer for name, buffer in self.buffers.items()},
        }
        given = {name: tensor for name, tensor in state.items() if not name.startswith("optimizer.")}
        for name in sorted(own.keys() | given.keys()):
            there = [_described(tensors.get(name)) for tensors in (given, own)]
            if there[0] != there[1]:
                return f"{name.partition('.')[2]} is {there[0]} there and {there[1]} here"
        for name, tensor in state.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                master = self.masters.get(rest.partition(".")[2])
                if master is None or tensor.shape not in (master.shape, torch.Size()):
                    return f"it has {name}, which is of no weight here"
        return None

    def load(self, state: Mapping[str, Tensor]) -> None:
        """A state that fits."""
        undivided(partial(self._load, state))

    def _load(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state[f"weight.{name}"])
                if master is not self._parameters[name]:
                    self._parameters[name].copy_(master)
            for name, buffer in self.buffers.items():
                buffer.copy_(state[f"buffer.{name}"])
                self._before[name].copy_(buffer)
        for name, tensor in state.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                key, _, owner = rest.partition(".")
                master = self.masters[owner]
                self._optimizer.state[master][key] = tensor.to(master.device) if tensor.ndim else tensor
        forget_casts()


def _master(name: str, parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype in _AS_THEY_ARE:
        return parameter
    if parameter.dtype is not torch.bfloat16:
        raise InputError(
            f"{name} is {parameter.dtype}, in which gradients vanish or cannot be had; expected float32, float64 or "
            "bfloat16: heal small.to(torch.bfloat16) or small.float(), and convert it back afterwards"
        )
    return nn.Parameter(parameter.detach().to(torch.float32))


def undecayed(model: nn.Module) -> set[str]:
    """Parameters of norms, and those of one dimension: biases and scales."""
    norms = [path for path, module in model.named_modules() if isinstance(module, _NORMS)]
    return {n for n, p in model.named_parameters() if p.ndim < 2 or n.rpartition(".")[0] in norms}


def _described(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
