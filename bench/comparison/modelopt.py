"""ModelOpt's cells: FastNAS is tried; Minitron and Puzzletron need Megatron or GPUs, and their sources are cited."""

from __future__ import annotations

import tempfile
from copy import deepcopy
from dataclasses import replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import modelopt.torch.distill as mtd
import modelopt.torch.opt as mto
import modelopt.torch.prune as mtp
import modelopt.torch.quantization as mtq
import modelopt.torch.sparsity as mts
import torch
from torch import nn

from bench.comparison.cases import CASES, Case, chain
from bench.comparison.cells import Cell, cited, failing, follows, judged, no, parameters, partly, smaller_file, yes

MINITRON = "modelopt/torch/prune/plugins/mcore_minitron.py of 0.47.0: for Megatron-Core models, "
PUZZLETRON = "modelopt/torch/puzzletron of 0.47.0 (experimental, GPUs): "
evaluations = list[float]()


def smallest(case: Case) -> nn.Module:
    """The smallest that FastNAS finds; it refuses a budget that no subnet meets."""
    whole, share = case.model, case.left / case.whole + 0.01
    while share < 1:
        error = failing(partial(cut, replace(case, model=deepcopy(whole)), share=share))
        if not error or not error.startswith("ValueError"):
            break
        share += 0.1
    return cut(case, share=share)


def cut(case: Case, limit: str = "params", share: float = 0.6, checkpoint: str | None = None) -> nn.Module:
    """The subnet of FastNAS whose output is nearest to what it was, among halves of every layer."""
    with torch.no_grad():
        expected = case.model(case.example)

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            evaluations.append(-float((model(case.example) - expected).abs().max()))
        return evaluations[-1]

    channels = {"*": {"channels_ratio": (0.5, 1.0), "kernel_size": (), "channel_divisor": 4}}
    features = {"*": {"features_ratio": (0.5, 1.0), "feature_divisor": 4}}
    rules = {"nn.Conv2d": channels, **{f"nn.{kind}": features for kind in ("Linear", "BatchNorm2d", "LayerNorm")}}
    config = {"data_loader": [(case.example, None)], "score_func": score, "verbose": False}
    found, _ = mtp.prune(
        case.model, mode=[("fastnas", rules)], constraints={limit: f"{share:.0%}"}, dummy_input=case.example,
        config=config | ({"checkpoint": checkpoint} if checkpoint else {}),
    )  # fmt: skip
    return found


def structure(name: str) -> Cell:
    found = judged(CASES[name](), smallest)
    minitron = {"heads": "attention heads", "grouped_queries": "query groups", "gated": "ffn_hidden_size"}
    if found.answer != "yes" and name in minitron:
        return cited("partly", f"{MINITRON}{minitron[name]}; FastNAS, tried: {found.what}")
    if found.answer == "no" and name == "experts":
        return cited("partly", f"{MINITRON}moe_ffn_hidden_size, with experts as modules; FastNAS, tried: {found.what}")
    return found


def whole_experts() -> Cell:
    return cited("partly", MINITRON + "num_moe_experts; equal in all layers")


def depth() -> Cell:
    return cited("partly", MINITRON + "num_layers; Puzzletron drops the attention or the MLP of a layer")


def unstructured() -> Cell:
    model = chain().model
    sparse = mts.sparsify(model, "sparse_magnitude")
    return yes(
        "`mts.sparsify` put 2:4 masks on "
        + str(sum("Sparse" in type(m).__name__ for m in sparse.modules()))
        + " layers"
    )


def signals() -> Cell:
    folder = Path(mtp.__file__).parent / "importance_hooks"
    assert folder.is_dir()
    return cited(
        "partly",
        "each mode has its own: FastNAS goes by magnitude, Minitron by activations, Puzzletron has hooks for it",
    )


def own_signal() -> Cell:
    evaluations.clear()
    cut(chain())
    assert evaluations
    return partly("`score_func` judges candidates; which channels go is by magnitude")


def uneven() -> Cell:
    evaluations.clear()
    cut(chain())
    return no(f"by a search alone: {len(evaluations)} evaluations of `score_func` for two layers with two widths each")


def search() -> Cell:
    evaluations.clear()
    cut(chain())
    return yes(f"FastNAS: {len(evaluations)} evaluations of `score_func` for two layers with two widths each")


def budget_params() -> Cell:
    case = chain()
    left = parameters(cut(case, share=0.6)) / case.whole
    assert left <= 0.6
    return yes(f"`params` 60% left {left:.0%} of the parameters")


def budget_flops() -> Cell:
    case = chain()
    left = parameters(cut(case, "flops", 0.6)) / case.whole
    return yes(f"`flops` 60% was met (with torchprofile 0.0.4; 0.1.0 fails), {left:.0%} of the parameters left")


def budget_latency() -> Cell:
    error = failing(lambda: cut(chain(), "latency", 0.6))
    assert error
    return cited("partly", f"{PUZZLETRON}runtime among its constraints; FastNAS, tried: {error}")


def new_budget() -> Cell:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "search.pt")
        evaluations.clear()
        cut(chain(), share=0.6, checkpoint=path)
        first = len(evaluations)
        cut(chain(), share=0.7, checkpoint=path)
    again = len(evaluations) - first
    assert again < first
    return yes(f"`checkpoint` keeps what was measured: {first} evaluations, then {again}; of a fresh copy of the model")


def reasons() -> Cell:
    error = failing(lambda: cut(CASES["heads"]()))
    assert error
    return partly(f"that nothing can go: {error}; not why")


def proven() -> Cell:
    return follows({name: structure(name) for name in CASES})


def untouched() -> Cell:
    case = chain()
    cut(case)
    assert parameters(case.model) < case.whole
    return no("`mtp.prune` cuts the model it was given, as its documentation says")


def compensation() -> Cell:
    return partly("BatchNorm is calibrated on `data_loader`; weights stay what they were") if _calibrates() else no("")


def _calibrates() -> bool:
    case = chain()
    case.model.layers[1].running_mean.add_(1)
    before = case.model.layers[1].running_mean[:8].clone()
    return not torch.allclose(before, cut(case).layers[1].running_mean[:8])


def sparse_training() -> Cell:
    return cited(
        "partly",
        "modelopt/torch/sparsity of 0.47.0: masks of 2:4 stay while one trains; nothing towards whole channels",
    )


def distillation() -> Cell:
    teacher, student = chain().model, chain()
    config = {"teacher_model": teacher, "criterion": mtd.LogitsDistillationLoss()}
    model = mtd.convert(cut(student), mode=[("kd_loss", config)])
    model.train()  # which gives None
    model(student.example)
    loss = model.compute_kd_loss()
    assert torch.isfinite(loss)
    return yes("`mtd.convert` of the cut model with the uncut one as teacher gave a loss")


def quantisation() -> Cell:
    case = chain()
    small = cut(case)
    found = mtq.quantize(small, mtq.INT8_DEFAULT_CFG, lambda model: model(case.example))
    assert torch.isfinite(found(case.example)).all()
    return yes("`mtq.quantize` of the cut model, int8; fp8, int4 and others")


def reload() -> Cell:
    case, again = chain(), chain()
    small = cut(case)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.pt"
        mto.save(small, path)
        assert failing(lambda: torch.load(path, weights_only=True)) is None
        model = mto.restore(again.model, path)
    model.eval()
    assert torch.allclose(model(case.example), small(case.example), atol=1e-6)
    return yes("`mto.save` and `mto.restore` into the unpruned architecture; torch's file, read with `weights_only`")


def onnx() -> Cell:
    return smaller_file(cut)


def checkpoint() -> Cell:
    error = failing(
        lambda: mtp.prune(
            chain().model.state_dict(), mode="fastnas", constraints={"params": "50%"}, dummy_input=chain().example
        )
    )
    assert error
    return no("`mtp.prune` takes a module; given a state dict it raises " + error)


def llm_folder() -> Cell:
    return cited(
        "yes", "examples/pruning/README.md: Hugging Face folders in and out by way of Megatron-Bridge, on GPUs"
    )


def uneven_files() -> Cell:
    return cited("yes", PUZZLETRON + "layers of different widths, written as AnyModel with block configs")


def processes() -> Cell:
    return cited("yes", MINITRON + "pipeline-parallel over processes")


def blocks() -> Cell:
    return cited("partly", MINITRON + "spread over several GPUs' memory; none goes block by block on one device")


def report() -> Cell:
    return cited(
        "partly", "modelopt/torch/nas/autonas.py of 0.47.0: a table of the search space and of the subnet is printed"
    )


def command_line() -> Cell:
    assert not [e for e in entry_points(group="console_scripts") if e.value.startswith("modelopt")]
    return no("it installs no command; its repository has scripts")


def frameworks() -> Cell:
    return cited("partly", "modelopt/onnx of 0.47.0 quantises ONNX models; pruning takes PyTorch modules")
