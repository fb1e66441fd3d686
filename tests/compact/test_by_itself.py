"""A pruned folder loaded by itself: what build.json says, what is refused, what is built again beside the weights."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.model.offline import offline
from tests.artefacts.edited import edit_json
from tests.compact import nets

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
NAME = "tests.compact.nets:net"


def cut(model: nn.Module, seed: int = 0) -> tuple[nn.Module, fk.Plan]:
    plan = fk.trace(model, X.to(next(model.parameters()).dtype)).plan(keep_params=0.6, seed=seed)
    return fk.apply(model, plan), plan


def made(seed: int = 0, **arguments: Any) -> nn.Module:
    torch.manual_seed(seed)
    return nets.Net(**arguments).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fk.save_pruned(*cut(made()), tmp_path / "small", build=NAME)
    return tmp_path / "small"


def outputs(seed: int = 0) -> torch.Tensor:
    return cut(made(seed))[0](X).detach()


@pytest.mark.parametrize(
    "build",
    [
        NAME,
        nets.net,
        nets.Net,
        {"name": "tests.compact.nets:needs", "arguments": {"width": 8}},
        {"name": "tests.compact.nets:Net", "arguments": {"width": 8, "slope": 0.1}},
        "tests.compact.nets:trained",
    ],
)
def test_a_callable(build: Any, tmp_path: Path) -> None:
    small, plan = cut(made())
    fk.save_pruned(small, plan, tmp_path / "small", build=build)
    assert sorted(os.listdir(tmp_path / "small")) == ["build.json", "model.safetensors", "plan.json"]
    state = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = fk.load_pruned(tmp_path / "small", trust=True)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(loaded(X), small(X))
    assert not loaded.training
    assert type(loaded) is nets.Net
    assert torch.equal(loaded.table, small.table)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_nothing_is_imported_or_called_untrusted(folder: Path) -> None:
    del nets.CALLS[:]
    with pytest.raises(fk.InputError, match=rf"by calling {NAME}, .* pass trust=True .* load_pruned\(model, folder\)"):
        fk.load_pruned(folder)
    assert nets.CALLS == []
    edit_json(folder / "build.json", lambda content: content.update(name="antigravity:fly"))
    with pytest.raises(fk.InputError, match="by calling antigravity:fly"):
        fk.load_pruned(folder)
    assert "antigravity" not in sys.modules


def test_in_a_process_of_its_own(folder: Path) -> None:
    torch.save({"x": X, "y": outputs()}, folder / "io.pt")
    code = (
        "import torch, fairkern as fk\n"
        f"io = torch.load({str(folder / 'io.pt')!r})\n"
        f"assert torch.equal(fk.load_pruned({str(folder)!r}, trust=True)(io['x']), io['y'])\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["asked", "default"])
def test_on_meta(how: str, folder: Path) -> None:
    """Without weights, and with what the file does not have."""
    if how == "asked":
        bare = fk.load_pruned(folder, trust=True, device="meta")
    else:
        with torch.device("meta"):
            bare = fk.load_pruned(folder, trust=True)
    small = cut(made())[0]
    assert all(tensor.is_meta for tensor in bare.state_dict().values())
    assert {name: tensor.shape for name, tensor in bare.state_dict().items()} == {
        name: tensor.shape for name, tensor in small.state_dict().items()
    }
    assert torch.equal(bare.table, small.table)
    bare.load_state_dict(fk.load_pruned(folder, trust=True).state_dict(), assign=True)
    assert torch.equal(bare(X), small(X))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtypes_that_were_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    """Tables as well, which a cast of the whole model casts."""
    small, plan = cut(made())
    small.to(dtype)
    fk.save_pruned(small, plan, tmp_path / "small", build=NAME)
    loaded = fk.load_pruned(tmp_path / "small", trust=True)
    assert {tensor.dtype for tensor in loaded.parameters()} == {dtype}
    assert loaded.table.dtype is dtype
    assert torch.equal(loaded(X.to(dtype)), small(X.to(dtype)))
    bare = fk.load_pruned(tmp_path / "small", trust=True, device="meta")
    assert {tensor.dtype for tensor in bare.parameters()} == {dtype}


def test_without_a_build(tmp_path: Path) -> None:
    small, plan = cut(made())
    fk.save_pruned(small, plan, tmp_path / "small")
    assert sorted(os.listdir(tmp_path / "small")) == ["model.safetensors", "plan.json"]
    with pytest.raises(fk.InputError, match=r"has no build.json.*: pass that.* load_pruned\(model, folder\)"):
        fk.load_pruned(tmp_path / "small")
    assert torch.equal(fk.load_pruned(made(3), tmp_path / "small")(X), small(X))
    for absent, what in ((tmp_path, "has no file plan.json"), (tmp_path / "nowhere", "is not there")):
        with pytest.raises(fk.ArtefactError, match=what):
            fk.load_pruned(absent)


def test_into_a_folder_of_another_plan(folder: Path, tmp_path: Path) -> None:
    """A build of the same plan stays, one of another goes, or is recognised where it was put back."""
    whole = shutil.copytree(folder, tmp_path / "whole")
    small, plan = cut(made())
    with torch.no_grad():
        small.last.bias.add_(1)
    fk.save_pruned(small, plan, folder)
    assert torch.equal(fk.load_pruned(folder, trust=True)(X), small(X))
    fk.save_pruned(*cut(made(), seed=5), folder)
    assert not (folder / "build.json").exists()
    shutil.copy(whole / "build.json", folder)
    with pytest.raises(fk.ArtefactError, match="written with another plan"):
        fk.load_pruned(folder, trust=True)


def test_another_architecture(folder: Path) -> None:
    edit_json(folder / "build.json", lambda content: content.update(arguments={"width": 9}))
    with pytest.raises(fk.PlanMismatchError, match=r"says tests.compact.nets:net, .* first.weight dim 0 has 9"):
        fk.load_pruned(folder, trust=True)
    edit_json(folder / "build.json", lambda content: content["versions"].update(torch="1.0"))
    with pytest.raises(fk.PlanMismatchError, match=r"\(written with torch 1.0, here "):
        fk.load_pruned(folder, trust=True)


def test_other_settings_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shape is right, and so is the plan: the activation is another."""
    expected = outputs()
    monkeypatch.setitem(nets.SETTINGS, "slope", 0.3)
    with pytest.warns(UserWarning, match=r"shapes agree, but .*\(the model itself; settings were changed"):
        loaded = fk.load_pruned(folder, trust=True)
    assert not torch.equal(loaded(X), expected)


def test_a_plan_pruned_again(folder: Path, tmp_path: Path) -> None:
    """A model that is pruned twice is made of one that no name makes."""
    small, plan = cut(fk.load_pruned(folder, trust=True), seed=3)
    with pytest.raises(fk.PlanMismatchError, match="dim 0 has"):
        fk.load_pruned(small, folder)
    fk.save_pruned(small, plan, tmp_path / "again", build=NAME)
    with pytest.raises(fk.PlanMismatchError, match=r"makes another architecture than was cut: first.weight dim 0"):
        fk.load_pruned(tmp_path / "again", trust=True)
    loaded = fk.load_pruned(fk.load_pruned(folder, trust=True), tmp_path / "again")
    assert torch.equal(loaded(X), small(X))


@pytest.mark.parametrize(
    ("build", "what"),
    [
        ("resnet18", "is not of that form"),
        ("os:system('x')", "is not of that form"),
        ("a b:c", "is not of that form"),
        (3, "build is a int"),
        (made(), "build is a Net"),
        (lambda: made(), "which no other process can import"),
        ({"name": 3}, "build has the entries name"),
        ({"name": NAME, "args": {}}, "build has the entries name, args"),
        ({"name": NAME, "arguments": [8]}, "arguments that are a list"),
        ({"name": NAME, "arguments": {"width": X}}, "is a Tensor; expected numbers, text"),
        ({"name": NAME, "arguments": {"the width": 8}}, "expected the name of a keyword"),
        ({"name": NAME, "arguments": {"depth": 8}}, "cannot be called with {'depth': 8} .*unexpected keyword"),
        ("tests.compact.nets:needs", "cannot be called with no arguments .*missing a required argument: 'width'"),
        ("tests.compact.nets:nett", "has no 'nett'; near names: net"),
        ("tests.compact.nothing:net", "there is no module 'tests.compact.nothing'"),
        ("tests.compact.nets:number", "which is a int; expected a function or class"),
        ("__main__:net", "is of the script that runs"),
        ({"name": "tests.compact.nets:trained", "arguments": {"pretrained": True}}, "weights are in the folder"),
        ({"name": "tests.compact.nets:trained", "arguments": {"weights": "DEFAULT"}}, "leave weights out"),
    ],
)
def test_builds_that_are_refused(build: Any, what: str, tmp_path: Path) -> None:
    with pytest.raises(fk.InputError, match=what):
        fk.save_pruned(*cut(made()), tmp_path / "small", build=build)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("raising", "cannot be built here .*KeyError: 'a file that is not there'"),
        ("nothing", "makes a str; expected a torch.nn.Module"),
        ("fetching", "asked the network for something"),
    ],
)
def test_what_builds_nothing(name: str, what: str, tmp_path: Path) -> None:
    fk.save_pruned(*cut(made()), tmp_path / "small", build=f"tests.compact.nets:{name}")
    plain = socket.socket.connect, socket.getaddrinfo
    with pytest.raises(fk.InputError, match=what):
        fk.load_pruned(tmp_path / "small", trust=True)
    assert (socket.socket.connect, socket.getaddrinfo) == plain
    assert "connect" not in vars(socket.socket)


def test_others_connect_meanwhile() -> None:
    refused: list[type] = []

    def connecting() -> None:
        try:
            nets.fetching()
        except Exception as error:
            refused.append(type(error))

    with offline("a builder"):
        other = threading.Thread(target=connecting)
        other.start()
        other.join()
        connecting()
        with pytest.raises(fk.InputError, match="a builder asked the network"):
            socket.getaddrinfo("localhost", 80)
    assert refused == [ConnectionRefusedError, fk.InputError]


def test_what_is_for_a_folder_alone(folder: Path) -> None:
    with pytest.raises(fk.InputError, match="trust is for a folder by itself"):
        fk.load_pruned(made(), folder, trust=True)  # type: ignore[call-overload]
    with pytest.raises(fk.InputError, match="device is for a folder by itself"):
        fk.load_pruned(made(), folder, device="meta")  # type: ignore[call-overload]
    with pytest.raises(fk.InputError, match="a folder and nothing else"):
        fk.load_pruned(folder, made())  # type: ignore[call-overload]
    with pytest.raises(fk.InputError, match="device is 'nowhere'; expected for example 'cpu'"):
        fk.load_pruned(folder, device="nowhere")


def test_the_report_lies_beside(tmp_path: Path) -> None:
    small, plan = cut(made())
    done = fk.summarise(plan, title="halved")
    fk.save_pruned(small, plan, tmp_path / "small", report=done)
    assert fk.Report.load(tmp_path / "small" / "report.json").title == "halved"
    other = cut(made(), seed=0)[1]
    less = fk.trace(made(), X).plan(keep_params=0.9)
    assert fk.summarise(other).groups == done.groups
    with pytest.raises(fk.InputError, match="report is of another plan"):
        fk.save_pruned(small, plan, tmp_path / "other", report=fk.summarise(less))
    assert not (tmp_path / "other").exists()


DAMAGE: dict[str, tuple[Any, str]] = {
    "newer": (lambda c: c.update(schema=99), "schema 99"),
    "foreign": (lambda c: c.update(format="fairkern.plan"), "is a fairkern plan; expected a fairkern build"),
    "code": (lambda c: c.update(name="os:system('x')"), "not of the form library:name"),
    "no name": (lambda c: c.pop("name"), "the entry 'name' is missing"),
    "a number": (lambda c: c.update(name=3), "found 3, expected text"),
    "a list": (lambda c: c.update(arguments=[1]), "expected an object"),
    "a dtype": (lambda c: c.update(dtype="os"), "the dtype 'os'"),
    "a keyword": (lambda c: c.update(arguments={"a b": 1}), "expected the name of a keyword"),
    "vast": (lambda c: c.update(arguments={"width": 2**60}), "whole numbers below 2\\^53"),
    "deep": (lambda c: c.update(arguments={"a": json.loads("[" * 20 + "]" * 20)}), "lie deeper than 12"),
    "many": (lambda c: c.update(arguments={"a": [0] * 2**18}), "are more than"),
    "long": (lambda c: c.update(arguments={"a": "x" * 2**17}), "a text of 131072 characters"),
    "modules": (lambda c: c.update(modules={"": 3}), "found 3, expected text"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_build(damage: str, folder: Path) -> None:
    edit, what = DAMAGE[damage]
    edit_json(folder / "build.json", edit)
    with pytest.raises(fk.ArtefactError, match=what):
        fk.load_pruned(folder, trust=True)
    assert torch.equal(fk.load_pruned(made(4), folder)(X), outputs())  # which does not need it


def test_a_build_that_was_cut_off_or_edited(folder: Path) -> None:
    path = folder / "build.json"
    whole = path.read_bytes()
    for cut_off in (b"", whole[:-9], b"\xff" + whole):
        path.write_bytes(cut_off)
        with pytest.raises(fk.ArtefactError, match=r"build\.json"):
            fk.load_pruned(folder, trust=True)
    path.write_bytes(whole.replace(b"nets:net", b"nets:two"))
    with pytest.raises(fk.ArtefactError, match="edited or damaged"):
        fk.load_pruned(folder, trust=True)
