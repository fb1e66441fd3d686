"""The demo: its data, its models, and a short run from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fairkern as fk
from fairkern.demo import data, models, run, train

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def test_the_split_is_fixed_and_even() -> None:
    first, second = data.digits(), data.digits()
    assert (len(first.train_x), len(first.test_x)) == (1437, 360)
    assert torch.equal(first.test_x, second.test_x)
    assert first.train_x.shape[1:] == (1, 8, 8)
    assert first.train_x.min() == -1
    assert first.train_x.max() == 1
    per_class = torch.bincount(first.test_y)
    assert len(per_class) == 10
    assert per_class.min() >= 34
    assert sum(len(y) for _, y in first.train_batches()) == 1437


@pytest.mark.parametrize("name", models.BUILDERS)
def test_models_are_seeded_and_leave_the_generator(name: str) -> None:
    state = torch.get_rng_state()
    first, second, other = models.BUILDERS[name](3), models.BUILDERS[name](3), models.BUILDERS[name](4)
    assert torch.equal(torch.get_rng_state(), state)
    same = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert first(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_demo_is_on_the_cpu_whatever_the_default_device_is() -> None:
    digits = data.digits()
    twins = [models.vgg()]
    with torch.device("meta"):
        again = data.digits()
        twins.append(models.vgg())
        train.train(twins[1], again.train_x[:128], again.train_y[:128], epochs=1)
    train.train(twins[0], digits.train_x[:128], digits.train_y[:128], epochs=1)
    assert torch.equal(digits.train_x, again.train_x)
    assert torch.equal(digits.test_y, again.test_y)
    assert all(torch.equal(a, b) for a, b in zip(twins[0].parameters(), twins[1].parameters(), strict=True))


def test_training_is_deterministic_and_learns() -> None:
    digits = data.digits()
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    twins = [models.vgg(), models.vgg()]
    for model in twins:
        train.train(model, digits.train_x, digits.train_y, epochs=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(a, b) for a, b in zip(twins[0].parameters(), twins[1].parameters(), strict=True))
    assert not twins[0].training
    assert train.accuracy(twins[0], digits.test_batches()) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("trained", [train.trained_vgg, train.trained_resnet])
def test_fully_trained_models_reach_98_percent(trained: object) -> None:
    assert callable(trained)
    assert train.accuracy(trained(), data.test()) >= 0.98


def test_a_short_run(tmp_path: Path) -> None:
    options = run.Options(out=tmp_path / "new" / "folder", quiet=True, epochs=1, seed=1)
    outcomes = run.run(options)
    assert list(outcomes) == ["vgg", "resnet"]
    for name, outcome in outcomes.items():
        folder = options.out / name
        report = outcome.report
        assert report.after["params"] <= 0.25 * report.before["params"] + 400  # and biases that compensation added
        assert report.after["flops"] < report.before["flops"]
        assert outcome.masked_accuracy == pytest.approx(report.after["accuracy_cut"], abs=1 / 360)
        assert report.after["accuracy"] > report.after["accuracy_cut"]
        assert outcome.difference < 1e-5
        assert outcome.reload_equal
        assert outcome.exact
        stages = ("train", "trace", "score", "plan", "cut", "check", "measure", "fine-tune")
        assert tuple(report.stages) == stages
        written = json.loads((folder / "report.json").read_text())
        assert str(report.after["accuracy"]) in json.dumps(written)
        plan = fk.Plan.load(folder / "plan.json")
        scores = fk.Scores.load(folder / "scores.safetensors")
        again = scores.plan(keep_params=0.25)
        for one, other in zip(plan.groups, again.groups, strict=True):
            assert one.removed.tolist() == other.removed.tolist()
        assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
        for kind in ("pruned", "finetuned"):
            small = fk.load_pruned(models.BUILDERS[name](), folder / kind)
            assert 0 <= sum(p.numel() for p in small.parameters()) - report.after["params"] <= 400


@pytest.mark.parametrize("package", ["sklearn", "matplotlib"])
def test_a_missing_package_is_named(package: str, tmp_path: Path) -> None:
    script = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from fairkern.cli import main\n"
        "sys.exit(main(['demo', '--epochs', '1']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'fairkern[demo]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
