"""What of an output is a state, and how a model is called on with it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fairkern.model.caches import calls_of
from fairkern.model.nested import call_model, own


class KVCache:
    """One tensor for each layer, filled as a model goes."""

    def __init__(self, filled: Tensor | None = None) -> None:
        self.held = [] if filled is None else [filled]


@dataclass
class Output:
    logits: Tensor
    state: Any = None


class Pair(NamedTuple):
    logits: Tensor
    past: Tensor


class Adds(nn.Module):
    """Adds up what it is given and returns the sum so far in one of many ways."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(
        self, x: Tensor, past: Any = None, cache: Any = None, state: Any = None, features: Tensor | None = None
    ) -> Any:
        before = next((s for s in (past, cache, state) if s is not None), None)
        if isinstance(before, KVCache):
            before = before.held[0] if before.held else None
        elif isinstance(before, (tuple, list)):
            before = before[0] if before else None
        total = x.cumsum(1) if before is None else before + x.cumsum(1)
        last = total[:, -1:]
        made = {
            "mapping": OrderedDict(logits=total, past=(last,)),
            "dataclass": Output(total, [last]),
            "named": Pair(total, last),
            "object": (total, KVCache(last)),
            "within": {"logits": total, "inner": {"kept": KVCache(last)}},
            "features": {"logits": total, "features": last},
            "only": KVCache(last),
        }
        return made[self.form]


def shapes(form: str, **given: Any) -> tuple[list[tuple[int, ...]], str]:
    model, inputs = Adds(form), {"x": torch.randn(2, 5, 3), **given}
    output = call_model(model, inputs)
    calls = calls_of(model, inputs, output)
    return [tuple(t.shape) for t in calls.results(output)], calls.step


def test_states_by_name_and_by_class() -> None:
    for form, step in (("mapping", "last"), ("dataclass", "last"), ("named", "last"), ("object", ""), ("within", "")):
        assert shapes(form) == ([(2, 5, 3)], step), form


def test_results_stay_results() -> None:
    assert shapes("features") == ([(2, 5, 3), (2, 1, 3)], "")
    assert shapes("mapping", past=(torch.zeros(2, 1, 3),)) == ([(2, 5, 3), (2, 1, 3)], "")
    assert shapes("only") == ([(2, 1, 3)], "")


class Steps(nn.Module):
    """(logits, …) with nothing to tell a state by but the next call."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.reads = reads

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out = x.cumsum(1)
        if hidden is not None and self.reads:
            out = out + hidden
        return out, out[:, -1:]


def test_the_last_item_is_a_state_if_the_next_call_reads_it() -> None:
    x = torch.randn(2, 5, 3)
    for reads, results in ((True, 1), (False, 2)):
        model = Steps(reads)
        calls = calls_of(model, x, model(x))
        assert len(calls.results(model(x))) == results
        assert calls.step == ("last" if reads else "")
    model = Steps(True)
    calls = calls_of(model, x, model(x))
    (more,) = calls.onward(model, x, model(x))
    assert torch.allclose(more, x.sum(1, keepdim=True) + x[:, -1:])
    given = (x, torch.zeros(2, 1, 3))
    assert len(calls_of(model, given, model(*given)).results(model(*given))) == 2


def test_a_model_fills_a_cache_of_its_own() -> None:
    cache, filled = KVCache(), KVCache(torch.ones(2, requires_grad=True) * 2)
    inputs = {"x": torch.randn(1, 2, 3), "cache": cache, "layers": [None], "filled": filled}
    mine = own(inputs)
    mine["cache"].held.append(1)
    mine["layers"][0] = 1
    mine["filled"].held[0].zero_()
    assert cache.held == []
    assert inputs["layers"] == [None]
    assert bool((filled.held[0] == 2).all())
    assert mine["x"] is inputs["x"]


class Sequence(nn.Module):
    """Adds position embeddings that go on where the cache ends; a mask has a column for every place so far."""

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, labels: Tensor | None = None, past: Tensor | None = None
    ) -> dict[str, Any]:
        start = 0 if past is None else past.shape[1]
        whole = ids if past is None else torch.cat([past, ids], 1)
        assert mask is None or mask.shape == whole.shape
        return {"logits": whole.cumsum(1)[:, start:], "past": whole}


def test_one_more_place_of_every_sequence() -> None:
    ids = torch.arange(10).reshape(2, 5)
    inputs = {"ids": ids, "mask": torch.ones_like(ids), "labels": ids}
    model = Sequence()
    calls = calls_of(model, inputs, model(**inputs))
    assert calls.step == "last"
    (more,) = calls.onward(model, inputs, model(**inputs))
    assert torch.equal(more, ids.sum(1, keepdim=True) + ids[:, -1:])
