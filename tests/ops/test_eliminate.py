"""Backward elimination against fits solved from scratch."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fairkern.errors import InputError, NonFiniteError
from fairkern.ops import View, eliminate
from fairkern.ops.eliminate import blocked, native, reference
from fairkern.ops.eliminate.config import fast_pays


def view(n: int, rows: Tensor, seed: int = 0, samples: int = 60, outputs: int = 7) -> View:
    """Correlated positions: a few causes seen through noise."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(samples, max(2, n // 3), dtype=torch.float64, generator=generator)
    a = causes @ torch.randn(causes.shape[1], n, dtype=torch.float64, generator=generator)
    a = torch.relu(a) + 0.1 * torch.randn(a.shape, dtype=torch.float64, generator=generator)
    w = torch.randn(n, outputs, dtype=torch.float64, generator=generator)
    return View(torch.cov(a.T) + 1e-6 * torch.eye(n, dtype=torch.float64), w @ w.T, rows)


CASES = {
    "one position a unit": [view(12, torch.arange(12)[:, None])],
    "positions that always stay": [view(14, torch.arange(1, 13)[:, None])],
    "blocks": [view(12, torch.arange(12).reshape(4, 3))],
    "two views": [view(10, torch.arange(10)[:, None], 1), view(13, torch.arange(3, 13)[:, None], 2)],
    "views of unlike blocks": [view(10, torch.arange(10).reshape(5, 2), 3), view(5, torch.randperm(5)[:, None], 4)],
}


@functools.cache
def defined(name: str) -> tuple[Tensor, Tensor]:
    views = CASES[name]
    return reference.eliminate([v.covariance for v in views], [v.output for v in views], [v.rows for v in views])


@pytest.mark.parametrize("name", CASES)
def test_a_panel_of_all_units_is_exact(name: str) -> None:
    order, added = defined(name)
    found = eliminate(CASES[name], panel=len(CASES[name][0].rows))
    assert found.order.tolist() == order.tolist()
    torch.testing.assert_close(found.error, added.cummax(0).values, rtol=1e-6, atol=1e-9)


ALONE = [name for name, views in CASES.items() if all(v.rows.shape[1] == 1 for v in views)]


@pytest.mark.parametrize("name", ALONE)
def test_small_matrices_are_eliminated_in_one_call(
    name: str, extension: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, added = defined(name)
    monkeypatch.setattr(blocked, "eliminate", None)
    found = eliminate(CASES[name])
    assert found.order.tolist() == order.tolist()
    torch.testing.assert_close(found.error, added.cummax(0).values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n", [31, 96, 97, 130, 264])
def test_one_call_gives_what_blocks_of_steps_give(n: int, extension: object) -> None:
    """Of any width: blocks of 16 and 32 steps, whole tiles and what they leave."""
    given = [view(n, torch.arange(3, n)[:, None], 20, samples=2 * n), view(n + 5, torch.arange(n - 3)[:, None], 21)]
    given[1].covariance.diagonal().add_(0.1)
    for most in (n - 3, n // 2, 0):
        one, other = eliminate(given, most=most), eliminate(given, most=most, panel=64)
        assert one.order.tolist() == other.order.tolist()
        torch.testing.assert_close(one.error, other.error, rtol=1e-7, atol=1e-12)


def test_one_call_gives_the_same_bits_on_every_instruction_set(extension: object) -> None:
    given = view(130, torch.arange(130)[:, None], 12, samples=300)
    found = []
    for isa in range(1, ["baseline", "avx2", "avx512"].index(extension.build()["isa"]) + 2):  # type: ignore[attr-defined]
        own = native.Small(given.covariance.clone(), given.output.clone(), given.rows)
        found.append(native.whole([own], 130, 1e-5, isa=isa))
    for order, added, _, failed in found:
        assert failed is None
        assert torch.equal(order, found[0][0])
        assert torch.equal(added, found[0][1])


@pytest.mark.parametrize("broken", ["a negative direction", "nan", "infinite"])
def test_one_call_says_which_covariance_is_not_definite(broken: str, extension: object) -> None:
    good, bad = (view(40, torch.arange(40)[:, None], seed) for seed in (1, 2))
    if broken == "a negative direction":
        bad.covariance[33, 33] = -1.0
    else:
        bad.covariance[35, 4] = float("nan" if broken == "nan" else "inf")
    with pytest.raises(NonFiniteError, match="covariance 1 is not positive definite"):
        eliminate([good, bad])


@pytest.mark.parametrize("panel", [None, 4])
@pytest.mark.parametrize("most", [1, 3, 20, None])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(broken: float, most: int | None, panel: int | None) -> None:
    """Every unit goes once all the same: whichever costs are not numbers, or as large as those of what has gone."""
    given = view(40, torch.arange(40)[:, None])
    given.output.fill_(broken)
    with pytest.raises(NonFiniteError, match="add a ridge"):
        eliminate([given], most=most, panel=panel)


@pytest.mark.parametrize("panel", [1, 4, 9, None])
def test_small_panels_lose_little(panel: int | None) -> None:
    """The cost of the first k units, by definition, is near that of the exact order."""
    given = view(48, torch.arange(48)[:, None], 5, samples=200)
    exact, near = eliminate([given], panel=48).order, eliminate([given], panel=panel).order
    assert sorted(near.tolist()) == list(range(48))
    for k in (8, 16, 24, 36):
        best = reference.cost(given.covariance, given.output, exact[:k])
        assert reference.cost(given.covariance, given.output, near[:k]) <= 1.05 * best


def test_a_copy_goes_for_nothing_and_the_other_then_stays() -> None:
    base = view(6, torch.arange(6)[:, None], 6)
    twice = torch.cat([torch.eye(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64)[:1]])
    covariance = twice @ base.covariance @ twice.T + 1e-9 * torch.eye(7, dtype=torch.float64)
    found = eliminate([View(covariance, twice @ base.output @ twice.T, torch.arange(7)[:, None])])
    assert int(found.order[0]) in (0, 6)
    assert float(found.error[0]) < 1e-6 * float(found.error[1])


def test_what_cannot_be_used_is_said() -> None:
    good = view(6, torch.arange(6)[:, None])
    with pytest.raises(InputError, match="no views"):
        eliminate([])
    with pytest.raises(InputError, match="expected float64"):
        eliminate([good._replace(output=good.output.float())])
    with pytest.raises(InputError, match="expected positions from 0 to 5"):
        eliminate([good._replace(rows=torch.arange(7)[:, None])])
    with pytest.raises(InputError, match=r"expected \[6, positions of a unit\]"):
        eliminate([good, view(5, torch.arange(5)[:, None])])
    with pytest.raises(NonFiniteError, match="add a ridge"):
        eliminate([good._replace(covariance=torch.zeros_like(good.covariance))])
    with pytest.raises(InputError, match="panel=0 is too small"):
        eliminate([good], panel=0)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e-20])
def test_how_small_covariances_are_makes_no_difference(scale: float, fast: bool) -> None:
    """What is left in the rows of a unit that has gone is rounding of large numbers, and not to be solved with."""
    given = [view(24, torch.arange(24).reshape(6, 4), seed) for seed in range(3)]
    low = [View(v.covariance * scale**2, v.output, v.rows) for v in given]
    expected, found = eliminate(given, panel=6), eliminate(low, panel=6, fast=fast)
    assert found.order.tolist() == expected.order.tolist()
    torch.testing.assert_close(found.error / scale**2, expected.error, rtol=1e-4 if fast else 1e-6, atol=0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("panel", [1, 3, 5, None])
def test_every_step_is_exact_whatever_the_panel(name: str, panel: int | None) -> None:
    order, added = defined(name)
    found = eliminate(CASES[name], panel=panel)
    assert found.order.tolist() == order.tolist()
    torch.testing.assert_close(found.error, added.cummax(0).values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("wide", [1, 3])
def test_what_has_gone_leaves_the_matrices_in_time(wide: int) -> None:
    """Many panels: positions are squeezed out again and again, beside positions that always stay."""
    rows = torch.arange(7, 7 + 96).reshape(-1, wide).flip(0)
    given = view(110, rows, 8, samples=400)
    found, at_once = eliminate([given], panel=4), eliminate([given], panel=1000)
    assert found.order.tolist() == at_once.order.tolist()
    torch.testing.assert_close(found.error, at_once.error, rtol=1e-9, atol=0)
    totals = [reference.cost(*given[:2], rows[found.order[:k]].reshape(-1)) for k in range(33)]
    added = torch.tensor(totals, dtype=torch.float64).diff().cummax(0).values
    torch.testing.assert_close(found.error[:32], added, rtol=1e-8, atol=0)


def test_most_units_go_one_by_one_and_the_others_by_what_they_would_add_next() -> None:
    given = view(30, torch.arange(30)[:, None], 9, samples=100)
    whole, some = eliminate([given]), eliminate([given], most=12, panel=5)
    assert some.order[:12].tolist() == whole.order[:12].tolist()
    torch.testing.assert_close(some.error[:12], whole.error[:12])
    assert sorted(some.order.tolist()) == list(range(30))
    gone = some.order[:12]
    before = reference.cost(given.covariance, given.output, gone)
    each = [
        reference.cost(given.covariance, given.output, torch.cat([gone, unit[None]])) - before
        for unit in some.order[12:]
    ]
    assert each == sorted(each)
    assert some.error[12:].tolist() == pytest.approx(each, rel=1e-6)
    none = eliminate([given], most=0)
    alone = torch.tensor([reference.cost(given.covariance, given.output, torch.tensor([u])) for u in range(30)])
    assert none.order.tolist() == alone.argsort().tolist()


def test_what_is_given_stays_unless_it_may_be_lost() -> None:
    given = view(40, torch.arange(40)[:, None], 10)
    before = given.covariance.clone(), given.output.clone()
    kept = eliminate([given])
    assert torch.equal(given.covariance, before[0])
    assert torch.equal(given.output, before[1])
    lost = eliminate([given], overwrite=True)
    assert torch.equal(kept.order, lost.order)
    assert torch.equal(kept.error, lost.error)
    assert not torch.equal(given.covariance, before[0])


def test_only_the_lower_halves_count() -> None:
    given = view(200, torch.arange(200)[:, None], 11, samples=500)
    lower = View(given.covariance.tril(), given.output.tril(), given.rows)
    assert torch.equal(eliminate([lower]).order, eliminate([given]).order)


def test_the_share_that_is_done_is_told() -> None:
    shares: list[float] = []
    eliminate([view(40, torch.arange(40)[:, None])], panel=8, told=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(shares) > 4


@pytest.mark.parametrize("name", CASES)
def test_compiled_steps_are_those_of_tensors(name: str, extension: object, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = eliminate(CASES[name], panel=4)
    monkeypatch.setattr("fairkern.ops._native.unavailable", lambda: "it is left out")
    plain = eliminate(CASES[name], panel=4)
    assert compiled.order.tolist() == plain.order.tolist()
    torch.testing.assert_close(compiled.error, plain.error, rtol=1e-9, atol=0)


def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(
    extension: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = view(130, torch.arange(130)[:, None], 12, samples=300)
    plain, found = native.steps, []
    for isa in range(1, ["baseline", "avx2", "avx512"].index(extension.build()["isa"]) + 2):  # type: ignore[attr-defined]
        monkeypatch.setattr(native, "steps", functools.partial(plain, isa=isa))
        found.append(eliminate([given], panel=13))
    for other in found[1:]:
        assert torch.equal(other.order, found[0].order)
        assert torch.equal(other.error, found[0].error)


def spread(kind: str, n: int, generator: torch.Generator) -> Tensor:
    """Covariances that are hard in float32, with the ridge that scoring gives them."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    if kind == "eigenvalues over twelve decades":
        a = normal(4 * n, n) * torch.logspace(0, -6, n, dtype=torch.float64) @ torch.linalg.qr(normal(n, n))[0]
    elif kind == "massive activations":
        a = normal(3 * n, n)
        a[:, 5:7] *= 1000
        a = a @ (torch.eye(n, dtype=torch.float64) + 0.3 * normal(n, n) / n**0.5)
    elif kind == "fewer samples than units":
        a = torch.relu(normal(n // 4, n))
    else:  # twins
        a = normal(2 * n, n // 2)
        a = torch.cat([a, a + 1e-3 * normal(*a.shape)], 1)
    covariance = torch.cov(a.T)
    covariance.diagonal().add_(1e-4 * covariance.diagonal().mean())
    return covariance


@pytest.mark.parametrize("wide", [1, 4])
@pytest.mark.parametrize(
    "kind", ["eigenvalues over twelve decades", "massive activations", "fewer samples than units", "twins"]
)
def test_in_float32_any_plan_loses_at_most_a_hundredth_more(kind: str, wide: int) -> None:
    n, generator = 192, torch.Generator().manual_seed(1)
    covariance = spread(kind, n, generator)
    weight = torch.randn(n, n // 2, dtype=torch.float64, generator=generator)
    given = View(covariance, weight @ weight.T, torch.arange(n).reshape(-1, wide))
    exact, fast = (eliminate([given], fast=fast, panel=32) for fast in (False, True))
    assert not torch.equal(exact.error, fast.error)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        best, near = (
            reference.cost(*given[:2], given.rows[found.order[: int(share * n / wide)]].reshape(-1))
            for found in (exact, fast)
        )
        assert near <= 1.01 * best


def test_wide_matrices_and_slow_devices_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fast_pays(8191, torch.device("cpu"))
    assert fast_pays(8192, torch.device("cpu"))
    for capability, pays in {(8, 0): False, (8, 6): True, (9, 0): False, (12, 0): True}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert fast_pays(100, torch.device("cuda")) is pays


STEPS = 6


def block(n: int, dtype: torch.dtype, views: int = 1, units: int = 700) -> list[native.Arrays]:
    """What a block of steps begins with, of matrices whose diagonals are all that is told apart."""
    found = []
    for seed in range(views):
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.rand(n + seed, n + seed, generator=generator).to(dtype)
        matrix.diagonal().add_(n)
        rows = torch.randperm(n, generator=generator)[:units, None]
        diagonal = matrix.diagonal().double()[rows].reshape(-1, 1, 1)
        wide = functools.partial(torch.zeros, dtype=torch.float64)
        own = (diagonal, diagonal.clone(), wide(STEPS, len(matrix)), wide(STEPS, len(matrix)))
        found.append(native.Arrays(matrix, matrix, rows, wide(len(matrix)), wide(len(matrix)) + 1, *own))
    return found


def made(arrays: list[native.Arrays], threads: int) -> list[Tensor]:
    """All that the steps of a block write."""
    arrays = [native.Arrays(*fields[:4], *(field.clone() for field in fields[4:])) for fields in arrays]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        return [*native.steps(arrays, STEPS), *(field for fields in arrays for field in fields[4:])]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("n", "dtype", "views"), [(1100, torch.float64, 2), (4100, torch.float32, 1)])
def test_threads_change_no_bit(n: int, dtype: torch.dtype, views: int, extension: object) -> None:
    """Of as many positions as it takes for the compiled steps to start threads, more of these than there are cores."""
    given = block(n, dtype, views)
    alone = made(given, 1)
    assert len(set(alone[0].tolist())) == STEPS
    for threads in (2, 3, 4, 16):
        assert all(map(torch.equal, made(given, threads), alone))


def test_blocks_of_several_threads_at_a_time_change_no_bit(extension: object) -> None:
    """Each is led by a thread of its own, and followed by others."""
    given = block(1100, torch.float64)
    alone = made(given, 1)
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: made(given, 4), range(12)))
    finally:
        torch.set_num_threads(before)
    assert all(all(map(torch.equal, other, alone)) for other in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_process_that_was_forked_makes_its_steps_alone(extension: object) -> None:
    """The threads that steps were made on stayed with the one that it was forked from: it may not wait for them."""
    script = """
import os, sys, torch
from tests.ops.test_eliminate import block, made
given = block(4100, torch.float32)
alone = made(given, 2)
child = os.fork()
if child == 0:
    os._exit(0 if all(map(torch.equal, made(given, 2), alone)) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    where = Path(__file__).resolve().parent.parent.parent
    with subprocess.Popen([sys.executable, "-c", script], cwd=where, start_new_session=True) as process:
        try:
            assert process.wait(timeout=300) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and a child that waits


def test_the_order_does_not_depend_on_threads() -> None:
    given = view(300, torch.arange(300)[:, None], 13, samples=700)
    orders, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            orders.append(eliminate([given]).order)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*orders)
