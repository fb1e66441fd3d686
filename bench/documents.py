"""`python -m bench.documents`: fill the figures of the documents, and CONTRIBUTING.md's table of benchmarks.

A document says `<!-- figures: NAME -->` … `<!-- end of figures -->`; what stands between is generated here, from
bench/results/*.json and the registry. `tests/test_readme.py` fails where it is not what they say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from statistics import mean
from typing import Any

from bench.comparison.page import tables
from bench.gpu.suite import Place, groups
from bench.gpu.table import CASES
from bench.matrix import ROWS
from bench.provenance import ROOT
from bench.registry import ENTRIES

RESULTS = ROOT / "bench" / "results"
DOCUMENTS = ENTRIES["documents"].writes
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def fill(text: str) -> str:
    """The document with every block of figures written anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{FIGURES[match[2]]()}\n{match[3]}", text)


def demo() -> str:
    results = _read("demo")
    assert results is not None
    names = {"vgg": "VGG-style", "resnet": "ResNet-style"}
    lines = [
        "| digits, a quarter of the parameters kept | "
        + " | ".join(names[row["case"]] for row in results["rows"])
        + " |"
    ]
    lines.append("|---" * (1 + len(results["rows"])) + "|")

    def row(label: str, text: Callable[[Mapping[str, Any]], str]) -> None:
        lines.append(f"| {label} | " + " | ".join(text(r) for r in results["rows"]) + " |")

    def change(key: str, form: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda r: f"{form.format(r['before'][key])} → {form.format(r['after'][key])}"

    row("parameters", change("params", "{:,.0f}"))
    row("FLOPs per image", change("flops", "{:,.0f}"))
    row("latency of one image", change("latency_ms", "{:.2f} ms"))
    row("test accuracy before", lambda r: f"{r['before']['accuracy']:.1%}")
    row("test accuracy, one shot", lambda r: f"{r['after']['accuracy']:.1%}")
    row("test accuracy, the bare cut", lambda r: f"{r['after']['accuracy_cut']:.1%}")
    epochs = results["rows"][0]["tuning_epochs"]
    row(f"test accuracy, {epochs} epochs of fine-tuning later", lambda r: f"{r['after']['accuracy_finetuned']:.1%}")
    row("largest difference of a logit, bare cut against masked", lambda r: f"{r['cut_against_masked']:.0e}, relative")
    row("training before the cut", lambda r: f"{r['stages_s']['train']:.1f} s")
    row("scoring", lambda r: _seconds(r["stages_s"]["score"]))
    row("planning", lambda r: _seconds(r["stages_s"]["plan"]))
    row("cutting", lambda r: _seconds(r["stages_s"]["cut"]))
    return "\n".join(["", *lines, "", _source(results, "demo")])


def scoring() -> str:
    """Beside an ordinary pass, and beside what no scoring can do without."""
    results = _read("scoring")
    if results is None:
        return _unmeasured("scoring")
    lines = [
        "",
        "| | fairkern | training pass | ratio | bound | activations alone | ratio | bound |",
        "|---" * 8 + "|",
    ]
    for r in results["rows"]:
        more, floor = "", ["–", "–", ""]
        if "elimination_s" in r:
            together = r["relative_cost_with_elimination"]
            more = f" (elimination {_seconds(r['elimination_s'])} more, {together:.2f} together)"
        if "floor_s" in r:  # results of before it was measured have none
            over = {**r["floor"], "bounded": "relative_cost"} if "target" in r["floor"] else {}
            floor = [_seconds(r["floor_s"]["p50"]), f"{r['floor']['value']:.2f}", _kept(over)]
        label = f"{r['op']}, {r['shape']}, {r['threads']} thread{'s' * (r['threads'] > 1)}{more}"
        ours, rival = _seconds(r["ours_s"]["p50"]), _seconds(r["rival_s"]["p50"])
        cells = [label.replace("score", "scoring", 1), ours, rival, f"{r['relative_cost']:.2f}", _kept(r), *floor]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _source(results, "scoring")])


def network_pruner() -> str:
    return _compared("network_pruner", lambda r: f"scoring, {r['shape']}{_passes(r)}")


def tracing() -> str:
    def label(r: Mapping[str, Any]) -> str:
        memory = f", {r['peak_bytes'] / 1e9:.1f} GB of memory at most" if "peak_bytes" in r else ""
        return f"tracing{' and proving' if r['verify'] else ''}, {r['shape']}{memory}"

    return _compared("tracing", label)


def latency() -> str:
    """Shares of the whole model's time, and how far the one that was measured is from the one that was predicted."""
    results = _read("latency")
    if results is None:
        return _unmeasured("latency")
    lines = ["", "| | asked | predicted | measured | apart | bound | the table alone, looks |", "|---" * 7 + "|"]
    for r in results["rows"]:
        predicted, seen = r["looks"][0]
        apart = f"{seen / predicted - 1:+.1%}, {len(r['looks'])}".replace("-", "−")
        whole, small = _seconds(r["rival_s"]["p20"]), _seconds(r["ours_s"]["p20"])
        lines.append(
            f"| {r['shape']}, {whole} → {small} | {r['keep']:.2f} | {r['predicted']:.3f} | {r['measured']:.3f} | "
            f"{r['difference']:.1%} | ≤ {r['target']:.0%}, {'met' if r['met'] else 'missed'} | {apart} |"
        )
    return "\n".join([*lines, "", _source(results, "latency")])


def allocation() -> str:
    names = {"allocate": "a plan from scores", "load and allocate": "a plan from a file of scores"}
    return _compared("allocation", lambda r: f"{names[r['op']]}, {r['shape']}{_case(r)}")


def sweep() -> str:
    """With where a sweep's time goes beside the scoring and the evaluations."""

    def named(row: Mapping[str, Any]) -> str:
        stages = row["stages_s"]
        apart = f"plans {_seconds(stages['plan'])}, {row['rows']} cuts {_seconds(stages['cut'])}"
        return f"{row['shape']}, compensate={row['compensate']!r} ({apart})"

    return _compared("sweep", named)


def operator_figures() -> str:
    return _compared("operators", lambda r: f"{r['op']}{_case(r)}")


def gpu() -> str:
    """Every row of the GPU table, from the results file where a GPU wrote one."""
    results = _read("gpu") or {"rows": []}
    rows = {row["case"]: row for row in results["rows"]}
    lines = ["", "| | measured as | bound | reached | | time of a call |", "|---|---|---|---|---|---|"]
    for case in CASES:
        row, found = rows.get(case.name), ["not measured", "", ""]
        if row is not None:
            alone = row.get("value_of_kernels")
            beside = "" if alone is None else f" (its kernels alone {alone:.2f})"
            if "fraction_of_multiply_adds" in row:
                beside += f"; {row['fraction_of_multiply_adds']:.2f} of the multiply-adds"
            time = _seconds(row["ours_s"]["p50"]) if "ours_s" in row else ""
            met = "" if case.target is None else "met" if row["met"] else "missed"
            found = [f"{row['value']:.2f}{beside}", met, time]
        bound = "" if case.target is None else _bound(case.target, case.at_least)
        lines.append(f"| {case.what} | {case.measure} | {bound} | {' | '.join(found)} |")
    if not rows:
        return "\n".join(
            [*lines, "", f"(`{ENTRIES['gpu'].command}` on a GPU fills this table; none has been measured)"]
        )
    machine, copy, before = results["machine"], results["copy"], results["tests_before"]
    smi = machine.get("nvidia_smi")
    driver = f", driver {smi['driver_version']}" if isinstance(smi, Mapping) else ""
    speed = copy["bytes_per_s"] / 1e12
    source = (
        f"(`{ENTRIES['gpu'].command}`, {results['date'][:10]}, {machine['name']}{driver}, copy {speed:.2f} TB/s, "
        f"Python {results['python']}, torch {results['torch']}, Triton {results['triton']}, commit "
        f"{(results['commit'] or 'unknown')[:7]}; {before.get('passed', 0)} tests passed before and "
        f"{before.get('failed', 0)} failed)"
    )
    return "\n".join([*lines, "", source])


def gpu_rehearsal() -> str:
    """The steps of `bench/gpu/run.sh`: predicted, promised, and what a rehearsal took where there was one."""
    results = _read("gpu_rehearsal") or {"rows": []}
    found = {row["step"]: row for row in results["rows"]}
    lines = ["", "| step | | predicted | at most | rehearsed on the CPU, small |", "|---|---|---|---|---|"]
    for step in (step for group in groups(Place(ROOT, ROOT, "90", 16, rehearse=False)) for step in group):
        row = found.get(step.name, {"status": "not yet"})
        took = f"{_seconds(row['seconds'])}, " if "seconds" in row else ""
        said = f" ({row['said']})" if row.get("said") else ""
        what = f"{step.what}{f', in {len(step.commands)} processes' if len(step.commands) > 1 else ''}"
        lines.append(
            f"| {step.name} | {what} | {step.predicted:g} s | {step.budget:g} s | {took}{row['status']}{said} |"
        )
    source = _source(results, "gpu_rehearsal") if found else f"(`{ENTRIES['gpu_rehearsal'].command}` rehearses)"
    return "\n".join([*lines, "", source])


def matrix() -> str:
    """What README's tests came to under every torch that is supported."""
    results = _read("matrix") or {"rows": []}
    found = {row["case"]: row for row in results["rows"]}
    names = ("torch", "triton", "torchvision", "numpy", "scipy")
    lines = ["", f"| | {' | '.join(names)} | tests | kernels for every target | |", "|---" * (len(names) + 4) + "|"]
    for case in ROWS:
        row = found.get(case)
        if row is None or "not_run" in row:
            why = f": {row['not_run']}" if row else ""
            lines.append(f"| {case} |{' |' * (len(names) + 2)} not run{why} |")
            continue
        counts = (
            f"{row[kind]['passed']:,} passed, {len(row[kind]['failed'])} failed, {row[kind]['skipped']} skipped"
            for kind in ("tests", "kernels")
        )
        part = f" of {', '.join(row['part'])}" if row["part"] else ""
        versions = " | ".join(row["versions"][name] for name in names)
        when = f"{row['date'][:10]}, Python {row['python']}, commit {row['commit'][:7]}"
        lines.append(f"| {case}{part} | {versions} | {' | '.join(counts)} | {when} |")
    return "\n".join([*lines, ""])


def thresholds() -> str:
    results = _read("thresholds")
    lines = ["", "| samples per class | network | column by column | torch.sort |", "|---|---|---|---|"]
    for r in results["rows"]:
        if (r["device"], r["dtype"]) == ("cpu", "float32"):
            took = {name: _seconds(timing["p50"]) for name, timing in r["seconds"].items()}
            lines.append(f"| {r['n']:,} | {took.get('network', '')} | {took['column']} | {took['torch.sort']} |")
    return "\n".join([*lines, "", _source(results, "thresholds")])


def depth() -> str:
    results = _read("depth")
    if results is None:
        return _unmeasured("depth")
    lines = [
        "| net | what goes | measure before → after | time of a sample | parameters | branches that go |",
        "|---" * 6 + "|",
    ]
    for net, way in dict.fromkeys((row["net"], row["way"]) for row in results["rows"]):
        rows = [row for row in results["rows"] if (row["net"], row["way"]) == (net, way)]
        form = "{:.1%}" if rows[0]["metric"] == "accuracy" else "{:.2f}"
        before, after = (", ".join(form.format(row[when]) for row in rows) for when in ("before", "after"))
        share, params = (", ".join(f"{row[what]:.0%}" for row in rows) for what in ("share", "params"))
        gone = ", ".join(str(sum(map(len, row["branches"].values())) or "–") for row in rows)
        lines.append(f"| {net} | {way} | {rows[0]['metric']} {before} → {after} | {share} | {params} | {gone} |")
    return "\n".join(["", *lines, "", _source(results, "depth")])


def growth() -> str:
    results = _read("growth")
    if results is None:
        return _unmeasured("growth")
    lines = ["", "![Times over sizes on log axes, with lines of the predicted slopes](pictures/growth.png)", ""]
    lines += ["| | sizes | law | predicted slope | measured | apart |", "|---|---|---|---|---|---|"]
    for r in results["rows"]:
        sizes, apart = (f"{n:,}" for n in (r["sizes"][0], r["sizes"][-1])), abs(r["slope"] - r["predicted"])
        kept = f"{apart:.2f} ≤ {r['target']}, {'met' if r['met'] else 'missed'}"
        lines.append(
            f"| {r['case']} | {' to '.join(sizes)} {r['over']} | {r['law']} | {r['predicted']:.2f} | "
            f"{r['slope']:.2f} | {kept} |"
        )
    return "\n".join([*lines, "", _source(results, "growth")])


def intercepts() -> str:
    results = _read("intercepts")
    if results is None:
        return _unmeasured("intercepts")
    lines = ["", "| net | perplexity | with | without | costs | bound |", "|---|---|---|---|---|---|"]
    for r in results["rows"]:
        before, with_, without = (f"{mean(cut[key] for cut in r['cuts']):.3f}" for key in ("before", "with", "without"))
        kept = f"{_percent(r['target'])}, {'met' if r['met'] else 'missed'}"
        lines.append(f"| {r['case']} | {before} | {with_} | {without} | {_percent(r['value'])} | ≤ {kept} |")
    return "\n".join([*lines, "", _source(results, "intercepts")])


def elimination() -> str:
    return _compared("elimination", lambda r: f"the order of {r['shape'][0]:,} units, {r['threads']} threads")


def memory() -> str:
    """What stages add to a process, over the model's weights."""
    results = _read("memory")
    if results is None:
        return _unmeasured("memory")
    lines = [
        "",
        "| | added over the weights | bound | forward + backward adds | time over its | elimination |",
        "|---" * 6 + "|",
    ]
    for r in results["rows"]:
        bound_ = r["memory"]
        most = f"≤ {bound_['target']:.3g}, {'met' if bound_['met'] else 'missed'}"
        order = _seconds(r["elimination_s"]) if r["elimination_s"] else "–"
        added = f"{r['added_over_weights']:.2f} | {most} | {r['rival_added_over_weights']:.2f}"
        lines.append(f"| {r['op']}, {r['shape']} | {added} | {r['relative_cost']:.2f} | {order} |")
    return "\n".join([*lines, "", _source(results, "memory")])


def compaction() -> str:
    results = _read("compaction")
    if results is None:
        return _unmeasured("compaction")
    lines = ["", "| | | bound |", "|---|---|---|"]
    for r in results["rows"]:
        kept = f"{_bound(r['target'], r['at_least'])}, {'met' if r['met'] else 'missed'}"
        if r["op"] not in ("compact", "memory"):
            continue
        if r["op"] == "compact":
            where = "in the page cache" if r["cached"] else "on the disk"
            what = f"rate over that of copying, {r['shape']}, {where} | {r['ratio']:.2f}"
        else:
            what = f"memory over {r['rival']}, {r['shape']} | {r['value']:.2f}"
        lines.append(f"| {what} | {kept} |")
    cuts = [r for r in results["rows"] if r["op"] in ("apply", "sequential")]
    if cuts:
        lines += ["", "| | median | beside it | median | ratio | bound |", "|---|---|---|---|---|---|"]
    for r in cuts:
        bound = f"{_bound(r['target'], r['at_least'])}, {'met' if r['met'] else 'missed'}"
        times = [_seconds(r[side]["p50"]) for side in ("ours_s", "rival_s")]
        lines.append(
            f"| {r['op']}, {r['shape']} | {times[0]} | {r['rival']} | {times[1]} | {r[r['bounded']]:.2g} | {bound} |"
        )
    return "\n".join([*lines, "", _source(results, "compaction")])


def large_walk() -> str:
    results = _read("large_walk")
    if results is None:
        return _unmeasured("large_walk")
    lines = ["", "| stage | time | addresses beyond the imports | memory that is no file |", "|---|---|---|---|"]
    for r in results["rows"]:
        for stage in r["stages"]:
            peaks = [
                f"{stage[k] / 2**20:,.0f} MiB" if k in stage else "–" for k in ("peak_bytes", "peak_resident_bytes")
            ]
            lines.append(f"| {stage['stage']} | {_seconds(stage['seconds'])} | {' | '.join(peaks)} |")
        peaks = [f"{r[k] / 2**20:,.0f} MiB" for k in ("peak_bytes", "peak_resident_bytes")]
        lines.append(f"| **{r['model']}, {r['tokens']:,} tokens** | {_seconds(r['seconds'])} | {' | '.join(peaks)} |")
        ordinary = r["ordinary"]
        if "seconds" in ordinary:
            held = f"{ordinary['peak_resident_bytes'] / 2**20:,.0f} MiB" if "peak_resident_bytes" in ordinary else "–"
            lines.append(f"| an ordinary forward + backward | {_seconds(ordinary['seconds'])} | – | {held} |")
    return "\n".join([*lines, "", _source(results, "large_walk")])


def comparison() -> str:
    results = _read("comparison")
    if results is None:
        return _unmeasured("comparison")
    beside = ", ".join(results["beside"])
    return "\n".join([tables(results["rows"]), "", f"Beside the others: {beside}.", "", _source(results, "comparison")])


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %"


def benchmarks() -> str:
    """What `python -m bench` lists, with commands and files."""
    lines = ["", "| name | command | what | takes | needs | writes |", "|---|---|---|---|---|---|"]
    for entry in ENTRIES.values():
        files = ", ".join(entry.writes)
        what = f"{entry.what} | {entry.takes} | {entry.needs}"
        lines.append(f"| {entry.name} | `{entry.command}` | {what} | {files} |")
    return "\n".join(lines)


def _case(row: Mapping[str, Any]) -> str:
    found = re.search(r"\[(.*)\]", row["case"])
    return f", {found[1]}" if found else ""


def _compared(module: str, label: Callable[[Mapping[str, Any]], str]) -> str:
    results = _read(module)
    if results is None:
        return _unmeasured(module)
    lines = ["", "| | fairkern | beside it | median | ratio | bound |", "|---|---|---|---|---|---|"]
    for r in results["rows"]:
        ours, rival = _seconds(r["ours_s"]["p50"]), _seconds(r["rival_s"]["p50"])
        lines.append(f"| {label(r)} | {ours} | {r['rival']} | {rival} | {r['relative_cost']:.2g} | {_kept(r)} |")
    return "\n".join([*lines, "", _source(results, module)])


def _passes(row: Mapping[str, Any]) -> str:
    passes = row["ordinary_passes"]
    return f" ({passes['ours']:.2g} ordinary passes against {passes['rival']:.3g})"


def _kept(row: Mapping[str, Any]) -> str:
    """A row's bound as a ratio of times, and whether it was met."""
    if "target" not in row:
        return ""
    if row["bounded"] == "seconds":
        return f"≤ {_seconds(row['target'])}, {'met' if row['met'] else 'missed'}"
    as_time = row["bounded"] == "relative_cost"
    bound = _bound(row["target"] if as_time else 1 / row["target"], row["at_least"] and as_time)
    return f"{bound}, {'met' if row['met'] else 'missed'}"


def _bound(target: float, at_least: bool) -> str:
    return f"{'≥' if at_least else '≤'} {target:.3g}"


def _unmeasured(name: str) -> str:
    return f"\n(not measured; `{ENTRIES[name].command}` fills this table)"


def _source(results: Mapping[str, Any], name: str) -> str:
    dirty = " with uncommitted changes" if results["uncommitted_changes"] else ""
    commit = "unknown" if results["commit"] is None else results["commit"][:7]  # not a git checkout
    return (
        f"(`{ENTRIES[name].command}`, {results['date'][:10]}, {results['device']}, {results['threads']} threads, "
        f"Python {results['python']}, torch {results['torch']}, commit {commit}{dirty})"
    )


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale or unit == "µs":
            return f"{value / scale:.3g} {unit}"
    raise AssertionError(value)


def _read(module: str) -> dict[str, Any] | None:
    path = RESULTS / f"{module}.json"
    return json.loads(path.read_text()) if path.exists() else None


FIGURES: Mapping[str, Callable[[], str]] = {
    "demo": demo,
    "scoring": scoring,
    "network_pruner": network_pruner,
    "tracing": tracing,
    "latency": latency,
    "allocation": allocation,
    "sweep": sweep,
    "operators": operator_figures,
    "gpu": gpu,
    "gpu_rehearsal": gpu_rehearsal,
    "matrix": matrix,
    "thresholds": thresholds,
    "growth": growth,
    "intercepts": intercepts,
    "depth": depth,
    "elimination": elimination,
    "memory": memory,
    "compaction": compaction,
    "large_walk": large_walk,
    "comparison": comparison,
    "benchmarks": benchmarks,
}


def main() -> None:
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(fill(path.read_text()))


if __name__ == "__main__":
    main()
