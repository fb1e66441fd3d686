"""The model card of a pruned folder: what was done, in words and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fairkern.artefacts.files import package_version
from fairkern.hf.folder import Folder
from fairkern.types import Plan, Report

CARD = "README.md"
_MEASURES = {
    "params": ("parameters", "{:,.0f}"),
    "flops": ("FLOPs of the example inputs", "{:,.0f}"),
    "perplexity": ("perplexity, held out", "{:.4g}"),
    "tokens_per_second": ("tokens per second, one sequence", "{:.4g}"),
    "cache_bytes_per_token": ("bytes of cache per token", "{:,.0f}"),
    "latency_ms": ("latency, ms", "{:.3g}"),
}
_WHAT = (
    "Whole heads, neurons and experts were removed by fairkern from the model named above, in one shot; it was not "
    "trained afterwards."
)


_LOADS = "It loads with `from_pretrained`, without fairkern."


def card(plan: Plan, like: Folder, done: Report | None, loads: str = _LOADS) -> str:
    """Markdown, with the header that the hub reads. Nothing in it depends on where the folder lies."""
    name = like.path.resolve().name
    header = [
        "---",
        "library_name: transformers",
        f"base_model: {name}",
        *_licence(like),
        "tags:",
        "- pruned",
        "- fairkern",
        "---",
    ]
    text = [
        f"# {name}, pruned",
        f"{_WHAT} {loads} `plan.json` has every position that went.",
        _figures(plan, done),
        _removed(plan),
    ]
    if done is not None:
        text += [_said(plan, done)]
    text.append(f"Made by fairkern {package_version()}" + (f", {_versions(done)}." if done is not None else "."))
    return "\n".join(header) + "\n\n" + "\n\n".join(part for part in text if part) + "\n"


def _licence(like: Folder) -> list[str]:
    """What the folder's own card says of its licence, which holds for what is made of it."""
    path = like.path / CARD
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return []
    end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), 0)
    return [line for line in lines[1:end] if line.startswith(("license:", "license_name:", "license_link:"))]


def _figures(plan: Plan, done: Report | None) -> str:
    result = plan.result
    before: Mapping[str, Any] = done.before if done else {k: result[f"{k}_before"] for k in ("params", "flops")}
    after: Mapping[str, Any] = done.after if done else {k: result[f"{k}_after"] for k in ("params", "flops")}
    rows = ["| | before | after |", "|---|---|---|"]
    for name, (label, form) in _MEASURES.items():
        if before.get(name) is not None and after.get(name) is not None:
            rows.append(f"| {label} | {form.format(before[name])} | {form.format(after[name])} |")
    return "\n".join(rows)


def _removed(plan: Plan) -> str:
    """Units of each kind that went, and the configuration's fields that followed."""
    gone: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for group in plan.groups:
        gone[group.kind] += group.removed.size
        whole[group.kind] += group.total
    lines = [f"- {gone[kind]:,} of {whole[kind]:,} units of the kind {kind}" for kind in sorted(whole) if gone[kind]]
    fields = [f"{c.name} {'unset' if c.before is None else c.before} → {c.after}" for c in plan.config]
    lines += [f"- configuration: {', '.join(fields)}"] if fields else []
    lines += [f"- {said}" for said in plan.result.get("left_alone", ())]
    return "Removed:\n\n" + "\n".join(lines) if lines else ""


def _said(plan: Plan, done: Report) -> str:
    data, choices = done.choices.get("data", {}), done.choices
    asked = ", ".join(f"{key}={value}" for key, value in dict(choices.get("request", {})).items() if _short(value))
    lines = [f"- asked for: {asked}"] if asked else []
    if data:
        lines.append(
            f"- calibrated on {data['calibration']['tokens']:,} tokens and measured on {data['held_out']['tokens']:,} "
            f"others, {data['layout']}, sequences of {data['sequence']}"
            + (f", of {data['file']}" if "file" in data else "")
        )
    if choices.get("compensation"):
        lines.append(f"- compensation: {choices['compensation']}")
    lines += [f"- {server}: {said}" for server, said in dict(plan.result.get("serves") or {}).items()]
    return "How:\n\n" + "\n".join(lines)


def _short(value: Any) -> bool:
    return value not in (None, (), [], {}) and not isinstance(value, (list, tuple, dict))


def _versions(done: Report) -> str:
    return ", ".join(f"{name} {found}" for name, found in done.versions.items() if name != "fairkern")
