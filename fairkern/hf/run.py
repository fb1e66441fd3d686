"""A folder in, a smaller folder out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from fairkern import options as checks
from fairkern.allocate import refuse_unknown
from fairkern.artefacts.folders import check_out
from fairkern.checks import check_device
from fairkern.errors import InputError
from fairkern.evaluating import Evaluate
from fairkern.hf import by_blocks
from fairkern.hf.by_blocks import Request
from fairkern.hf.file_names import named_if_said
from fairkern.hf.folder import Folder, open_folder
from fairkern.hf.measures import cache_bytes_per_token, perplexity, tokens_per_second
from fairkern.hf.needed import quiet, transformers
from fairkern.hf.output import write
from fairkern.hf.sequences import Batch, Data, Layout, batches
from fairkern.hf.text import read_documents
from fairkern.hf.uneven import check_served, loads, write_uneven
from fairkern.hf.walks import Chosen, chosen
from fairkern.model.nested import can_take
from fairkern.plans.serving import YES
from fairkern.pruning import PruningOptions
from fairkern.pruning import prune as prune_model
from fairkern.pruning.options import planned
from fairkern.ranks import Ranks, RanksLike, entered, shared
from fairkern.results import PathLike, Report
from fairkern.surroundings import stage
from fairkern.walk import Walk

_HF = "hf"
_SCHEMAS = {"vllm": "anymodel"}  # who reads block configs; llama.cpp reads what `export_gguf` writes
_SEQUENCE = 512
_PROMPT = 16  # tokens before those that are timed


_TARGETS = ("tod", "keep_params", "keep_flops", "keep_latency", "drop")
_OWN = (
    *("out", "sequence", "samples", "held_out", "packing", "padding", "batch_size"),
    *("dtype", "device", "trust_remote_code", "ranks"),
)


class FolderOptions(PruningOptions, total=False):
    """Keywords of `fk.prune`, which it is given."""

    tod: float | None
    keep_params: float | None
    keep_flops: float | None
    keep_latency: float | None
    drop: Mapping[str, int] | None
    iterations: int
    compensate: str | None
    biases: str | bool
    inplace: bool
    unused: Iterable[str]
    depth: bool
    evaluate: Evaluate | None


@stage
@shared
def prune(
    folder: PathLike,
    data: Any,
    *,
    out: PathLike,
    sequence: int | None = None,
    samples: int = 128,
    held_out: float = 0.1,
    packing: bool = True,
    padding: str | None = None,
    batch_size: int = 4,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    ranks: RanksLike = None,
    **options: Unpack[FolderOptions],
) -> Report:
    """Prune a language model of a local transformers folder, and write one that everything loads which loads the first.

    Args:
        folder: with config.json, weights (one file, or shards and their index), and a tokenizer. Its code is not run
            unless `trust_remote_code`.
        data: a file of text, of which some paragraphs in a row are a document; a file of JSON lines (.jsonl) with
            "text", with "messages", which go through the tokenizer's chat template, or with "prompt" and "completion",
            of which the loss is that of the completion; or a list of such entries, or of token ids (those need no
            tokenizer). The first documents are taken, as many as fill all samples.
        out: a new or an empty folder; it appears whole or not at all.
        sequence: tokens of a sequence, at most what the model has positions for; default: 512, or these.
        samples: sequences that are calibrated on, and measured on, at most.
        held_out: share of the documents that only perplexity is measured on: those whose hash is lowest, so that a
            document stays on its side whatever else is in the data.
        packing: put documents one behind the other, each with its end token, and cut them into sequences; False: a
            sequence per document, padded. What stands at padded places is heard in the statistics as well.
        padding: "left" or "right", of sequences that are not packed; default: as the tokenizer has it.
        batch_size: sequences of a batch.
        dtype: default: that of the folder, in which the model is scored and written, too.
        device: default: CUDA where there is one, else the CPU.
        trust_remote_code: run code of the folder, where transformers does not know the model itself.
        ranks: as for `fk.prune`: several processes, each with a copy of the model. The first measures and writes; with
            CUDA each takes the device of its number on its machine.
        options: of `fk.prune`: a budget, and what it says of planning, scoring and compensation. `evaluate` is given
            the model that was loaded, and what is left of it, beside what is measured anyway. `serve` is "hf" unless
            another is given: what is left can be described by a configuration with one number for all layers. For the
            others layers may differ, and what transformers does not load is written as `save_uneven` does: for "vllm"
            with block configs, for "gguf" and "deci" as `export_gguf` and `load_pruned` take it. `walk` is "whole", the
            model at once, or "blocks", one block of it at a time, each read from the files when it is its turn, and
            what is left of it written when it is done: the same plan, and weights that are the same up to rounding, for
            a model that is not there as a whole. Where neither is given it is "whole" if four times the weights are
            free (memory of the machine, its control group and address space, or the device), or if blocks cannot do
            what is asked for; `Report.choices["walk"]` says which and why. By blocks `tokens_per_second` and
            `latency_ms` are left out, and "joint" compensation, `iterations`, `depth`, `evaluate`, `keep_latency` and
            `serve` other than "hf" cannot be had; `memory_budget` is that of scoring. `walk_folder`: where what passes
            between blocks and second moments lie meanwhile; default: beside `out`. `keep_moments="FOLDER"`: second
            moments stay there.

    Returns:
        What was done; `before` and `after` have `perplexity` on the held-out part, `tokens_per_second` of greedy
        generation and `cache_bytes_per_token`; `scores` the signals that decided, for pages and pictures. The
        folder has it as report.json, beside plan.json and a card.

    Raises, before anything is run, InputError for a folder that lacks something or is quantised, data that is empty, no
    text, or shorter than a sequence, and an `out` that is not empty; ArtefactError for a truncated file. Then what
    `fk.prune` raises, and InputError where what was written does not open (`fk.hf.save`); then nothing is left. By
    blocks also InputError for a model that is no row of blocks, or of which all blocks share units.

    Cost: `fk.prune`, and a forward pass over the held-out part, 100 generated tokens and a copy of the weights, before
    and after. By blocks: some five forward passes and one backward; memory for a block's weights a few times over and
    the second moments of one of its layers; on the disk beside `out` what passes between two blocks, for all data, and
    all second moments.
    """
    if options.get("serve") is None:
        options["serve"] = _HF
    refuse_unknown("fk.hf.prune()", options, FolderOptions.__annotations__, _OWN)
    planning, budget, keep = planned(options, *map(options.get, _TARGETS))
    layout = _layout(sequence, samples, held_out, packing, padding, batch_size)
    trust, dtype = checks.flag("trust_remote_code", trust_remote_code), _dtype(dtype)
    team = entered(ranks)
    place = _device(device, team)
    target = team.told("the folder to write", lambda: check_out(checks.place("out", out)))
    transformers()
    source = open_folder(checks.place("folder", folder), trust)
    check_served(source, options["serve"])
    tokenizer = source.tokenizer() if source.has_tokenizer or _needs_tokenizer(data) else None
    documents = read_documents(data, tokenizer)
    asked = options.pop("walk", None)
    how = team.told("the walk", lambda: chosen(asked, source, options, dtype, place))

    def prepared(model: Any) -> Data:
        side = layout.padding if padding is not None or tokenizer is None else tokenizer.padding_side
        own = replace(layout, length=_length(model, sequence), padding=side)
        return _taken(model, batches(documents, tokenizer, own, _rows(model)))

    if how.walk is Walk.BLOCKS:
        if team.several:
            raise InputError(
                f"a model goes block by block in one process, and {team.size} are at work ({how.why}): start it "
                "without torchrun, or pass walk='whole' (--walk whole) where each process can hold the model"
            )
        request = Request(source, target, dtype, place, budget, keep, planning, options, prepared)
        return by_blocks.prune(request, partial(_choices, source, how))
    started = time.perf_counter()
    model, ignored = source.load(dtype, place)
    loaded = time.perf_counter()
    made = prepared(model)
    before = team.told("measures", lambda: _measures(model, made))
    measured = time.perf_counter()
    with quiet():  # proofs generate beyond the positions of a model that has few, of which it would warn
        small, report = prune_model(model, made.calibration, ranks=team, keep_scores="signals", **options)
    assert report.plan is not None
    plan = named_if_said(report.plan, source)
    own = sorted(before.keys() & report.before.keys())
    if own:
        raise InputError(f"evaluate gave a measure called {own[0]!r}, which is measured anyway: name it otherwise")
    again = time.perf_counter()
    after = team.told("measures", lambda: _measures(small, made))
    seconds = {"load": loaded - started, "measure": measured - loaded + time.perf_counter() - again}
    report = replace(
        report,
        plan=plan,
        before={**report.before, **before},
        after={**report.after, **after},
        stages={**report.stages, **seconds},
        choices={**report.choices, **_choices(source, how, made, ignored)},
        versions={**report.versions, "transformers": transformers().__version__},
    )
    return team.told("writing", lambda: _written(small, target, source, report, options["serve"]))


def _written(small: Any, target: Any, source: Folder, report: Report, serve: str | None) -> Report:
    """The report that lies in the folder, once that is there."""
    plan = report.plan
    assert plan is not None
    if serve == _HF or plan.result["serves"][_HF] == YES:
        write(small, plan, target, source, report, untrained=True)
    else:
        schema = _SCHEMAS.get(serve or "")
        report = replace(report, choices={**report.choices, "loads": loads(schema, source, source.path.resolve().name)})
        write_uneven(small, plan, target, source, schema, report, untrained=True)
    return report


def _layout(sequence: int | None, samples: int, share: float, packing: bool, padding: str | None, batch: int) -> Layout:
    if padding is not None and padding not in ("left", "right"):
        raise InputError(f"padding is {checks.short(padding)}; expected 'left' or 'right'")
    share = checks.real("held_out", share, "a share above 0 and below 1")
    if not 0 < share < 1:
        raise InputError(f"held_out={share} is not above 0 and below 1: so much of the data is measured on")
    return Layout(
        length=_SEQUENCE if sequence is None else checks.whole("sequence", sequence, 2),
        samples=checks.whole("samples", samples, 1),
        share=share,
        batch=checks.whole("batch_size", batch, 1),
        packed=checks.flag("packing", packing),
        padding=padding or "right",
    )


def _dtype(given: Any) -> torch.dtype | None:
    if given is not None and not (isinstance(given, torch.dtype) and given.is_floating_point):
        raise InputError(
            f"dtype is {checks.short(given)}; expected a floating dtype of torch, as torch.bfloat16, or None"
        )
    return given


def _device(given: Any, ranks: Ranks) -> torch.device:
    """What is asked for; of several processes each takes another of the devices of its machine."""
    number = f":{ranks.local % max(torch.cuda.device_count(), 1)}" if ranks.several else ""
    if given is None:
        return torch.device(f"cuda{number}" if torch.cuda.is_available() else "cpu")
    if str(given) == "cuda":
        given = f"cuda{number}"
    device = check_device(given)
    if device.type == "meta":
        raise InputError("device is 'meta', where nothing has values; expected for example 'cpu' or 'cuda'")
    return device


def _needs_tokenizer(data: Any) -> bool:
    return isinstance(data, (str, os.PathLike))


def _length(model: Any, sequence: int | None) -> int:
    """Of sequences. Raises InputError for a longer one than the model has positions for."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    most = most if isinstance(most, int) else sys.maxsize
    if sequence is not None and sequence > most:
        raise InputError(f"sequence={sequence} is longer than the {most} positions of the model: pass sequence={most}")
    return min(_SEQUENCE, most) if sequence is None else sequence


def _rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _taken(model: nn.Module, data: Data) -> Data:
    """The data without positions where the model works them out itself."""
    first = data.calibration[0]
    if can_take(model, first) or "position_ids" not in first:
        return data

    def without(batches: list[Batch]) -> list[Batch]:
        return [{name: tensor for name, tensor in batch.items() if name != "position_ids"} for batch in batches]

    return replace(data, calibration=without(data.calibration), held_out=without(data.held_out))


def _measures(model: Any, data: Data) -> dict[str, float]:
    ids = _prompt(data)
    cache = cache_bytes_per_token(model, ids)
    return {
        "perplexity": perplexity(model, data.held_out),
        "tokens_per_second": tokens_per_second(model, ids),
        **({} if cache is None else {"cache_bytes_per_token": cache}),
    }


def _prompt(data: Data) -> Tensor:
    """The first tokens of the first sequence that are no padding."""
    batch = data.calibration[0]
    ids = batch["input_ids"][0]
    mask = batch.get("attention_mask")
    return (ids if mask is None else ids[mask[0].bool()])[:_PROMPT]


def _choices(source: Folder, walk: Chosen, data: Data, ignored: tuple[str, ...]) -> dict[str, Any]:
    return {
        "folder": source.path.resolve().name,
        "data": dict(data.said),
        "walk": {"walk": walk.walk.value, "why": walk.why},
        **({"weights_without_a_place": list(ignored)} if ignored else {}),
    }
