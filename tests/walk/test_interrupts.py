"""Ctrl-C at any line of a walk leaves the model whole, on meta where it was, and no file behind."""

from __future__ import annotations

from pathlib import Path

from torch import nn

import fairkern as fk
from fairkern.capture import Settings
from fairkern.interrupts import interrupts_wait
from fairkern.walk.paged import Weights
from fairkern.walk.scoring import by_blocks
from tests.interrupted import Left, places, sweep
from tests.walk.models import Residual, made, vectors
from tests.walk.test_paged import Tabled, on_meta, stored

EVERY = 499  # at which share of the lines it is interrupted
LOSS = nn.functional.cross_entropy


def test_a_model_is_as_it_was(tmp_path: Path) -> None:
    model, data = made(Residual, 2), vectors((3, 4))
    units, left = fk.trace(model, data[0][0][:2], verify=False), Left(model)

    def do() -> None:
        fk.score(model, data, LOSS, units=units, walk="blocks", walk_folder=tmp_path, class_of=False, progress=False)

    do()
    assert list(sweep(do, lambda: left.differences() + list(map(str, tmp_path.iterdir())), places(do)[::EVERY])) == []


def test_a_model_on_meta_is_as_it_was(tmp_path: Path) -> None:
    whole, absent, data = made(Tabled, 2), on_meta(2), vectors((3, 4))
    units, left = fk.trace(whole, data[0][0][:2], verify=False), Left()
    held = [id(thing) for thing in (*absent.modules(), *absent.parameters(), *absent.buffers())]

    def differences() -> list[str]:
        now = [id(thing) for thing in (*absent.modules(), *absent.parameters(), *absent.buffers())]
        hooks = [path for path, module in absent.named_modules() if module._forward_hooks or module._forward_pre_hooks]
        return left.differences() + hooks + ["modules and tensors"] * (now != held)

    with stored(whole, tmp_path) as source:
        weights = Weights(absent, source)

        def do() -> None:
            with interrupts_wait():
                by_blocks(absent, data, LOSS, units, Settings(class_of=False), weights=weights)

        do()
        assert list(sweep(do, differences, places(do)[::EVERY])) == []
