"""What branches are scored by: all that they add, heard where their last module returns it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from tests.branching import Language, Parallel, PreNorm, Residual, images, tokens


def batches(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    made = images if isinstance(model, Residual) else tokens
    return [(made(4, seed=k), torch.tensor([0, 1, 0, 1])) for k in range(3)]


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output if output.ndim == 2 else output.mean(1), target)


def heard(model: nn.Module, path: str, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What a module adds and the gradient there, of the sum of the samples' losses."""
    kept: list[Tensor] = []

    def hook(_: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> object:
        first, *rest = output if isinstance(output, tuple) else (output,)
        kept.extend((first.clone(), first.detach().clone()))  # what follows may write to the one
        return (kept[0].clone(), *rest) if rest else kept[0].clone()

    handle = model.get_submodule(path).register_forward_hook(hook)
    value = loss(model(x), target) * len(x)
    handle.remove()
    (grad,) = torch.autograd.grad(value, kept[:1])
    return kept[1], grad


@pytest.mark.parametrize("model", [Language(PreNorm), Language(Parallel), Residual()], ids=["pre", "parallel", "cnn"])
def test_r_and_the_residual_are_of_all_that_a_branch_adds(model: nn.Module) -> None:
    model = model.double().eval()
    data = [(x.double() if x.is_floating_point() else x, y) for x, y in batches(model)]
    units = fk.trace(model, data[0][0][:2], depth=True)
    scores = fk.score(model, data, loss, units=units, gram=True)
    samples = sum(len(x) for x, _ in data)
    for g in units.branched:
        group = units.groups[g]
        for unit, branch in enumerate(units.branches[group.name]):
            found = [heard(model, branch.last.module, x, y) for x, y in data]
            terms = torch.cat([(act * grad).flatten(1).sum(1) for act, grad in found])
            assert scores.signals["taylor"][g][unit] == pytest.approx(float(terms.abs().sum()) / samples, rel=1e-9)
            act, grad = (torch.cat([pair[k] for pair in found]) for k in (0, 1))
            expected = float(act.square().mean() * grad.square().sum()) / samples
            assert scores.signals["residual"][g][unit] == pytest.approx(expected, rel=1e-6)


def test_u_compares_what_branches_add_between_classes() -> None:
    torch.manual_seed(0)
    model = Language(PreNorm).eval()
    with torch.no_grad():
        model.blocks[2].mlp.down.weight.zero_()  # adds the same to all samples
    scores = fk.score(model, batches(model), loss, units=fk.trace(model, tokens(), depth=True))
    (u,) = (
        scores.signals["wasserstein"][g] for g in scores.units.branched if scores.units.groups[g].name.endswith("mlp")
    )
    assert u.shape == (4,)
    assert u[2] == pytest.approx(0, abs=1e-6)
    assert (np.delete(u, 2) > 1e-3).all()


def test_the_model_is_left_as_it_was() -> None:
    model = Language(PreNorm).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fk.score(model, batches(model), loss, units=fk.trace(model, tokens(), depth=True), gram=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
