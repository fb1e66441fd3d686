"""torch-pruning's cells."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from importlib.metadata import entry_points

import torch
import torch_pruning as tp
from torch import Tensor, nn

from bench.comparison.cases import CASES, Case, chain
from bench.comparison.cells import (
    Cell,
    absent,
    cited,
    failing,
    follows,
    judged,
    no,
    parameters,
    partly,
    safe,
    smaller_file,
    yes,
)

SCRIPT = "examples/LLMs/prune_llm.py of v1.6.1"
TOLD = "; told which layers make heads, and how many"


def pruner(case: Case, told: bool = False, **options: object) -> tp.pruner.BasePruner:
    """Half of every layer but those that stay; half of the heads instead where it is told which layers make them."""
    modules = dict(case.model.named_modules())
    options = {"importance": tp.importance.MagnitudeImportance(), "pruning_ratio": 0.5, **options}
    if told:
        named = {modules[name]: count for name, count in case.heads.items()}
        options |= {"num_heads": named, "prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
    return tp.pruner.BasePruner(
        case.model, case.example, ignored_layers=[modules[name] for name in case.stay], **options
    )


def cut(case: Case, told: bool = False, **options: object) -> nn.Module:
    made = pruner(case, told, **options)
    made.step()
    if told and "qkv" in case.heads:  # its examples set the number by hand, too
        case.model.heads = made.num_heads[case.model.qkv]
    return case.model


def structure(name: str) -> Cell:
    case = CASES[name]()
    if case.heads:
        return judged(case, lambda case: cut(case, told=True), TOLD)
    return judged(case, cut)


def whole_experts() -> Cell:
    absent(tp, "expert|mixture")
    return no("its sources have no experts")


def depth() -> Cell:
    absent(tp, "drop_layer|layer_drop|depth_prun")
    return no("its functions prune along channels; none drops a layer")


def unstructured() -> Cell:
    absent(tp, "semi_structured|2:4")
    return no("its functions take whole channels")


def signals() -> Cell:
    found = [name.removesuffix("Importance") for name in vars(tp.importance) if name.endswith("Importance")]
    names = [name for name in found if name and not name.startswith("Group")]
    assert len(names) >= 8, names
    return yes("of weights, gradients, activations and BatchNorm: " + ", ".join(sorted(names)))


class Mine(tp.importance.Importance):
    """The sum of every output channel of a group's first layer."""

    def __call__(self, group: tp.Group, **_: object) -> Tensor:
        return group[0].dep.target.module.weight.flatten(1).abs().sum(1)


def own_signal() -> Cell:
    return Cell(
        judged(chain(), lambda case: cut(case, importance=Mine())).answer, "a subclass of `Importance` was used"
    )


def widths(model: nn.Module) -> list[int]:
    return [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def uneven() -> Cell:
    case = chain()
    with torch.no_grad():
        for part in (case.model.layers[3].weight, case.model.layers[4].weight, case.model.layers[8].weight.T):
            part[:4].mul_(0.01)
    model = cut(case, global_pruning=True, pruning_ratio=0.6)
    left = widths(model)
    assert len(set(left)) > 1, left
    return yes(f"`global_pruning=True` left {left[0]} and {left[1]} of 16 and 16 channels")


def search() -> Cell:
    absent(tp, "score_func|search")
    return no("none in its sources")


def budget_params() -> Cell:
    case = chain()
    left = parameters(cut(case)) / case.whole
    assert abs(left - 0.5) > 0.1
    return no(
        f"`pruning_ratio=0.5` is a share of channels, and left {left:.0%} of the parameters; one counts and steps on"
    )


def budget_flops() -> Cell:
    case = chain()
    before = tp.utils.count_ops_and_params(case.model, case.example)[0]
    after = tp.utils.count_ops_and_params(cut(case), case.example)[0]
    return no(
        f"`pruning_ratio=0.5` left {after / before:.0%} of the operations; `count_ops_and_params` counts, one steps on"
    )


def budget_latency() -> Cell:
    absent(tp.pruner.algorithms, "latency")
    return no("it measures (`tp.utils.benchmark`), its pruners do not ask")


def new_budget() -> Cell:
    calls = list[object]()

    class Counted(tp.importance.MagnitudeImportance):
        def __call__(self, group: tp.Group, **options: object) -> Tensor:
            calls.append(group)
            return super().__call__(group, **options)

    case = chain()
    made = pruner(case, importance=Counted(), pruning_ratio=0.5, iterative_steps=2)
    made.step()
    once = len(calls)
    made.step()
    assert len(calls) > once
    return no(
        f"every `step()` asks the criterion, {once} groups, then {len(calls) - once}, of a model that is cut already"
    )


def reasons() -> Cell:
    case, said = CASES["one_module"](), io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        warnings.catch_warnings(record=True) as seen,
    ):
        warnings.simplefilter("always")
        cut(case)
    assert parameters(case.model) == case.whole
    heard = [str(warning.message) for warning in seen]
    return no(
        "nothing was removed from `nn.MultiheadAttention`, and "
        + (f"it said: {heard[0][:80]}" if heard else "nothing was said")
    )


def proven() -> Cell:
    return follows({name: structure(name) for name in CASES})


def untouched() -> Cell:
    case = chain()
    cut(case)
    assert parameters(case.model) < case.whole
    return no("`step()` cuts the model it was given")


def compensation() -> Cell:
    case = chain()
    with torch.no_grad():
        for layer in (case.model.layers[0], case.model.layers[3]):
            layer.weight[8:] = layer.weight[:8] * 0.5  # not dead now: each a copy of one that stays
    before = case.model.layers[3].weight.detach().clone()
    after = cut(case).layers[3].weight
    assert after.shape[0] < before.shape[0]
    kept = [row for row in before if any(torch.equal(row[: after.shape[1]], other) for other in after)]
    assert len(kept) == len(after)
    return no("the next layer's weights are those of before, to the bit, though what went was half of what stays")


def sparse_training() -> Cell:
    case = chain()
    made = tp.pruner.GroupNormPruner(case.model, case.example, tp.importance.GroupMagnitudeImportance())
    case.model(case.example).sum().backward()
    before = case.model.layers[0].weight.grad.clone()
    made.update_regularizer()
    made.regularize(case.model)
    assert not torch.equal(before, case.model.layers[0].weight.grad)
    return yes("`GroupNormPruner.regularize` added its term to the gradients; BNScale and GrowingReg likewise")


def distillation() -> Cell:
    absent(tp, "distil|teacher")
    return no("none in its sources")


def quantisation() -> Cell:
    absent(tp, "quanti[sz]")
    return no("none in its sources")


def reload() -> Cell:
    case, again = chain(), chain()
    made = pruner(case)
    made.step()
    assert not safe(tp.state_dict(case.model))
    history = json.loads(json.dumps(made.pruning_history()))
    pruner(again).load_pruning_history(history)
    again.model.load_state_dict(case.model.state_dict())
    assert torch.equal(again.model(case.example), case.model(case.example))
    return partly(
        "its README saves the whole module, and `tp.state_dict` is refused by `weights_only`; `pruning_history()` went "
        "through JSON and cut a fresh model alike, weights beside it"
    )


def onnx() -> Cell:
    return smaller_file(cut)


def checkpoint() -> Cell:
    error = failing(lambda: tp.pruner.BasePruner(chain().model.state_dict(), chain().example, Mine()))
    assert error
    return no("a pruner takes a module and inputs; given a state dict it raises " + error)


def llm_folder() -> Cell:
    return cited(
        "partly",
        f"{SCRIPT}, no part of the package, ends with `save_pretrained`; heads are as many in all layers",
    )


def uneven_files() -> Cell:
    absent(tp, "gguf|vllm|block_config")
    return no("none in its sources")


def processes() -> Cell:
    absent(tp, "torch.distributed|all_reduce")
    return no("its sources know of one process")


def blocks() -> Cell:
    absent(tp, "offload|safetensors")
    return no("the module is whole in memory, and traced with gradients")


def report() -> Cell:
    from torch_pruning.utils import draw_groups  # noqa: F401, that it is there

    return partly("counts before and after are the caller's to print; groups print themselves and are drawn")


def command_line() -> Cell:
    assert not [e for e in entry_points(group="console_scripts") if e.value.startswith("torch_pruning")]
    return no("it installs no command")


def frameworks() -> Cell:
    return no("PyTorch modules")
