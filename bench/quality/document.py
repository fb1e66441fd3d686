"""docs/quality.md and its picture, from the rows and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.quality import agreement, plots, targets
from bench.quality.catalogue import ENTRIES
from bench.quality.further import FURTHER, STEPS, UPDATES
from bench.quality.grid import CLOSELY, COMPENSATIONS, JOINTLY, RECALIBRATED
from bench.quality.methods import DEFAULT, METHODS
from bench.quality.rivals import RIVALS
from bench.quality.rows import Row
from bench.quality.summary import Recipe, Summary, with_default

PICTURE = Path("pictures") / "quality.png"
ONCE, SOLVED = "least_squares", "sequential"  # what `prune` takes where it can is SOLVED
JOINT = "joint"
TOLD = {"none": "bare", ONCE: "least squares", SOLVED: "sequential", JOINT: "joint"}
_HEAD = """# Quality

What is left of a net's quality after one cut without any training. Every row below is one way to choose units
(signal, allocation) and one way to make up for them (compensation), at the same budgets, on the same trained nets, from
the same calibration data. **Area** is the mean quality over kept shares from 5 % to 100 % of the parameters that can be
cut: 1 would be a cut that costs nothing. Quality is accuracy after / before, perplexity before / after for language
models, and the mean cosine to the uncut model's embedding for MiniLM.

Nets and tasks are small (seconds of training each): handwritten digits and letters from 21 fonts at 16 × 16, turned,
moved, scaled and noised; characters of the standard library's documentation; MiniLM as it is published. They rank
methods; they do not predict figures for large models.
"""
_RULE = """The default takes the residual per parameter where a unit costs the same whatever else goes (no
parameter's size is a product of two that shrink: transformers, ConvNeXt), and the residual elsewhere. That rule was
found on these very models, all of them.
"""
_TRIED = """By single runs on a few of these nets, without a row of their own:

- The whole second moment of the gradient at a tap in place of one power for it (`W Wᵀ` scaled): no better on
  average, and as dear as the moments of the activations.
- Fits that weigh every sample or place by its gradient's square: no gain on any net, a loss on the ViT.
- Writers of a residual stream that make up for the error the stream already carries: next to nothing.
- Two to ten times the calibration data, cuts in two or four steps with new scores, biases for layers that had none:
  nothing beyond noise. What MobileNet loses at half of its parameters is not for want of data or of fitting layer by
  layer; its layers are narrow and hold little that others could tell.
- The square root of a unit's parameters as its price, between none and all of them: between the two.
- Prices that rise as a group's signal is used up (`−log(1 − share gone)` in place of the share): no better, with prices
  or without.
- Every other spread over heads and widths of the language model at 70 % and 50 %: the best is 0.2 points of perplexity
  from what the default takes. What is lost there is lost in fitting, not in choosing.
- Sixteen times the language model's text, of all modules and not of ten: 0.7 and 2.1 points of perplexity at 70 % and
  50 %, more than half of which as much text as now gains, if it is of all modules.
- Cuts of the language model in two and four steps: nothing with sequential compensation; with joint, two steps gain 0.2
  and 0.4 points at 70 % and 50 %.
- Forty steps of joint compensation in place of twenty: half a point and one point of perplexity there, on MobileNet
  nothing at half of its parameters, one point at a fifth.

Of others' ideas, by single runs on the language model: restoring the reading layer by least squares, and the norms of
its inputs in the metric (FASP), is what *least squares* and the residual do, interactions included. Units by OBS with
all that stay refitted (SlimGPT) are the residual; ratios that grow with depth are among the spreads above, and worse.
So are heads that go by measured perplexity (2SSP); its whole attention modules were not tried. First-order scores of
the loss over all groups (GISP) are *Taylor, global*; that it cuts in steps was tried with the residual, see above. A
fit that is kept from following few calibration data (RCPU, by rotations) has at most one point to win here at 70 % and
50 %: so much less the calibration data themselves lose.
"""


def write(rows: Sequence[Row], note: Mapping[str, Any], agreed: Mapping[str, Any], folder: Path) -> None:
    """`folder`/quality.md and the picture that it shows."""
    summary = Summary(with_default(rows))
    plots.write(summary, folder / PICTURE)
    (folder / "quality.md").write_text(page(summary, note, agreed))


def page(summary: Summary, note: Mapping[str, Any], agreed: Mapping[str, Any]) -> str:
    parts = [
        _HEAD.rstrip(),
        *_section(
            "In one table",
            [
                *_main(summary),
                "",
                *_RULE.split("\n"),
                *_verdict(summary),
                "",
                f"![Quality over kept parameters]({PICTURE})",
            ],
        ),
        *_section("Where the default is not the best", _elsewhere(summary)),
        *_section("Beside other packages", _rivals(summary)),
        *_section("The paper's recipe and the paper's package", _agreement(agreed)),
        *_section("Targets", [*_targets_text(), "", *targets.table(summary, DEFAULT.name)]),
        *_section("More than one cut, and training", _further(summary)),
        *_section("Joint compensation", _joint(summary)),
        *_section("BatchNorm statistics anew", _recalibration(summary)),
        *_section("Model by model", _models(summary)),
        *_section("Tried and left out", _TRIED.rstrip().split("\n")),
        *_section("What was run", _ran(summary, note)),
    ]
    return "\n".join(parts) + "\n"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *lines]


def _main(summary: Summary) -> list[str]:
    models, halves = _tabled(summary), _halves(summary)
    counts = f"{len(halves[0])} models that choose | {len(halves[1])} that confirm"
    names = "nothing | means | least squares | **sequential** | over seeds"
    lines = [
        f"| area over {len(models)} models | {names} | {counts} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    table = []
    for method in (DEFAULT, *METHODS):
        if not summary.has((method.name, SOLVED)):
            continue
        areas = {c: _cell(summary, (method.name, c), models) for c in COMPENSATIONS}
        solved = summary.average((method.name, SOLVED), models)
        spread = "one seed" if solved.spread is None else f"± {solved.spread:.3f}"
        name = f"**{method.name}**" if method == DEFAULT else method.name
        cells = [areas["none"], areas["mean"], areas[ONCE], f"**{areas[SOLVED]}**", spread]
        cells += [_cell(summary, (method.name, SOLVED), half) for half in halves]
        table.append((solved.mean, f"| {name} | " + " | ".join(cells) + " |"))
    return lines + [line for _, line in sorted(table, reverse=True)]


def _tabled(summary: Summary) -> list[str]:
    """Models that all methods have cut: what methods can be compared on."""
    found = [set(models) for m in METHODS if (models := summary.has((m.name, SOLVED)))]
    return [model for model in summary.models if all(model in models for models in found)]


def _cell(summary: Summary, recipe: Recipe, models: Sequence[str]) -> str:
    """The average over these models, or a dash where one of them was not cut this way."""
    if not models or not set(models) <= set(summary.has(recipe)):
        return "–"
    return f"{summary.average(recipe, models).mean:.3f}"


def _halves(summary: Summary) -> tuple[list[str], list[str]]:
    chooses = [m for m in _tabled(summary) if ENTRIES[m].chooses]
    return chooses, [m for m in _tabled(summary) if not ENTRIES[m].chooses]


def _verdict(summary: Summary) -> list[str]:
    """Which method wins on each half, and where FAIR's own stand: a paragraph a compensation."""
    lines = []
    for compensation, told in ((SOLVED, "sequential compensation"), (ONCE, "least squares")):
        names = [
            m.name for m in (DEFAULT, *METHODS) if set(_tabled(summary)) <= set(summary.has((m.name, compensation)))
        ]
        if len(names) > 1:
            lines += ["", _ranking(summary, names, compensation, told)]
    return lines[1:]


def _ranking(summary: Summary, names: Sequence[str], compensation: str, told: str) -> str:
    def mean(name: str, models: Sequence[str]) -> float:
        return summary.average((name, compensation), models).mean

    best = [max(names, key=lambda name: mean(name, half)) for half in _halves(summary) if half]
    said = [f"With {told}, the models that choose prefer *{best[0]}*"]
    if len(best) == 2:
        said[0] += "; the others confirm it" if best[0] == best[1] else f"; the others prefer *{best[1]}*"
    said[0] += "."
    overall = {name: mean(name, _tabled(summary)) for name in names}
    first = max(overall, key=lambda name: overall[name])
    if first != DEFAULT.name:
        said.append(f"The default, *{DEFAULT.name}*, is {overall[first] - overall[DEFAULT.name]:.3f} behind *{first}*.")
    for name in (n for n in names if n.startswith("FAIR")):
        gaps = [
            f"{_signed(overall[name] - overall[other])} to *{other}*"
            for other in dict.fromkeys((first, "random, uniform", "Taylor, uniform", "L1, uniform"))
            if other in overall
        ]
        said.append(f"*{name}*: {', '.join(gaps)}.")
    return " ".join(said)


def _elsewhere(summary: Summary) -> list[str]:
    """Models on which another method with the same compensation is ahead of the default, by more than `AHEAD`."""
    lines = []
    for compensation in (SOLVED, ONCE):
        for model in summary.has((DEFAULT.name, compensation)):
            areas = {m.name: summary.of(model, (m.name, compensation)) for m in (DEFAULT, *METHODS)
                     if (model, (m.name, compensation)) in summary.areas}  # fmt: skip
            own = areas[DEFAULT.name]
            better = sorted((n for n in areas if areas[n] > own + targets.AHEAD), key=lambda n: -areas[n])
            if better:
                told = ", ".join(f"*{name}* {areas[name]:.3f}" for name in better)
                lines.append(f"- {model}, {TOLD[compensation]}: {told}; the default {own:.3f}.")
    return lines or ["On no model is another method ahead by more than half a point of area."]


def _signed(gap: float) -> str:
    return f"{gap:+.3f}".replace("-", "−")


def _rivals(summary: Summary) -> list[str]:
    lines = [
        "Each with its own importance and allocation, as shipped; none compensates. Areas on the models that it could",
        "prune; ahead or even at so many budgets:",
        "",
        "| | models | area | default, bare | ahead | default, least squares | ahead | default, sequential | ahead |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for rival in RIVALS:
        models = summary.has((rival.name, "none"))
        if not models:
            lines.append(f"| {rival.name} | 0" + " | –" * 7 + " |")
            continue
        cells = [f"{len(models)}", f"{summary.average((rival.name, 'none'), models).mean:.3f}"]
        for compensation in ("none", ONCE, SOLVED):
            ours = (DEFAULT.name, compensation)
            good, count, behind = targets.ahead(summary, ours, (rival.name, "none"), models)
            cells += [_cell(summary, ours, models), f"{good} of {count}" if count else "–"]
            if behind and compensation != "none":
                notes.append(f"- With {compensation.replace('_', ' ')} behind {rival.name}: {'; '.join(behind)}.")
        lines.append(f"| {rival.name} | " + " | ".join(cells) + " |")
    return [*lines, *(["", *notes] if notes else [])]


def _agreement(agreed: Mapping[str, Any]) -> list[str]:
    return [
        f"network-pruner {agreed['packages']['network-pruner']} does not compute quite what the paper defines: U at",
        "interpolated quantiles where classes have unequal numbers, classes from the hundredth on never compared, R in",
        "train mode with BatchNorm's statistics moving, scaled and ranked by the batch size. The paper's definition is",
        '`recipe="paper"`. Both on digits, 64 of each class, in batches of 80:',
        "",
        *agreement.table(agreed["rows"]),
        "",
        f"(`python -m bench.quality --agreement`, {agreed['date'][:10]}, commit {agreed['commit'][:7]})",
    ]


def _targets_text() -> list[str]:
    return [
        f"Of *{DEFAULT.name}*, after one cut; shares are of the parameters that can be cut. Least squares and",
        "sequential compensation solve for every layer what it reads. Joint compensation goes on from there by",
        "gradients of the cut model, over the same calibration data: it has neither labels nor a learning rate, but it",
        "takes some twenty times as long as sequential compensation, and who calls that training may.",
    ]


def _further(summary: Summary) -> list[str]:
    """The targets again, where anything but one shot was run."""
    models = {model for how in FURTHER for model in summary.has((DEFAULT.name, how))}
    if not models:
        return ["Nothing was run."]
    columns = {SOLVED: "one shot, sequential", "iterated": f"in {STEPS} steps", "healed": "one shot, then healed"}
    return [
        f"The same targets, which are said of one shot, beside what does more: *{DEFAULT.name}* in {STEPS} steps,",
        "each scored anew and refitted layer after layer, and one shot that `heal` trained to answer as the uncut net",
        f"does, for {UPDATES} updates on the training data (MiniLM: on the calibration data, at a tenth of the rate).",
        "Healed nets have been trained, the others have not.",
        "",
        *targets.table(Summary(row for row in summary.rows if row.model in models), DEFAULT.name, columns),
    ]


def _joint(summary: Summary) -> list[str]:
    """Areas of the default with and without, on the models that were cut so."""
    recipe = (DEFAULT.name, JOINT)
    models = summary.has(recipe)
    if not models:
        return ["No model was fitted jointly."]
    lines = [f"Areas of *{DEFAULT.name}*, where it was run:", ""]
    lines += ["| | sequential | joint | seeds of joint |", "|---|---|---|---|"]
    for model in models:
        cells = [f"{summary.of(model, (DEFAULT.name, c)):.3f}" for c in (SOLVED, JOINT)]
        lines.append(f"| {model} | " + " | ".join(cells) + f" | {len(summary.areas[model, recipe])} |")
    return lines


def _recalibration(summary: Summary) -> list[str]:
    models = summary.has((DEFAULT.name, "none" + RECALIBRATED))
    what = "Forward passes in train mode over the calibration data give a cut net new BatchNorm statistics."
    if not models:
        return ["No model with BatchNorm was run."]
    lines = [
        f"{what} Areas on the {len(models)} models with BatchNorm, {', '.join(models)}:",
        "",
        "| | as cut | then anew | least squares | then anew | sequential | then anew |",
        "|---|---|---|---|---|---|---|",
    ]
    endings = [c + ending for c in ("none", ONCE, SOLVED) for ending in ("", RECALIBRATED)]
    for name in (*CLOSELY, *(rival.name for rival in RIVALS)):
        cells = [_cell(summary, (name, ending), models) for ending in endings]
        if set(cells) != {"–"}:
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _models(summary: Summary) -> list[str]:
    lines = []
    for model in summary.models:
        rows = [row for row in summary.rows if row.model == model]
        keeps = sorted({row.keep for row in rows}, reverse=True)
        before = sum({row.seed: row.before for row in rows}.values()) / len({row.seed for row in rows})
        lines += [
            f"### {model}",
            "",
            f"{rows[0].metric} before: {before:.4g}; {rows[0].cuttable:.0%} of the parameters can be cut.",
            "",
            "| quality left at | area | " + " | ".join(f"{keep:.0%}" for keep in keeps) + " |",
            "|---" * (2 + len(keeps)) + "|",
        ]
        shown = [(name, JOINT) for name in JOINTLY]
        shown += [(m.name, SOLVED) for m in METHODS] + [(name, ONCE) for name in CLOSELY]
        shown += [(DEFAULT.name, "none"), ("FAIR ToD, paper recipe", "none"), *((r.name, "none") for r in RIVALS)]
        for recipe in (r for r in shown if (model, r) in summary.areas):
            cells = [f"{summary.at(model, recipe, keep):.3f}" for keep in keeps]
            name = f"{recipe[0]}; {TOLD[recipe[1]]}" if recipe[0] not in {r.name for r in RIVALS} else recipe[0]
            lines.append(f"| {name} | {summary.of(model, recipe):.3f} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines[:-1]


def _ran(summary: Summary, note: Mapping[str, Any]) -> list[str]:
    seeds = {model: sorted({row.seed for row in summary.rows if row.model == model}) for model in summary.models}
    told = ", ".join(
        f"{model} ({len(found)} {'seed' if len(found) == 1 else 'seeds'})" for model, found in seeds.items()
    )
    missing = [name for name in ENTRIES if name not in seeds]
    packages = ", ".join(f"{name} {version}" for name, version in note["packages"].items() if version)
    cuts = sum(row.method != DEFAULT.name for row in summary.rows)
    lines = [f"{cuts} cuts: {told}." + (f" Not yet run: {', '.join(missing)}." if missing else "")]
    if note["left_out"]:
        lines += ["", "Left out:", ""]
        reasons: dict[tuple[str, str], list[str]] = {}
        for item in note["left_out"]:
            found = reasons.setdefault((item["method"], item["reason"]), [])
            if item["model"] not in found:
                found.append(item["model"])
        lines += [f"- {method} on {', '.join(models)}: `{reason}`" for (method, reason), models in reasons.items()]
    where = f"{note['date'][:10]}, {note['device']}, {note['threads']} thread, Python {note['python']}"
    return [*lines, "", f"(`python -m bench.quality`, {where}, {packages}, commit {note['commit'][:7]})"]
