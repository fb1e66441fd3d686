"""docs/scaling.md, from the results files and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.scaling.cost import BYTES, Machine, cost
from bench.scaling.decoder import NAMED

TOKENS = 16 * 2048  # of calibration, of the large models
PAPER = 0.4  # of a GPU's peak that passes are taken to reach: no device was at hand
GPU = Machine("H100", passes=PAPER * 989e12 / 2, moments=PAPER * 989e12 / 4, orders=PAPER * 67e12 / 2, disk=5e9)
PEAKS = "NVIDIA's data sheet of the H100 SXM: 989 TFLOP/s in bfloat16 and 67 in float64 on tensor cores, 80 GB"
_HEAD = """# Scaling

What scoring, planning and cutting take as models and data grow: measured on two cores at sizes that these hold, and on
paper, from the same terms, for models that they do not. What is done in which order is in [design.md](design.md).
"""
_MODEL = """A walk by blocks goes forwards once, backwards once (every block is computed again, and its activations'
gradients), and forwards in both models, uncut and cut. With `P` multiply-adds of a token, `T` tokens, and `n` the width
of what is read at a layer that is cut or refitted:

| stage | multiply-adds |
|---|---|
| forwards | `P · T` |
| backwards | `2 · P · T`, and `n² / 2 · T` for the second moments of every tap |
| orders | `n³` for every layer, in float64: half for the inverse, half for what changes while it shrinks |
| forwards in both, refitted | `2 · P · T`, `2 · n² · T` for what was read before and now, `1.5 · n³` for a fit |
| reading and writing | the checkpoint three times, and what is left of it once |

U adds, for every tap, projections of the samples that are kept (`classes · samples_per_class`) and distances of every
two classes. Several processes share out batches and orders; each keeps the model, or its shards of it.

At most held: the weights of one block a few times over, two matrices of the widest layer in float64, and what passes
between two blocks for one batch. On the disk: what passes between all blocks, once.
"""


def write(results: Mapping[str, Any], path: Path) -> None:
    path.write_text(page(results))


def page(results: Mapping[str, Any]) -> str:
    rows = results["rows"]
    where = f"{results['date'][:10]}, {results['device']}, {results['threads']} threads"
    parts = [
        _HEAD,
        "## Measured",
        "",
        "A language model of blocks 512 wide, on windows of 128 tokens, scored with second moments and no classes;",
        "beside it what an ordinary forward and backward over the same batches takes.",
        "",
        *_decoders(rows),
        "",
        "The order of all of a layer's units by what is lost with each, beside one product of two matrices of that",
        "size in float64:",
        "",
        *_orders(rows),
        "",
        "A classifier of two layers 512 wide on 2,048 samples:",
        "",
        *_classes(rows),
        "",
        f"(`python -m bench.scaling`, {where}, torch {results['torch']}, commit {results['commit'][:7]})",
        "",
        "## What it costs",
        "",
        _MODEL,
        "## Models that were not at hand",
        "",
        *_paper(rows),
    ]
    return "\n".join(parts) + "\n"


def _of(rows: Sequence[Mapping[str, Any]], over: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["over"] == over]


def _decoders(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| layers | parameters | tokens | processes | scoring | of it orders | forward + backward | added memory |",
        "|---" * 8 + "|",
    ]
    for over in ("parameters", "tokens", "ranks"):
        for r in _of(rows, over):
            lines.append(
                f"| {r['layers']} | {r['parameters'] / 1e6:.1f} M | {r['tokens']:,} | {r.get('ranks', 1)} | "
                f"{r['score_s']:.2f} s | {r['orders_s']:.2f} s | {_seconds(r['forward_backward_s'])} | "
                f"{r['peak_bytes'] / 1e6:.0f} MB |"
            )
    return lines


def _orders(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| units | order | product | ratio |", "|---|---|---|---|"]
    for r in _of(rows, "width"):
        lines.append(
            f"| {r['units']:,} | {r['order_s']:.2f} s | {r['product_s']:.2f} s | {r['order_s'] / r['product_s']:.2f} |"
        )
    return lines


def _classes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| classes | pass | distances |", "|---|---|---|"]
    return lines + [
        f"| {r['count']:,} | {r['score_s']:.3f} s | {r['distances_s']:.3f} s |" for r in _of(rows, "classes")
    ]


def two_cores(rows: Sequence[Mapping[str, Any]]) -> Machine:
    """The rates of the machine that was measured."""
    (rates,) = _of(rows, "rates")
    widest = _of(rows, "width")[-1]
    return Machine(
        "two cores", rates["passes_bfloat16"], rates["moments"], widest["units"] ** 3 / widest["order_s"], rates["disk"]
    )


def _paper(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cores = two_cores(rows)
    machines = (cores, GPU, Machine(**{**vars(GPU), "name": "eight H100", "devices": 8}))
    rates = f"{_rate(cores.passes)} in passes and {_rate(cores.orders)} in orders"
    lines = [
        f"From the terms above, {TOKENS:,} tokens, 70 % kept. Two cores go at the rates that were measured, in",
        f"multiply-adds per second {rates}. A GPU was not at hand: its rows are",
        f"{PAPER:.0%} of published peaks and not measurements ({PEAKS}).",
        "",
        "| model | parameters | on | " + " | ".join(_stages(cores)) + " | together | held at most | disk beside |",
        "|---" * (6 + len(_stages(cores))) + "|",
    ]
    for decoder in NAMED:
        for machine in machines:
            found = cost(decoder, TOKENS, machine)
            cells = " | ".join(map(_time, found.seconds.values()))
            lines.append(
                f"| {decoder.name} | {decoder.parameters / 1e9:.1f} B | {machine.name} | {cells} | "
                f"**{_time(found.total)}** | {found.peak / 1e9:.1f} GB | {found.disk / 1e9:.0f} GB |"
            )
    return [*lines, "", *_remarks()]


def _stages(machine: Machine) -> list[str]:
    return list(cost(NAMED[0], 1, machine).seconds)


def _remarks() -> list[str]:
    mixture = next(decoder for decoder in NAMED if decoder.experts)
    weights, held = mixture.block * BYTES / 1e9, cost(mixture, TOKENS, GPU).peak / 1e9
    return [
        f"A block of the mixture with all its experts has {weights:.0f} GB of weights, and what is held of it is",
        f"{held:.0f} GB: more than such a GPU has, but not a host. One expert at a time would do, which is not built.",
    ]


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


def _rate(value: float) -> str:
    return f"{value / 1e9:,.0f} · 10⁹"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"
