"""A pruned model comes back in a new process, however its sizes were made to follow the cut."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal

ROOT = Path(__file__).resolve().parents[2]

BUILDERS = {
    "torch": """
import torch
from torch import nn

def make():
    layer = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()

def inputs():
    return torch.randn(2, 5, 24)
""",
    "code": """
import torch
import torch.nn.functional as F
from torch import nn

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(24), nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))

def make():
    return nn.Sequential(Attention(), Attention()).eval()

def inputs():
    return torch.randn(2, 5, 24)
""",
    "timm": """
import timm, torch

def make():
    return timm.create_model("xcit_nano_12_p16_224", num_classes=4).eval()

def inputs():
    return torch.randn(2, 3, 64, 64)
""",
    "gpt2": """
import torch
from transformers import GPT2Config, GPT2LMHeadModel

def make():
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=67, n_positions=64, use_cache=False)
    return GPT2LMHeadModel(config).eval()

def inputs():
    return {"input_ids": torch.randint(0, 67, (2, 11))}
""",
    "bert": """
import torch
from transformers import BertConfig, BertModel

def make():
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=67)
    return BertModel(config).eval()

def inputs():
    return {"input_ids": torch.randint(0, 67, (2, 11))}
""",
}
NEEDS = {"timm": "timm", "gpt2": "transformers", "bert": "transformers"}
MEANS = {"torch": "replacements", "code": "sites", "timm": "sites", "gpt2": "attributes", "bert": "attributes"}

LOAD = """
import sys, torch
import fairkern as fk
from fairkern.model.nested import call_model, tensors_in
from builder import make
fresh = make()
for p in fresh.parameters():
    p.data.zero_()
small = fk.load_pruned(fresh, "small")
inputs = torch.load("inputs.pt")
with torch.no_grad():
    torch.save(next(tensors_in(call_model(small, inputs))), "output.pt")
"""


@pytest.mark.parametrize("name", BUILDERS)
def test_in_a_new_process(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    (tmp_path / "builder.py").write_text(BUILDERS[name])
    spec = importlib.util.spec_from_file_location("builder", tmp_path / "builder.py")
    assert spec is not None
    assert spec.loader is not None
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)

    torch.manual_seed(0)
    model, inputs = builder.make(), builder.inputs()
    units = fk.trace(model, inputs)
    plan = build(units, random_removal(units, 0.5, seed=1))
    assert getattr(plan, MEANS[name])
    small = fk.apply(model, plan)
    fk.save_pruned(small, plan, tmp_path / "small")
    torch.save(inputs, tmp_path / "inputs.pt")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}, '.']\n{LOAD}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = small(**inputs) if isinstance(inputs, dict) else small(inputs)
    assert torch.equal(torch.load(tmp_path / "output.pt"), first(expected))


def first(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]  # type: ignore[index]
