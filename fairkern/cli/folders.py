"""`fairkern prune --hf`: a folder of transformers in, a smaller one out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import fairkern as fk
from fairkern.cli.arguments import part, path, positive
from fairkern.cli.files import there

_DTYPES = ("float32", "float16", "bfloat16")
_OWN = ("data", "sequence", "samples", "held_out", "packing", "padding", "batch_size", "dtype")


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Options of a folder and of the text that it is calibrated on."""
    group = parser.add_argument_group(
        "a language model", "a local folder of transformers in, instead of MODEL and LOADER; one of the same kind out"
    )
    group.add_argument("--hf", type=path, metavar="DIR", help="folder with configuration, weights and tokenizer")
    lines = (
        "text, of which about eight paragraphs in a row are a document, or .jsonl, of which every line is one, with "
    )
    lines += "text, messages, or prompt and completion; a part of the documents is held out"
    group.add_argument("--data", type=path, metavar="FILE", help=lines)
    length = "length of a sequence (default: 512, or the model's positions where those are fewer)"
    group.add_argument("--sequence", type=positive, metavar="TOKENS", help=length)
    most = "calibrate, and measure, on at most so many sequences (default: 128)"
    group.add_argument("--samples", type=positive, metavar="N", help=most)
    share = "share of the documents that only perplexity is measured on (default: 0.1)"
    group.add_argument("--held-out", type=part, metavar="SHARE", help=share)
    apart = "a sequence per document, padded, instead of documents in a row"
    group.add_argument("--no-packing", dest="packing", action="store_const", const=False, help=apart)
    group.add_argument("--padding", choices=("left", "right"), help="where documents are padded")
    group.add_argument("--batch-size", type=positive, metavar="N", help="sequences of a batch (default: 4)")
    group.add_argument("--dtype", choices=_DTYPES, help="score and write in it (default: the folder's own)")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that the folder brings")


def check_given(arguments: argparse.Namespace) -> None:
    """Raises `InputError` unless there is either a folder with its data or a model with its loader."""
    if arguments.hf is None:
        if arguments.model is not None and Path(arguments.model).is_dir():
            data = arguments.data or arguments.loader or "FILE"
            raise fk.InputError(
                f"{arguments.model} is a folder: name it with --hf, and its text with --data "
                f"(fairkern prune --hf {arguments.model} --data {data})"
            )
        if arguments.model is None or arguments.loader is None:
            raise fk.InputError("name a MODEL and a LOADER, or a folder and its data: --hf DIR --data FILE")
        given = [name for name in _OWN if getattr(arguments, name) is not None]
        if given or arguments.trust_remote_code:
            option = (given or ["trust_remote_code"])[0].replace("_", "-").replace("packing", "no-packing")
            raise fk.InputError(f"--{option} is of a folder: name it with --hf DIR")
    elif arguments.model is not None:
        raise fk.InputError(f"--hf names what to prune, and so does {arguments.model!r}: give one of them")
    elif arguments.data is None:
        raise fk.InputError("--hf needs text to calibrate on: name its file with --data FILE")


def prune_folder(arguments: argparse.Namespace, out: Path, options: dict[str, Any]) -> fk.Report:
    """What `fk.hf.prune` reports; `options` are those of `fk.prune`."""
    if arguments.hf.parent.is_dir():  # else it looks like a name on a hub, of which the library says its part
        there(arguments.hf, "folder")
    there(arguments.data, "file")
    own = {name: found for name in _OWN[1:] if (found := getattr(arguments, name)) is not None}
    if "dtype" in own:
        own["dtype"] = getattr(torch, own["dtype"])
    if arguments.device is not None:
        own["device"] = arguments.device
    own["trust_remote_code"] = arguments.trust_remote_code
    return fk.hf.prune(arguments.hf, arguments.data, out=out, **own, **options)
