"""Every operator with every argument of the wrong kind: InputError (or BackendError), before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairkern import ops
from fairkern.errors import FairkernError, InputError

X = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 2
RANKS = torch.rand(5, generator=torch.Generator().manual_seed(0))
WEIGHT, INDEX = torch.eye(4)[:, :3], torch.tensor([0, 1])
DIRECTIONS = ops.directions(4, 3, 0)
VIEW = ops.View(torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64), torch.arange(3)[:, None])

CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "class_wasserstein": (ops.class_wasserstein, {"x": X, "labels": LABELS, "reduce": "max", "backend": "auto"}),
    "wasserstein_1d": (ops.wasserstein_1d, {"x": X[:, :, 0], "y": X[:, :, 1], "p": 1, "backend": "auto"}),
    "sliced_wasserstein": (
        ops.sliced_wasserstein,
        {"x": X, "directions": DIRECTIONS, "labels": LABELS, "reduce": "max", "backend": "auto"},
    ),
    "directions": (ops.directions, {"d": 4, "p": 3, "seed": 0}),
    "project": (ops.project, {"x": X, "directions": DIRECTIONS, "rows": INDEX, "out": None, "backend": "auto"}),
    "gram": (ops.gram, {"x": X, "dim": 1, "backend": "auto"}),
    "gather": (ops.gather, {"weight": WEIGHT, "indices": {0: INDEX}, "backend": "auto"}),
    "an index": (lambda index: ops.gather(WEIGHT, {0: index}), {"index": INDEX}),
    "gather_many": (ops.gather_many, {"jobs": [(WEIGHT, {0: INDEX})], "backend": "auto"}),
    "taylor": (ops.taylor, {"act": X, "grad": X, "dim": 1, "reduction": "signed", "backend": "auto"}),
    "taylor_sums": (ops.taylor_sums, {"act": X, "grad": X, "dim": 1, "out": None, "scale": 1.0, "backend": "auto"}),
    "taylor_many": (ops.taylor_many, {"jobs": [(X, X, 1)], "out": None, "scale": 1.0, "backend": "auto"}),
    "TaylorSums.zeros": (ops.TaylorSums.zeros, {"channels": 3, "device": "cpu", "dtype": torch.float64}),
    "tod_curve": (ops.tod_curve, {"u": RANKS, "r": RANKS, "backend": "auto"}),
    "tod_curves": (ops.tod_curves, {"u": RANKS, "r": RANKS, "sizes": [2, 3], "backend": "auto"}),
    "eliminate": (
        ops.eliminate,
        {"views": [VIEW], "most": None, "panel": None, "fast": None, "overwrite": False, "told": None},
    ),
    "a view": (lambda c, w, rows: ops.eliminate([ops.View(c, w, rows)]), {"c": VIEW[0], "w": VIEW[1], "rows": VIEW[2]}),
    "backends": (ops.backends, {"device": "cpu"}),
}

WRONG: dict[str, Any] = {
    "text": "3",
    "true": True,
    "not a number": math.nan,
    "infinite": math.inf,
    "negative": -7,
    "half": 2.5,
    "huge": 10**30,
    "list": [1],
    "tuple": (1,),
    "dictionary": {"a": 1},
    "object": object(),
    "complex": 1j,
    "path": Path("x"),
    "function": lambda *_: 1,
    "class": int,
    "vector": torch.ones(3, dtype=torch.complex64),
    "array": np.ones(3),
    "sparse": torch.eye(3).to_sparse(),
    "empty": torch.ones(0),
}
RIGHT = {  # what some arguments may well be
    ("taylor_sums", "scale"): {"negative", "half", "huge"},
    ("taylor_many", "scale"): {"negative", "half", "huge"},
    ("gather", "weight"): {"vector"},
    ("gather_many", "jobs"): {"empty"},
    ("taylor_many", "jobs"): {"empty"},
    ("eliminate", "most"): {"huge"},
    ("eliminate", "panel"): {"huge"},
    ("eliminate", "fast"): {"true"},
    ("eliminate", "overwrite"): {"true"},
    ("eliminate", "told"): {"function"},
}


@pytest.mark.parametrize(("name", "argument"), [(n, a) for n, (_, base) in CALLS.items() for a in base])
def test_what_is_of_the_wrong_kind_is_refused(name: str, argument: str) -> None:
    function, base = CALLS[name]
    function(**base)
    for kind, value in WRONG.items():
        if kind in RIGHT.get((name, argument), ()):
            function(**{**base, argument: value})
            continue
        with pytest.raises(FairkernError):
            function(**{**base, argument: value})


@pytest.mark.parametrize("two", [np.int64(2), torch.tensor(2), np.array(2)])
def test_whole_numbers_of_other_libraries(two: Any) -> None:
    assert torch.equal(ops.gram(X, two).gram, ops.gram(X, 2).gram)
    assert ops.directions(two, two, two).shape == (2, 2)
    assert torch.equal(ops.taylor(X, X, two), ops.taylor(X, X, 2))
    assert torch.equal(ops.wasserstein_1d(X[:, 0], X[:, 1], two), ops.wasserstein_1d(X[:, 0], X[:, 1], 2))
    assert len(ops.tod_curves(RANKS[:4], RANKS[:4], [two, two])) == 4


def test_the_job_is_named() -> None:
    with pytest.raises(InputError, match=r"job 1 is a Tensor; expected \(act, grad, dim\)"):
        ops.taylor_many([(X, X, 1), X])
    with pytest.raises(InputError, match=r"job 0 is a tuple; expected \(weight, indices\)"):
        ops.gather_many([(X, {}, 1)])
