"""Every example runs, briefly, and does what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import fairkern as fk

FOLDER = Path(__file__).resolve().parent.parent / "examples"


def load(name: str, *needs: str) -> ModuleType:
    for package in needs:
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fine_tuning_gains_on_a_harsh_cut(capsys: pytest.CaptureFixture[str]) -> None:
    found = load("finetune", "sklearn").main(["--keep", "0.03", "--epochs", "1", "--teacher-epochs", "2"])
    assert found["before"] > 0.8
    assert found["tuned"] > found["cut"] + 0.1
    assert "parameters kept    3.0%" in capsys.readouterr().out


def test_momentum_is_cut_like_its_parameters() -> None:
    finetune = load("finetune", "sklearn")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 3)).eval()
    loader = [(torch.randn(12, 5), torch.arange(12) % 3)]
    old = finetune.sgd(model, 0.1)
    nn.functional.cross_entropy(model(loader[0][0]), loader[0][1]).backward()
    old.step()
    scores = fk.score(model, loader, nn.functional.cross_entropy, gram=True, progress=False)
    plan = scores.plan(keep_params=0.5)
    small = fk.apply(model, plan, compensate="least_squares", scores=scores)
    new = finetune.sgd(small, 0.1)
    carried = finetune.carry_momentum(old, model, new, small, plan)
    names = dict(model.named_parameters())
    assert carried == len(names)
    assert sum(1 for _ in small.parameters()) == carried + 1  # the bias that compensation added
    for name, parameter in small.named_parameters():
        if name not in names:
            assert not new.state[parameter]
            continue
        expected = old.state[names[name]]["momentum_buffer"]
        for cut in plan.axes:
            if cut.axis.tensor == name:
                stays = [i for i in range(cut.length) if i not in set(cut.removed.tolist())]
                expected = expected.index_select(cut.axis.dim, torch.tensor(stays))
        assert torch.equal(new.state[parameter]["momentum_buffer"], expected)
        assert expected.shape == parameter.shape


@pytest.mark.slow
def test_a_trainer_heals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("heal_trainer", "transformers", "accelerate")
    found = example.main(["--keep", "0.4", "--steps", "40", "--teacher-steps", "200", "--out", str(tmp_path / "small")])
    assert found["before"] < found["healed"] < found["cut"]
    assert "healed" in capsys.readouterr().out
    loaded, info = example.LlamaForCausalLM.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert example.perplexity(loaded, example.sequences()[::10]) == pytest.approx(found["healed"], rel=1e-5)


def test_the_trainer_s_loss_is_the_divergence() -> None:
    example = load("heal_trainer", "transformers", "accelerate")
    teacher, small = example.llama(), example.llama()
    with torch.no_grad():
        small.lm_head.weight.mul_(-1)
    rows = torch.stack([sample["input_ids"] for sample in example.sequences()[:2]])
    labels = rows.clone()
    labels[1, 10:] = -100
    distiller = example.Distiller(small, example.asked("unused", 1, 1e-3), teacher=teacher)
    loss = distiller.compute_loss(small, {"input_ids": rows, "labels": labels})
    p, q = (model(input_ids=rows).logits.softmax(-1) for model in (teacher, small))
    each = (p * (p / q).log()).sum(-1)
    expected = torch.cat([each[0, :-1], each[1, :9]]).mean()
    torch.testing.assert_close(loss, expected)
