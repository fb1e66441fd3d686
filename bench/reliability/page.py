"""docs/reliability.md, from the results and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.reliability.about import ABOUT
from bench.reliability.rows import Row

_HEAD = """# Reliability

What was tried to break the product, how often, and what came of it. The command `python -m bench.reliability` makes
every figure again, or those of some parts (`python -m bench.reliability damage fuzz`); `--seed` and `--count` try other
cases, or more of them. A damaged file is made from the seed and its number alone, so one that went wrong can be made
again. **Wrong** counts what must not be; the row then says what it was. Small versions of all parts run in the
ordinary tests (`tests/bench/test_reliability.py`).
"""
_NOT = """## What this does not cover

- Whoever writes a file and its sum anew on purpose is believed: a sum finds damage, not forgery. Files of before there
  were sums have none, and are read with a warning.
- Only this machine's system, file system and processor. Losing power is not tried, only killed processes.
- Kernels of a GPU: their tests run with `pytest -m gpu`, memory errors with compute-sanitizer (CONTRIBUTING.md).
- What torch, safetensors or a model's own code does wrong by itself.
"""


def page(parts: Mapping[str, Sequence[Row]], source: Mapping[str, Any], mutation: Mapping[str, Any] | None) -> str:
    blocks = [_HEAD, "\n".join(_summary(parts, mutation)), ""]
    for part, rows in parts.items():
        blocks += [f"## {part.capitalize()}\n", ABOUT[part] + "\n", "\n".join(_table(part, rows)), ""]
    blocks += ["## Mutants\n", "\n".join(_mutants(mutation)), "", _NOT]
    packages = ", ".join(f"{name} {version}" for name, version in source["packages"].items() if version)
    blocks.append(f"(`python -m bench.reliability`, {source['date'][:10]}, {source['device']}, {packages})")
    return "\n".join(blocks) + "\n"


def outcomes(row: Row) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in row.outcomes.items())


def _summary(parts: Mapping[str, Sequence[Row]], mutation: Mapping[str, Any] | None) -> Iterator[str]:
    yield from ("| part | tried | seed | wrong | |", "|---|---|---|---|---|")
    for part, rows in parts.items():
        ran = [row for row in rows if not row.not_run]
        missing = "; ".join(f"{row.case} not run: {row.not_run}" for row in rows if row.not_run)
        if part == "coverage" and ran:
            share = ran[0].measured["share"]
            yield f"| {part} | {ran[0].count:,} lines | – | {ran[0].wrong} | {share:.1%} run |"
            continue
        tried, wrong = sum(row.count for row in ran), sum(row.wrong for row in ran)
        seeds = ", ".join(sorted({str(row.seed) for row in ran})) or "–"
        yield f"| {part} | {tried:,} | {seeds} | {wrong} | {missing} |"
    if mutation is not None:
        rows = mutation["rows"]
        killed, judged = sum(r["killed"] for r in rows), sum(r["sample"] - r["equivalent"] for r in rows)
        seeds = ", ".join(sorted({str(r["seed"]) for r in rows}))
        yield f"| mutants | {judged:,} | {seeds} | – | {killed / judged:.1%} noticed by a test |"


def _table(part: str, rows: Sequence[Row]) -> Iterator[str]:
    if part == "coverage":
        yield from _lines(rows)
    else:
        yield from ("| | tried | seed | what came of it | wrong | took | commit |", "|---|---|---|---|---|---|---|")
        for row in rows:
            if row.not_run:
                yield f"| {row.case} | not run: {row.not_run} | | | | | |"
                continue
            yield (
                f"| {row.case} | {row.count:,} | {row.seed} | {outcomes(row)} | {row.wrong} | {row.seconds:,.0f} s | "
                f"{(row.commit or 'unknown')[:7]} |"
            )
    for row in rows:
        if part == "soak" and "bytes_a_round" in row.measured:
            first, last = (row.measured[f"memory_{end}"] / 2**20 for end in ("first", "last"))
            slope = row.measured["bytes_a_round"]
            yield f"\nMemory: {first:.0f} MiB at first, {last:.0f} MiB at the end, {slope:,.0f} bytes a round."
        if part == "graphs" and "largest_error" in row.measured:
            m = row.measured
            yield (
                f"\n{m['with_groups']:,} of {m['models']:,} models have something to cut, {m['prunable']:,} of "
                f"{m['groups']:,} groups can be; cut and masked differ by at most {m['largest_error']:.0e}, relative; "
                f"{m['pieces']} kinds of pieces came up."
            )
    if part != "coverage":
        said = [f"- {row.case}: {_plain(example)}" for row in rows for example in row.examples]
        if said:
            yield from ("", "Wrong (the first of each row):", "", *said)


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row.not_run:
            yield f"Not run: {row.not_run}."
            continue
        m = row.measured
        commit = (row.commit or "unknown")[:7]
        yield f"{m['covered']:,} of {row.count:,} lines, {m['share']:.2%} (commit {commit}; {m['tests']})."
        yield from ("", "| file | lines that no test runs |", "|---|---|")
        yield from (f"| {path} | {lines} |" for path, lines in m["not_run"].items())


def _mutants(mutation: Mapping[str, Any] | None) -> Iterator[str]:
    if mutation is None:
        yield "Not run (`python -m bench.mutation`)."
        return
    yield "Small changes to code that decides, drawn with a seed: how many a test notices (`python -m bench.mutation`)."
    yield from (
        "",
        "| room | mutants | tried | equivalent | noticed | share | 95 % interval |",
        "|---|---|---|---|---|---|---|",
    )
    for r in mutation["rows"]:
        low, high = r["interval"]
        yield (
            f"| {r['room']} | {r['mutants']:,} | {r['sample']} | {r['equivalent']} | {r['killed']} | "
            f"{r['killed_share']:.1%} | {low:.1%} to {high:.1%} |"
        )
    made = f"{mutation['date'][:10]}, commit {(mutation['commit'] or 'unknown')[:7]}"
    yield f"\n{mutation['target']:.0%} are asked for. ({made})"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "\\<")
