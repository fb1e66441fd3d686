"""The signal "activation" against activations that hooks heard, and norms of weights in scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.ops.gram.packed import Packed
from tests import experts
from tests.branching import Language, PreNorm, tokens
from tests.capture.networks import CLASSES, Branches, Plain, build, loader, loss, samples


def scored(model: nn.Module, x: Tensor, y: Tensor, **options: object) -> fk.Scores:
    units = fk.trace(model, x[:2])
    how = {"gram": True, "projections": 4, "progress": False, **options}
    return fk.score(model, loader(x, y, 7), loss, units=units, **how)


def read(model: nn.Module, path: str, x: Tensor) -> Tensor:
    """What a module reads."""
    heard: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].clone()))
    with torch.no_grad():
        model(x)
    handle.remove()
    return heard[0]


def root(squares: Tensor) -> np.ndarray:
    return squares.sqrt().numpy()


def signal(scores: fk.Scores, name: str, group: str) -> np.ndarray:
    number = next(g for g, known in enumerate(scores.units.groups) if known.name == group)
    return scores.signals[name][number]


def test_it_is_the_root_of_the_mean_square_of_what_is_read() -> None:
    model, (x, y) = build(Plain).eval(), samples()
    scores = scored(model, x, y)
    assert signal(scores, "activation", "conv1") == pytest.approx(
        root(read(model, "conv2", x).square().mean((0, 2, 3)))
    )
    flat = read(model, "fc1", x).square().mean(0).view(5, 16)
    assert signal(scores, "activation", "conv2") == pytest.approx(root(flat.mean(1)))  # channels spread over 16 places
    assert signal(scores, "activation", "fc1") == pytest.approx(root(read(model, "fc2", x).square().mean(0)))


def test_consumers_of_one_activation_and_of_several_add_up() -> None:
    model, (x, y) = build(Branches).eval(), samples()
    scores = scored(model, x, y)
    (group,) = [g for g in scores.units.groups if g.name == "stem"] or [scores.units.groups[0]]
    squares = torch.zeros(group.units, dtype=torch.float64)
    for tap in group.taps:
        act = read(model, tap.sites[0].module, x).square().transpose(0, 1).flatten(1).mean(1)
        squares += act[torch.from_numpy(tap.positions)].sum(1) / scores.moments[tap.name].per_unit
    assert signal(scores, "activation", group.name) == pytest.approx(root(squares))


def test_it_does_not_depend_on_batches_or_on_where_moments_are_kept(tmp_path: object) -> None:
    model, (x, y) = build(Plain).eval(), samples()
    expected = scored(model, x, y).signals["activation"]
    for options in ({"keep_moments": False}, {"memory_budget": 60_000}):
        found = scored(model, x, y, **options).signals["activation"]
        assert all(a == pytest.approx(b, rel=1e-9) for a, b in zip(found, expected, strict=True))
    whole = fk.score(model, [(x, y)], loss, units=fk.trace(model, x[:2]), gram=True, progress=False)
    assert all(a == pytest.approx(b, rel=1e-6) for a, b in zip(whole.signals["activation"], expected, strict=True))


def test_of_experts_it_is_what_their_projections_read_and_what_they_add() -> None:
    model, (x, y) = experts.build(), experts.samples()
    units = fk.trace(model, x[:2], verify=False)
    scores = fk.score(model, loader(x, y, 5), loss, units=units, gram=True, progress=False)
    with torch.no_grad():
        hidden = model.norm(model.embed(x)).reshape(-1, experts.WIDTH)
        weights, index = model.router(hidden)
        gates = torch.zeros(len(hidden), experts.EXPERTS, dtype=torch.float64).scatter_(1, index, weights)
        up = torch.einsum("td,ehd->teh", hidden, model.experts.gate_up_proj)
        gate, inner = up.chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * inner * (gates > 0)[..., None]
        added = torch.einsum("teh,edh->ted", inner, model.experts.down_proj) * gates[..., None]
    names = {units.groups[g].kind: units.groups[g].name for g in units.prunable}
    found = signal(scores, "activation", names["expert neuron"]).reshape(experts.EXPERTS, -1)
    assert found == pytest.approx(root(inner.square().mean(0)))  # zero for tokens that go elsewhere
    whole = signal(scores, "activation", names["expert"])
    assert whole == pytest.approx(root(added.square().mean((0, 2))))


def test_of_branches_it_is_what_they_add() -> None:
    torch.manual_seed(0)
    model = Language(PreNorm).double().eval()
    x, y = tokens(6, seed=1), torch.arange(6) % 2
    units = fk.trace(model, x[:2], depth=True)

    def of_means(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output.mean(1), target)

    scores = fk.score(model, [(x, y)], of_means, units=units, gram=True, progress=False)
    for g in units.branched:
        for unit, branch in enumerate(units.branches[units.groups[g].name]):
            heard: list[Tensor] = []
            last = model.get_submodule(branch.last.module)
            handle = last.register_forward_hook(lambda _, __, out, heard=heard: heard.append(out) and None)
            with torch.no_grad():
                model(x)
            handle.remove()
            out = heard[0][0] if isinstance(heard[0], tuple) else heard[0]
            assert scores.signals["activation"][g][unit] == pytest.approx(float(out.square().mean().sqrt()))


def test_norms_of_weights_are_in_every_scores() -> None:
    model, (x, y) = build(Plain).eval(), samples()
    for options in ({}, {"gram": False}, {"recipe": "paper"}, {"class_of": False}):
        scores = scored(model, x, y, **options)
        rows = model.conv2.weight.detach().flatten(1)
        assert signal(scores, "l1", "conv2") == pytest.approx(rows.abs().sum(1).numpy())
        assert signal(scores, "l2", "conv2") == pytest.approx(rows.square().sum(1).sqrt().numpy())
        assert ("activation" in scores.signals) is (options.get("gram") is not False)
    assert CLASSES == 3


def test_they_are_part_of_the_file(tmp_path: object) -> None:
    model, (x, y) = build(Plain).eval(), samples()
    scores = scored(model, x, y)
    scores.save(f"{tmp_path}/scores.safetensors")
    back = fk.Scores.load(f"{tmp_path}/scores.safetensors")
    for name in ("l1", "l2", "activation"):
        assert all(np.array_equal(a, b) for a, b in zip(back.signals[name], scores.signals[name], strict=True))


@pytest.mark.parametrize("n", [0, 1, 7, 300])
def test_the_diagonal_of_a_half(n: int) -> None:
    matrix = torch.randn(n, n, dtype=torch.float64)
    matrix = matrix + matrix.T
    assert torch.equal(Packed.of(matrix).diagonal(), matrix.diagonal())
