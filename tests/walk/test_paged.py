"""A model on meta whose weights are read from files, a segment at a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import fairkern as fk
from fairkern.artefacts.shards import Shards, open_shards
from fairkern.artefacts.tensors import write_tensors
from fairkern.capture import Settings
from fairkern.hf.absent import absent
from fairkern.hf.folder import open_folder
from fairkern.model.on_meta import parameters_on_meta
from fairkern.walk.paged import Weights
from fairkern.walk.scoring import by_blocks
from tests.walk.models import Block, Residual, made, sentences, vectors

LOSS = nn.functional.cross_entropy


class Stored:
    """Tensors of a checkpoint by their own names; how many bytes of what was read are alive, and at most."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._alive: dict[StorageWeakRef, int] = {}
        self.peak = self.read_in_all = 0

    def __contains__(self, name: str) -> bool:
        return name in self._shards.shapes

    def read(self, name: str) -> Tensor:
        tensor = self._shards.read(name)
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        self._alive[StorageWeakRef(tensor.untyped_storage())] = tensor.nbytes
        self.peak = max(self.peak, sum(self._alive.values()))
        self.read_in_all += tensor.nbytes
        return tensor


class Tabled(Residual):
    """With a table that is not saved, and a weight that has two names."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__(blocks)
        self.register_buffer("table", torch.linspace(0.5, 1.5, 8), persistent=False)
        self.register_buffer("shift", torch.linspace(-1.0, 1.0, 8))
        self.again = nn.Linear(8, 7)
        self.again.weight = self.head.weight

    def entered(self, x: Tensor) -> Tensor:
        return super().entered(x) * self.table + self.shift


@contextmanager
def stored(model: nn.Module, folder: Path) -> Iterator[Stored]:
    folder.mkdir(exist_ok=True)
    write_tensors(folder / "model.safetensors", dict(model.named_parameters()) | {"shift": model.shift}, {})
    with open_shards(folder) as shards:
        yield Stored(shards)


def on_meta(*given: Any) -> nn.Module:
    with parameters_on_meta():
        return Tabled(*given).eval()


def values(model: nn.Module) -> set[str]:
    return {name for name, tensor in model.named_parameters() if not tensor.is_meta}


def test_scores_of_a_model_that_is_never_there_as_a_whole(tmp_path: Path) -> None:
    whole, absent, data = made(Tabled, 6), on_meta(6), vectors()
    units = fk.trace(whole, data[0][0][:2], verify=False)
    settings = Settings(gram=True)
    want = fk.score(whole, data, LOSS, units=units, gram=True, progress=False)
    with stored(whole, tmp_path) as source:
        found = by_blocks(absent, data, LOSS, units, settings, folder=tmp_path, weights=Weights(absent, source))
    for name, given in want.signals.items():
        assert all(np.array_equal(a, b) for a, b in zip(given, found.signals[name], strict=True))
    assert values(absent) == set()
    block = sum(p.nbytes for p in whole.blocks[-1].parameters())
    outside = sum(t.nbytes for name, t in whole.named_parameters() if not name.startswith("blocks."))
    assert source.peak <= outside + whole.shift.nbytes + block  # to look at it, both are there; else one of them


def test_what_a_constructor_computes_is_there_and_parameters_are_not() -> None:
    model = on_meta()
    assert values(model) == set()
    assert torch.equal(model.table, torch.linspace(0.5, 1.5, 8))
    assert model.again.weight is model.head.weight
    assert not Residual().enter.weight.is_meta


def test_a_weight_with_two_names_is_read_once_and_stays_one(tmp_path: Path) -> None:
    whole, model = made(Tabled), on_meta()
    with stored(whole, tmp_path) as source, Weights(model, source).given(model):
        assert model.again.weight is model.head.weight
        assert torch.equal(model.head.weight, whole.head.weight)
        assert source.read_in_all == sum(p.nbytes for p in whole.parameters())  # the buffer has its values
        assert not any(p.requires_grad for p in model.parameters())
    assert model.again.weight is model.head.weight
    assert values(model) == set()


def test_weights_have_the_dtype_of_the_model(tmp_path: Path) -> None:
    whole, model = made(Tabled), on_meta().to(torch.bfloat16)
    with stored(whole, tmp_path) as source, Weights(model, source).given(model.head):
        assert torch.equal(model.head.weight, whole.head.weight.bfloat16())
        assert values(model) == {"head.weight", "head.bias"}


def test_what_no_file_has_is_named(tmp_path: Path) -> None:
    whole = made(Tabled)
    with stored(whole, tmp_path) as source:
        model = on_meta()
        model.table = model.table.to("meta")
        with pytest.raises(fk.InputError, match=r"table has no values.*parameters_on_meta"):
            Weights(model, source)
        with pytest.raises(fk.InputError, match=r"no file has blocks\.3\.norm\.weight"):
            Weights(on_meta(4), source)


def test_other_shapes_are_named_and_nothing_stays(tmp_path: Path) -> None:
    whole, model = made(Tabled), on_meta()
    with parameters_on_meta():
        model.blocks[1] = Block(8, 3)
    with stored(whole, tmp_path) as source:
        weights = Weights(model, source)
        with pytest.raises(fk.InputError, match="has shape"), weights.given(model):
            pass
    assert values(model) == set()


def test_an_error_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    whole, absent, data = made(Tabled), on_meta(), vectors()
    units = fk.trace(whole, data[0][0][:2], verify=False)
    hooks = [dict(module._forward_hooks) for module in absent.modules()]

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        raise ZeroDivisionError

    with stored(whole, tmp_path) as source, pytest.raises(ZeroDivisionError):
        by_blocks(absent, data, loss, units, Settings(), weights=Weights(absent, source))
    assert values(absent) == set()
    assert hooks == [dict(module._forward_hooks) for module in absent.modules()]


@pytest.mark.parametrize("name", ["Llama", "Qwen3Moe", "Mixtral", "GPT2"])
def test_folders_of_transformers(name: str, tmp_path: Path) -> None:
    """Experts that files hold one by one, tied and transposed weights, tables that they do not hold; bfloat16."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
    shared = {**sizes, "num_key_value_heads": 2, "vocab_size": 64}
    of = {
        "Llama": shared,
        "Qwen3Moe": {**shared, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
        "Mixtral": {**shared, "num_local_experts": 4},
        "GPT2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64, "n_positions": 32},
    }[name]
    kind = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")
    config = getattr(transformers, f"{name}Config")(**of)
    made(kind, config).to(torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size="60KB")
    whole, data = kind.from_pretrained(tmp_path / "model", dtype="auto").eval(), sentences(64)
    first = {key: given[:2] for key, given in data[0].items() if key != "labels"}
    units, settings = fk.trace(whole, first, verify=False), Settings(gram=True, class_of=False)
    want = fk.score(whole, data, units=units, gram=True, class_of=False, progress=False)
    with absent(open_folder(tmp_path / "model"), None, torch.device("cpu")) as there:
        found = by_blocks(there.model, data, None, units, settings, folder=tmp_path, weights=there.weights)
        assert values(there.model) == set()
    for signal, given in want.signals.items():
        assert all(np.array_equal(a, b) for a, b in zip(given, found.signals[signal], strict=True)), signal


PEAK = """
import resource, sys, torch
from torch import nn
import fairkern as fk
from fairkern.artefacts.shards import open_shards
from fairkern.artefacts.tensors import write_tensors
from fairkern.capture import Settings
from fairkern.model.on_meta import parameters_on_meta
from fairkern.walk.paged import Weights
from fairkern.walk.scoring import by_blocks
from tests.walk.models import Block, Residual, vectors
from tests.walk.test_paged import Stored

def peak(blocks, folder):
    with parameters_on_meta():
        model = Residual(0, 256).eval()
        model.blocks.extend(Block(256, 1536) for _ in range(blocks))
    units = fk.trace(model, torch.ones(2, 5, device="meta"), verify=False)
    tensors = {name: torch.full((1,), 0.01).expand(p.shape) for name, p in model.named_parameters()}
    write_tensors(folder + "/model.safetensors", tensors, {})
    with open_shards(folder) as shards:
        weights = Weights(model, Stored(shards))
        by_blocks(model, vectors(), nn.functional.cross_entropy, units, Settings(class_of=False), folder=folder,
                  weights=weights)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
few = peak(2, sys.argv[1])
print(peak(20, sys.argv[2]) - few)
"""


def test_memory_does_not_grow_with_the_number_of_blocks(tmp_path: Path) -> None:
    """18 further blocks have 57 MB of weights."""
    folders = [str(tmp_path / name) for name in ("few", "many")]
    for folder in folders:
        Path(folder).mkdir()
    command = [sys.executable, "-c", PEAK, *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 30e6  # malloc keeps some of what is given back
