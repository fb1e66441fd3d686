"""Unpruned architectures by the names that libraries have: the same buffers, no weights from elsewhere, no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.compact import builders
from fairkern.model.tensors import not_saved
from fairkern.types import Build
from tests.artefacts.edited import edit_json
from tests.compact import nets

IDS = {"input_ids": torch.arange(16).reshape(2, 8)}
SIZES = {"vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, **SIZES}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, **SIZES}


def output(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        made = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return made if isinstance(made, Tensor) else made.logits


def saved(model: nn.Module, inputs: Any, folder: Path, **options: Any) -> nn.Module:
    plan = fk.trace(model.eval(), inputs, verify=False).plan(keep_params=0.7)
    small = fk.apply(model, plan)
    fk.save_pruned(small, plan, folder, **options)
    return small


def check(small: nn.Module, inputs: Any, folder: Path) -> None:
    """Loaded by itself, also onto meta, it is the same, in what no file has too."""
    loaded, bare = fk.load_pruned(folder), fk.load_pruned(folder, device="meta")
    assert torch.equal(output(loaded, inputs), output(small, inputs))
    for found in (loaded, bare):
        tables = not_saved(found)
        assert tables.keys() == not_saved(small).keys()
        for name, tensor in not_saved(small).items():
            assert torch.equal(tables[name], tensor), name
            assert tables[name].dtype is tensor.dtype, name
    bare.load_state_dict(small.state_dict(), assign=True)
    assert torch.equal(output(bare, inputs), output(small, inputs))


def of_torchvision(**arguments: Any) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    net: nn.Module = models.squeezenet1_1(num_classes=5, **arguments)
    return net


PICTURES = torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(1))
SQUEEZENET: dict[str, Any] = {"name": "torchvision:squeezenet1_1", "arguments": {"num_classes": 5}}


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "torchvision.models:squeezenet1_1"])
def test_torchvision(name: str, tmp_path: Path) -> None:
    """By the name in its list, also where the function was named: no trust is needed."""
    build = {**SQUEEZENET, "name": name}
    small = saved(of_torchvision(), PICTURES, tmp_path / "small", build=build)
    assert json.loads((tmp_path / "small" / "build.json").read_text())["name"] == SQUEEZENET["name"]
    check(small, PICTURES, tmp_path / "small")


def test_what_torchvision_builds_is_not_what_was_cut(tmp_path: Path) -> None:
    with pytest.raises(fk.PlanMismatchError, match=r"makes another architecture than was cut: classifier\.1\.weight"):
        saved(of_torchvision(), PICTURES, tmp_path / "small", build="torchvision:squeezenet1_1")
    assert not (tmp_path / "small").exists()
    saved(of_torchvision(), PICTURES, tmp_path / "small", build=SQUEEZENET)
    edit_json(tmp_path / "small" / "build.json", lambda content: content.update(name="torchvision:squeezenet1_0"))
    with pytest.raises(fk.PlanMismatchError, match="says torchvision:squeezenet1_0, which makes another architecture"):
        fk.load_pruned(tmp_path / "small")


@pytest.mark.parametrize(
    ("build", "what"),
    [
        ("torchvision:squeezenet1_2", r"torchvision [\d.+a-z]+ has no model 'squeezenet1_2'; near names: squeezenet1_"),
        ({"name": "torchvision:squeezenet1_1", "arguments": {"weights": "DEFAULT"}}, "weights are in the folder"),
        ({"name": "torchvision:squeezenet1_1", "arguments": {"depth": 3}}, "cannot be built here .*TypeError"),
    ],
)
def test_names_that_torchvision_does_not_build(build: Any, what: str, tmp_path: Path) -> None:
    with pytest.raises(fk.InputError, match=what):
        saved(of_torchvision(), PICTURES, tmp_path / "small", build=build)


def test_parameters_take_no_memory() -> None:
    pytest.importorskip("torchvision")
    made = builders.make(Build("torchvision:squeezenet1_1"), "it says", trust=False, most=1000)
    assert all(parameter.is_meta for parameter in made.parameters())


def test_code_that_asks_parameters_for_values_is_built_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asking(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            if how == "buffer":
                self.register_buffer("norm", self.weight.detach().norm(), persistent=False)
            else:
                self.norm = float(self.weight.detach().sum())

    monkeypatch.setitem(builders._LIBRARIES, "here", lambda name, arguments: Asking(name))
    for how in ("buffer", "number"):
        made = builders.make(Build(f"here:{how}"), "it says", trust=False, most=9)
        assert float(made.norm) == pytest.approx(3 if how == "number" else 3**0.5)
        assert made.weight.tolist() == [1, 1, 1]


def test_numbers_that_would_go_on_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(name: str, arguments: Any) -> nn.Module:
        return nn.Sequential(*(nn.Linear(1, 1) for _ in range(arguments["layers"])))

    monkeypatch.setitem(builders._LIBRARIES, "here", endless)
    assert len(builders.make(Build("here:net", {"layers": 5}), "it says", trust=False, most=10)) == 5
    with pytest.raises(fk.InputError, match="which has more than 20 parameters"):
        builders.make(Build("here:net", {"layers": 10**8}), "it says", trust=False, most=10)


def test_the_default_dtype_is_that_of_this_call() -> None:
    pytest.importorskip("torchvision")
    made = builders.make(Build("torchvision:squeezenet1_1", {}, "float64"), "it says", trust=False, most=1000)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float64}
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize(("kind", "config"), [("Llama", LLAMA), ("GPT2", GPT2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_tell_themselves(kind: str, config: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    name = f"{kind}ForCausalLM" if kind == "Llama" else "GPT2LMHeadModel"
    torch.manual_seed(0)
    model = getattr(transformers, name)._from_config(getattr(transformers, f"{kind}Config")(**config), dtype=dtype)
    small = saved(model, IDS, tmp_path / "small")
    assert json.loads((tmp_path / "small" / "build.json").read_text())["name"] == f"transformers:{name}"
    check(small, IDS, tmp_path / "small")


def test_a_configuration_decides_on_no_code(tmp_path: Path) -> None:
    """What would have kernels or weights fetched is neither written nor read."""
    transformers = pytest.importorskip("transformers")
    saved(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)), IDS, tmp_path / "small")
    bad = {
        "_attn_implementation": "kernels-community/none",
        "attn_implementation": "kernels-community/none",
        "auto_map": {"AutoModelForCausalLM": "x--y.Z"},
        "quantization_config": {"quant_method": "none"},
    }
    edit_json(tmp_path / "small" / "build.json", lambda content: content["arguments"].update(bad))
    assert fk.load_pruned(tmp_path / "small").config._attn_implementation in ("sdpa", "eager")
    kept = builders.without_code({**bad, "a": [{"_b": 1, "c": float("inf")}], "use_pretrained_backbone": True, 3: "x"})
    assert kept == {"a": [{"c": {"__float__": "Infinity"}}], "use_pretrained_backbone": False, "3": "x"}
    assert builders._with_numbers(kept)["a"] == [{"c": float("inf")}]


@pytest.mark.parametrize(
    ("name", "arguments", "what"),
    [
        ("transformers:AutoModel", LLAMA, "has no model class 'AutoModel'"),
        ("transformers:pipeline", LLAMA, "has no model class 'pipeline'"),
        ("transformers:os", LLAMA, "has no model class 'os'"),
        ("transformers:LlamaForCausalLM", {**LLAMA, "num_hidden_layers": "two"}, "cannot be built here"),
        ("transformers:LlamaForCausalLM", {**LLAMA, "num_hidden_layers": 10**6}, "which has more than"),
        ("transformers:LlamaForCausalLM", {**LLAMA, "vocab_size": 10**15}, "no model has so many of anything"),
    ],
)
def test_configurations_that_are_refused(name: str, arguments: Any, what: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    saved(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)), IDS, tmp_path / "small")
    edit_json(tmp_path / "small" / "build.json", lambda content: content.update(name=name, arguments=arguments))
    with pytest.raises(fk.InputError, match=what):
        fk.load_pruned(tmp_path / "small")


def test_biases_that_compensation_turned_on(tmp_path: Path) -> None:
    """The configuration that the cut model has is not what it was made of."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).eval()
    scores = fk.score(model, [{**IDS, "labels": IDS["input_ids"]}], class_of=False, gram=True, progress=False)
    plan = scores.plan(keep_params=0.8)
    small = fk.apply(model, plan, compensate="mean", scores=scores)
    assert small.config.mlp_bias or small.config.attention_bias
    fk.save_pruned(small, plan, tmp_path / "small")
    check(small, IDS, tmp_path / "small")


def test_timm_tells_itself(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    pictures = torch.randn(1, 1, 96, 96, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5, in_chans=1)
    small = saved(model, pictures, tmp_path / "small")
    content = json.loads((tmp_path / "small" / "build.json").read_text())
    assert content["name"].startswith("timm:test_resnet")
    assert content["arguments"] == {"num_classes": 5, "in_chans": 1}
    check(small, pictures, tmp_path / "small")


def test_what_timm_does_not_tell_is_left_out(tmp_path: Path) -> None:
    """Shapes are what the name says, and the pooling is not."""
    timm = pytest.importorskip("timm")
    pictures = torch.randn(1, 3, 96, 96)
    model = timm.create_model("test_resnet", global_pool="max")
    small = saved(model, pictures, tmp_path / "small")
    assert not (tmp_path / "small" / "build.json").exists()
    build = {"name": "timm:test_resnet", "arguments": {"global_pool": "max"}}
    saved(model, pictures, tmp_path / "small", build=build)
    check(small, pictures, tmp_path / "small")


@pytest.mark.parametrize("name", ["timm:hf-hub-nothing", "timm:resnet999"])
def test_timm_names_of_its_list_alone(name: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(fk.InputError, match="has no model"):
        builders.make(Build(name), "it says", trust=False, most=1000)


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(fk.InputError, match="is one of timm, which is not installed"):
        builders.make(Build("timm:resnet18"), "it says", trust=False, most=1000)


def test_a_function_that_makes_something_else_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchvision's detectors do (their norms are frozen ones where weights are taken): it is then a callable."""
    pytest.importorskip("torchvision")
    monkeypatch.setattr(builders, "own_name", lambda function: "torchvision:squeezenet1_1")
    x = torch.randn(5, 6)
    small = saved(nets.net(), x, tmp_path / "small", build="tests.compact.nets:net")
    with pytest.raises(fk.InputError, match=r"by calling tests\.compact\.nets:net"):
        fk.load_pruned(tmp_path / "small")
    assert torch.equal(fk.load_pruned(tmp_path / "small", trust=True)(x), small(x))


def test_numbers_that_no_model_has_are_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setitem(builders._LIBRARIES, "torchvision", lambda name, arguments: made.append(name))
    for arguments in ({"num_classes": 2**28}, {"widths": [8, {"last": -(2**40)}]}):
        with pytest.raises(fk.InputError, match=r"no model has so many of anything"):
            builders.make(Build("torchvision:resnet18", arguments), "it says", trust=False, most=1000)
    assert made == []


def test_versions_are_of_the_library_that_is_named() -> None:
    other = Build("torch.nn:Linear", {}, versions={"timm": "0.1", "torch": "0.2"})
    assert "timm" not in builders._versions_of(other) + builders.differing_versions(other)
    assert ", written with 0.2" in builders._versions_of(other)
