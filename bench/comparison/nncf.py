"""nncf's cells: `nncf.prune` masks single weights; its quantisation is what it is for."""

from __future__ import annotations

import io
from importlib.metadata import entry_points

import nncf
import nncf.torch
import torch
from nncf import PruneMode
from torch import nn

from bench.comparison import masks
from bench.comparison.cases import Case, chain
from bench.comparison.cells import Cell, absent, cited, no, partly, safe, yes

NONE = "none in nncf.prune or its options"


def cut(case: Case) -> nn.Module:
    """Half of all weights, by magnitude, with the masks folded in."""
    model = nncf.prune(case.model, PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL, ratio=0.5, examples_inputs=case.example)
    return nncf.strip(model, strip_format=nncf.StripFormat.IN_PLACE, example_input=case.example)


def structure(name: str) -> Cell:
    return masks.structure(name, cut)


def whole_experts() -> Cell:
    return structure("experts")


def depth() -> Cell:
    return structure("residual")


def unstructured() -> Cell:
    model = cut(chain())
    zero = sum(int((p == 0).sum()) for p in model.parameters())
    return yes(f"`nncf.prune` set weights to zero, {zero:,} then were; locally, globally, or learned by regularisation")


def signals() -> Cell:
    assert len(PruneMode) == 3
    return partly("for single weights: " + ", ".join(mode.value for mode in PruneMode))


def own_signal() -> Cell:
    return no(NONE)


def uneven() -> Cell:
    case = chain()
    with torch.no_grad():
        case.model.layers[3].weight.mul_(0.01)
    model = cut(case)
    shares = [float((model.layers[k].weight == 0).float().mean()) for k in (0, 3)]
    assert abs(shares[0] - shares[1]) > 0.1, shares
    return yes(f"the global mode, of single weights: {shares[0]:.0%} and {shares[1]:.0%} of two layers")


def search() -> Cell:
    return no(NONE)


def budget_params() -> Cell:
    return masks.nothing_smaller(chain(), cut)


def budget_flops() -> Cell:
    return masks.nothing_smaller(chain(), cut)


def budget_latency() -> Cell:
    return masks.nothing_smaller(chain(), cut)


def new_budget() -> Cell:
    return no("each call makes masks anew; no scores are kept")


def reasons() -> Cell:
    return no(NONE)


def proven() -> Cell:
    return masks.proven(cut)


def untouched() -> Cell:
    case = chain()
    nncf.prune(case.model, PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL, ratio=0.5, examples_inputs=case.example)
    same = all(torch.equal(a, b) for a, b in zip(case.model.parameters(), chain().model.parameters(), strict=True))
    hooked = "__nncf_hooks" in dict(case.model.named_children())
    return (
        yes("weights of the given model are what they were")
        if same and not hooked
        else no("masks are put on the given model")
    )


def compensation() -> Cell:
    return partly("`nncf.batch_norm_adaptation` estimates BatchNorm's statistics anew; weights stay what they were")


def sparse_training() -> Cell:
    case = chain()
    model = nncf.prune(case.model, PruneMode.UNSTRUCTURED_REGULARIZATION_BASED, examples_inputs=case.example)
    assert any(p.requires_grad for p in model.parameters())
    return yes("a mode that learns its masks by regularisation, of single weights")


def distillation() -> Cell:
    absent(nncf.torch, "distil|teacher")
    return no("none in its sources for PyTorch")


def quantisation() -> Cell:
    case = chain()
    found = nncf.quantize(case.model, nncf.Dataset([case.example]))
    kinds = [type(layer).__name__ for layer in found.modules() if "Quantizer" in type(layer).__name__]
    assert kinds
    return yes(
        f"`nncf.quantize` put {len(kinds)} quantisers into a model; weights of 8 and 4 bits by `compress_weights`"
    )


def reload() -> Cell:
    model = cut(chain())
    assert safe(model.state_dict())
    chain().model.load_state_dict(model.state_dict(), strict=False)
    return yes("after `strip` a state dict has the shapes it had before; masks by `get_config` and `load_from_config`")


def onnx() -> Cell:
    return masks.onnx(cut)


def checkpoint() -> Cell:
    return no("it takes models")


def llm_folder() -> Cell:
    return no("no smaller tensors (its `compress_weights` makes such folders smaller in bits, by way of OpenVINO)")


def uneven_files() -> Cell:
    return no("no smaller tensors")


def processes() -> Cell:
    return no(NONE)


def blocks() -> Cell:
    return no(NONE)


def report() -> Cell:
    case, said = chain(), io.StringIO()
    model = nncf.prune(case.model, PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL, ratio=0.5, examples_inputs=case.example)
    print(nncf.pruning_statistic(model), file=said)
    assert "0." in said.getvalue()
    return partly("`nncf.pruning_statistic`: a table of zeros by layer")


def command_line() -> Cell:
    assert not [e for e in entry_points(group="console_scripts") if e.value.startswith("nncf")]
    return no("it installs no command")


def frameworks() -> Cell:
    return cited(
        "partly",
        "nncf/openvino and nncf/onnx of 3.4.0: quantises OpenVINO's and ONNX models; pruning takes PyTorch modules",
    )
