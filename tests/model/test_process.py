"""Seeds: what they set, and what they leave alone; what the collector of cycles looks at."""

from __future__ import annotations

import gc
import weakref
from types import ModuleType

import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.model.process import only_new_is_collected, seed_torch

DEVICES = [device for device in (torch.cuda, torch.xpu, torch.mtia) if hasattr(device, "manual_seed_all")]


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5])
def test_the_cpu_draws_what_it_draws_after_torchs_own(seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)
        expected = torch.randn(5)
        seed_torch(seed)
        assert torch.equal(torch.randn(5), expected)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.__name__)
def test_a_device_in_use_is_seeded(device: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(device, "is_initialized", lambda: True)
    monkeypatch.setattr(device, "manual_seed_all", seeds.append)
    with torch.random.fork_rng(devices=[]):
        seed_torch(2**63 + 5)
    assert seeds == [5]


def test_devices_that_nobody_has_used_begin_with_no_seed_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    if any(device.is_initialized() for device in DEVICES):
        pytest.skip("a device is in use")

    def noted(seed: int) -> None:
        raise AssertionError(f"{seed} is noted for a device that nobody uses")

    for device in DEVICES:
        monkeypatch.setattr(device, "manual_seed_all", noted)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    units = fk.trace(model, x)
    fk.score(model, [(x, y)], nn.CrossEntropyLoss(), units=units, progress=False)


def test_what_was_there_is_not_walked_through_again() -> None:
    assert gc.get_freeze_count() == 0
    with only_new_is_collected():
        assert gc.get_freeze_count() > 1000
        with only_new_is_collected():
            pass
        assert gc.get_freeze_count() > 1000
        new: list[object] = []
        new.append(new)
        gone = weakref.ref(Kept(new))
        gc.collect()
        assert gone() is None, "cycles that are made within go"
    assert gc.get_freeze_count() == 0


def test_what_somebody_else_has_frozen_stays_so() -> None:
    gc.freeze()
    try:
        with only_new_is_collected():
            pass
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()


class Kept:
    def __init__(self, other: object) -> None:
        self.other, self.itself = other, self
