"""The model card of a pruned folder: what was done, in words and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairkern.errors import InputError
from fairkern.hf.decoder import family_of
from fairkern.hf.folder import CONFIG, Folder
from fairkern.hf.weights import configuration
from fairkern.plans.serving import YES, Server
from fairkern.types import Plan, PlanGroup, Report
from fairkern.version import package_version

CARD = "README.md"
_MEASURES = {
    "params": ("parameters", "{:,.0f}"),
    "flops": ("FLOPs of the example inputs", "{:,.0f}"),
    "perplexity": ("perplexity, held out", "{:.4g}"),
    "tokens_per_second": ("tokens per second, one sequence", "{:.4g}"),
    "cache_bytes_per_token": ("bytes of cache per token", "{:,.0f}"),
    "latency_ms": ("latency, ms", "{:.3g}"),
}
_BRANCH = "branch"
_PLURAL = {_BRANCH: "branches of layers"}
_LOADS = "It loads with `from_pretrained`, without fairkern."


def card(
    small: Any, plan: Plan, like: Folder, done: Report | None, loads: str = _LOADS, *, untrained: bool = False
) -> str:
    """Markdown, with the header that the hub reads. Nothing in it depends on where the folder lies.

    `untrained`: nothing can have trained `small` since it was cut, which the card then says.
    """
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
        f"{_what(plan, untrained)} {loads} `plan.json` has every position that went.",
        _figures(small, plan, done),
        _removed(small, plan, like),
        "" if done is None else _said(done),
        _served(plan, like, done),
    ]
    text.append(f"Made by fairkern {package_version()}" + (f", {_versions(done)}." if done is not None else "."))
    return "\n".join(header) + "\n\n" + "\n\n".join(part for part in text if part) + "\n"


def _what(plan: Plan, untrained: bool) -> str:
    kinds = sorted({_PLURAL.get(g.kind, f"{g.kind}s") for g in plan.groups if g.removed.size})
    gone = " and ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds) or "nothing"
    since = "; it was not trained afterwards." if untrained else "."
    return f"Removed by fairkern from the model named above: {gone}{since}"


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


def _figures(small: Any, plan: Plan, done: Report | None) -> str:
    """Measures of the report, and of none the plan's; parameters are always those that are written."""
    result = plan.result
    columns: dict[str, Mapping[str, Any]] = {}
    for when in ("before", "after"):
        columns[when] = getattr(done, when) if done else {k: result[f"{k}_{when}"] for k in ("params", "flops")}
    if done is not None and done.healed:
        columns = {"before": columns["before"], "one shot": columns["after"], "healed": done.healed}
    last = list(columns)[-1]
    columns[last] = {**columns[last], "params": sum(p.numel() for p in small.parameters())}
    rows = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, (label, form) in _MEASURES.items():
        found = [measures.get(name) for measures in columns.values()]
        if found[0] is not None and any(value is not None for value in found[1:]):
            rows.append(f"| {label} | {' | '.join('' if v is None else form.format(v) for v in found)} |")
    return "\n".join(rows)


def _removed(small: Any, plan: Plan, like: Folder) -> str:
    """Units of each kind that went, and the configuration's fields that followed."""
    lines = _layers([group for group in plan.groups if group.kind == _BRANCH])
    for kind in sorted({group.kind for group in plan.groups} - {_BRANCH}):
        groups = [group for group in plan.groups if group.kind == kind]
        gone, whole = sum(group.removed.size for group in groups), sum(group.total for group in groups)
        lines += [f"- {gone:,} of {whole:,} units of the kind {kind}"] if gone else []
    fields = {c.name: (c.before, c.after) for c in plan.config}
    for name, after in small.config.to_dict().items():
        before = like.config.get(name)
        if type(before) is int and type(after) is int and before != after:  # whole layers, which no axis counts
            fields.setdefault(name, (before, after))
    said = [f"{name} {'unset' if before is None else before} → {after}" for name, (before, after) in fields.items()]
    lines += [f"- configuration: {', '.join(said)}"] if said else []
    lines += [f"- {said}" for said in plan.result.get("left_alone", ())]
    return "Removed:\n\n" + "\n".join(lines) if lines else ""


def _layers(groups: Sequence[PlanGroup]) -> list[str]:
    """Branches by the list of layers that they lie in; whole layers where all branches of the same ones went."""
    lists: dict[str, list[PlanGroup]] = {}
    for group in groups:
        lists.setdefault(group.name.partition(".*")[0], []).append(group)
    lines = []
    for name, branches in lists.items():
        first = branches[0].removed
        if len(branches) > 1 and first.size and all(np.array_equal(first, b.removed) for b in branches):
            lines.append(f"- {first.size:,} of {branches[0].total:,} layers of {name}")
        else:
            lines += [f"- {b.removed.size:,} of {b.total:,} branches {b.name}" for b in branches if b.removed.size]
    return lines


def _said(done: Report) -> str:
    data, choices = done.choices.get("data", {}), done.choices
    request = dict(choices.get("request", {}))
    asked = [f"{key}={value}" for key, value in request.items() if _short(value)]
    drop = request.get("drop")
    if isinstance(drop, Mapping):
        asked.insert(0, "drop " + ", ".join(f"{kind}={count}" for kind, count in drop.items()))
    lines = [f"- asked for: {', '.join(asked)}"] if asked else []
    if data:
        lines.append(
            f"- calibrated on {data['calibration']['tokens']:,} tokens and measured on {data['held_out']['tokens']:,} "
            f"others, {data['layout']}, sequences of {data['sequence']}"
            + (f", of {data['file']}" if "file" in data else "")
        )
    if choices.get("compensation"):
        lines.append(f"- compensation: {choices['compensation']}")
    if done.timing.get("steady") is False:
        lines.append("- measured while the clock was unsteady, as beside other work: what times say holds little")
    return "How:\n\n" + "\n".join(lines) if lines else ""


def _served(plan: Plan, like: Folder, done: Report | None) -> str:
    """Per server whether it can load what is left; a report knows of biases that compensation added."""
    answers = (done.choices.get("serves") if done is not None else None) or plan.result.get("serves") or {}
    lines = [f"- {server}: {said}" for server, said in answers.items()]
    if answers.get(Server.GGUF.value) == YES and (why := _not_exported(like)):
        own = f"- {Server.GGUF.value}: by llama.cpp's own converter (`fairkern export` does not write it: {why})"
        lines = [own if line == f"- {Server.GGUF.value}: {YES}" else line for line in lines]
    return "Who loads it:\n\n" + "\n".join(lines) if lines else ""


def _not_exported(like: Folder) -> str:
    """Why `export_gguf` refuses models of this configuration; empty where it does not."""
    if like.own_code:
        return "its code is the folder's own"
    try:
        family_of(configuration(like))
    except InputError as error:
        return str(error).replace(str(like.path / CONFIG), CONFIG)
    return ""


def _short(value: Any) -> bool:
    return value is not None and not isinstance(value, (list, tuple, Mapping))


def _versions(done: Report) -> str:
    return ", ".join(f"{name} {found}" for name, found in done.versions.items() if name != "fairkern")
