"""torch.nn.utils.prune's cells."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import prune

from bench.comparison import masks
from bench.comparison.cases import Case, chain
from bench.comparison.cells import Cell, cited, no, parameters, safe, yes

PAGE = f"documentation of torch.nn.utils.prune, torch {torch.__version__.partition('+')[0]}: "
NONE = "none in torch.nn.utils.prune"


def cut(case: Case) -> nn.Module:
    """Half of the rows of every layer with a weight matrix, by their norm."""
    for layer in case.model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
            prune.remove(layer, "weight")
    return case.model


def structure(name: str) -> Cell:
    return masks.structure(name, cut)


def whole_experts() -> Cell:
    return structure("experts")


def depth() -> Cell:
    return structure("residual")


def unstructured() -> Cell:
    case = chain()
    prune.global_unstructured(
        [(case.model.layers[0], "weight"), (case.model.layers[3], "weight")], prune.L1Unstructured, amount=0.7
    )
    zero = sum(int((case.model.layers[k].weight == 0).sum()) for k in (0, 3))
    return yes(f"`global_unstructured` set {zero:,} weights of two layers to zero")


def signals() -> Cell:
    found = [name for name in vars(prune) if name.endswith(("Unstructured", "Structured"))]
    return yes("for single weights and rows: " + ", ".join(sorted(found)))


def own_signal() -> Cell:
    layer = nn.Linear(4, 4)
    prune.l1_unstructured(layer, "weight", amount=8, importance_scores=torch.arange(16.0).view(4, 4))
    assert int((layer.weight == 0).sum()) == 8
    assert bool((layer.weight.flatten()[:8] == 0).all())
    return yes("`importance_scores=` was followed")


def uneven() -> Cell:
    case = chain()
    with torch.no_grad():
        case.model.layers[3].weight.mul_(0.01)
    prune.global_unstructured(
        [(case.model.layers[0], "weight"), (case.model.layers[3], "weight")], prune.L1Unstructured, amount=0.7
    )
    shares = [float((case.model.layers[k].weight == 0).float().mean()) for k in (0, 3)]
    assert abs(shares[0] - shares[1]) > 0.1, shares
    return yes(f"`global_unstructured`, of single weights: {shares[0]:.0%} and {shares[1]:.0%} of two layers")


def search() -> Cell:
    return no(NONE)


def budget_params() -> Cell:
    return masks.nothing_smaller(chain(), cut)


def budget_flops() -> Cell:
    return masks.nothing_smaller(chain(), cut)


def budget_latency() -> Cell:
    return masks.nothing_smaller(chain(), cut)


def new_budget() -> Cell:
    return no("each call makes a mask anew, within what the last one left; no scores are kept")


def reasons() -> Cell:
    return no(NONE)


def proven() -> Cell:
    return masks.proven(cut)


def untouched() -> Cell:
    case = chain()
    prune.ln_structured(case.model.layers[0], "weight", amount=0.75, n=2, dim=0)
    assert not torch.equal(case.model.layers[0].weight, chain().model.layers[0].weight)
    return no("masks are put on the module that is given")


def compensation() -> Cell:
    return no(NONE)


def sparse_training() -> Cell:
    return cited("partly", PAGE + "masks stay while one trains; no regulariser")


def distillation() -> Cell:
    return no(NONE)


def quantisation() -> Cell:
    return no(NONE + "; torchao is a package of its own")


def reload() -> Cell:
    case, again = chain(), chain()
    state = cut(case).state_dict()
    assert safe(state)
    again.model.load_state_dict(state)
    return yes("after `remove` a state dict is what it was before, and of the same shapes")


def onnx() -> Cell:
    return masks.onnx(cut)


def checkpoint() -> Cell:
    return no("its functions take modules")


def llm_folder() -> Cell:
    return no("no smaller tensors")


def uneven_files() -> Cell:
    return no("no smaller tensors")


def processes() -> Cell:
    return no(NONE)


def blocks() -> Cell:
    return no(NONE)


def report() -> Cell:
    return no(NONE)


def command_line() -> Cell:
    return no(NONE)


def frameworks() -> Cell:
    assert parameters(chain().model)
    return no("PyTorch modules")
