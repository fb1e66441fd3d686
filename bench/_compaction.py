"""A checkpoint of the shapes of a decoder with experts, a plan for it, and what it takes to cut it or to copy it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

import fairkern as fk
from bench._status import status
from fairkern.artefacts.shard_writer import MANIFEST, ShardWriter
from fairkern.types import Axis, FilePart, Files, FileTensor, PlanAxis, Silence

KEEPS = 0.5
_HEAD = 128

Shapes = dict[str, tuple[int, ...]]


def shapes(width: int, inner: int, layers: int, experts: int, words: int) -> Shapes:
    """Of files: attention, a dense MLP in the first layer, and experts one by one in the others."""
    found: Shapes = {"model.embed_tokens.weight": (words, width)}
    for k in range(layers):
        path = f"model.layers.{k}"
        found |= {f"{path}.self_attn.{p}_proj.weight": (width, width) for p in "qkvo"}
        rows = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
        if k:
            found[f"{path}.mlp.gate.weight"] = (experts, width)
        for place in [f"{path}.mlp"] if not k else [f"{path}.mlp.experts.{e}" for e in range(experts)]:
            found |= {f"{place}.{name}.weight": shape for name, shape in rows.items()}
        found[f"{path}.input_layernorm.weight"] = (width,)
    return found | {"model.norm.weight": (width,), "lm_head.weight": (words, width)}


def write_checkpoint(folder: Path, of: Shapes, shard: int) -> None:
    """Random bfloat16, one tensor at a time."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    with ShardWriter(folder, {n: (torch.bfloat16, s) for n, s in of.items()}, job={}, largest=shard) as writer:
        for name in writer.order:
            bits = torch.randint(0, 1 << 14, of[name], generator=generator, dtype=torch.int16)
            writer.write(name, bits.view(torch.bfloat16))
        writer.finish()
    (folder / MANIFEST).unlink()


def plan_for(of: Shapes) -> fk.Plan:
    """Half of the heads, and of every expert's inner units other ones; experts are stacks in the model."""
    generator = np.random.default_rng(0)
    parameters, tensors, axes = dict(of), [], []

    def cut(name: str, dim: int, gone: np.ndarray) -> None:
        axes.append(PlanAxis(Axis(name, dim), parameters[name][dim], gone, Silence.NONE))

    def drawn(count: int) -> np.ndarray:
        return np.sort(generator.permutation(count)[: round(count * (1 - KEEPS))])

    layers = len({name.split(".")[2] for name in of if name.startswith("model.layers.")})
    for k in range(layers):
        path = f"model.layers.{k}"
        heads = drawn(of[f"{path}.self_attn.q_proj.weight"][0] // _HEAD)
        rows = (heads[:, None] * _HEAD + np.arange(_HEAD)).reshape(-1)
        for p in "qkv":
            cut(f"{path}.self_attn.{p}_proj.weight", 0, rows)
        cut(f"{path}.self_attn.o_proj.weight", 1, rows)
        own = [name for name in of if name.startswith(f"{path}.mlp.experts.")]
        if not own:
            gone = drawn(of[f"{path}.mlp.up_proj.weight"][0])
            for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
                cut(f"{path}.mlp.{name}.weight", dim, gone)
            continue
        experts = len(own) // 3
        inner, width = of[f"{path}.mlp.experts.0.up_proj.weight"]
        for name in own:
            del parameters[name]
        up, down = f"{path}.mlp.experts.gate_up_proj", f"{path}.mlp.experts.down_proj"
        parameters |= {up: (experts, 2 * inner, width), down: (experts, width, inner)}
        for e in range(experts):
            for name, first in (("gate_proj", 0), ("up_proj", inner)):
                part = FilePart(up, (e, (0, first, 1), (1, 0, 1)), inner)
                tensors.append(FileTensor(f"{path}.mlp.experts.{e}.{name}.weight", (inner, width), (part,)))
            part = FilePart(down, (e, (0, 0, 1), (1, 0, 1)), width)
            tensors.append(FileTensor(f"{path}.mlp.experts.{e}.down_proj.weight", (width, inner), (part,)))
        gone = np.stack([drawn(inner) for _ in range(experts)])
        cut(up, 1, np.concatenate([gone, gone + inner], axis=1))
        cut(down, 2, gone)
    return fk.Plan("Decoder", (), tuple(axes), (), parameters, files=Files(tuple(tensors)))


def copy(source: Path, out: Path) -> None:
    """The same files, byte by byte, and on the disk."""
    out.mkdir()
    for path in sorted(source.iterdir()):
        shutil.copyfile(path, out / path.name)
        with open(out / path.name, "rb+") as file:
            os.fsync(file.fileno())


def settle(source: Path, cached: bool) -> None:
    """Nothing is left to be written, and the files are in the page cache, or none of them is."""
    os.sync()
    for path in source.iterdir():
        with open(path, "rb") as file:
            if cached:
                while file.read(1 << 24):
                    pass
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _peak(found: list[int]) -> Iterator[None]:
    """The most memory that the process has held within, without pages of files: looked at every few milliseconds."""
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            found.append(status()["RssAnon"])
            time.sleep(0.002)

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()


def main() -> None:
    """`python -m bench._compaction CHECKPOINT PLAN OUT`: cuts it, and says how much memory the process has held."""
    source, plan, out = map(Path, sys.argv[1:])
    cut = fk.compact_checkpoint  # with which all of the package is imported
    before: list[int] = []
    with _peak(before):
        time.sleep(0.05)
    held: list[int] = []
    with _peak(held):
        done = cut(source, fk.Plan.load(plan), out)
    print(
        json.dumps({"bytes": done.before, "left": done.after, "peak_bytes": max(held), "imported_bytes": max(before)})
    )


if __name__ == "__main__":
    main()
