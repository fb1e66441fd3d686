"""`python -m bench.large_walk`: a Llama of 1.1 billion parameters pruned block by block by the command line, in 1.5 GB.

The folder (random weights in bfloat16, 2.2 GB) is made tensor by tensor. The command runs in a process of its own that
may have 1.5 GB of addresses beyond what its imports took. Beside it: an ordinary forward + backward of the same data,
in a process without a limit; whether transformers loads what was written; and whether a smaller sibling of the same
class gives, block by block, the folder that it gives as a whole.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench._status import status
from bench.provenance import ROOT, versions, write_results
from bench.shipping.families import tokenizer, write_text
from fairkern.artefacts.shard_writer import MANIFEST, ShardWriter
from fairkern.artefacts.shards import open_shards

RESULTS = ROOT / "bench" / "results" / "large_walk.json"
LIMIT = 3 * 2**29  # 1.5 GB
SHARD = 500 * 10**6
# One arena, and blocks from 64 KiB on by themselves: else freed ones stay as holes in the heap, which are addresses.
_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
_EVERY = 0.02  # seconds between looks at the process
_FREE = 3  # times the weights that an ordinary forward + backward takes

TINY_LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
SIBLING: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Asked:
    """What the command is asked for."""

    sequence: int = 512
    samples: int = 16
    keep: float = 0.6
    threads: int = 2

    def arguments(self, folder: Path, text: Path, out: Path, walk: str) -> list[str]:
        named = {
            "--hf": folder,
            "--data": text,
            "--keep-params": self.keep,
            "--sequence": self.sequence,
            "--samples": self.samples,
            "--batch-size": 1,
            "--compensate": "sequential",
            "--device": "cpu",
            "--walk": walk,
            "--out": out,
        }
        return ["prune", *(str(word) for pair in named.items() for word in pair), "--quiet"]


def main() -> int:
    asked = Asked()
    with tempfile.TemporaryDirectory() as place:
        text = write_text(Path(place, "text.txt"))
        sibling = compared(Path(place, "small"), SIBLING, text, Asked(sequence=64, samples=16))
        row = measured(Path(place), TINY_LLAMA, text, asked, LIMIT)
    packages = versions(["transformers", "tokenizers", "accelerate"])
    write_results(RESULTS, packages=packages, rows=[{"model": "llama 1.1B", **row, "sibling": sibling}])
    return 0


def make_folder(folder: Path, settings: Mapping[str, Any], largest: int = SHARD) -> int:
    """A folder of a Llama in bfloat16 with random weights, one tensor in memory at a time; the bytes of its weights."""
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(**settings, bos_token_id=0, eos_token_id=1, pad_token_id=2, dtype="bfloat16")
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    folder.mkdir(parents=True)
    shapes = {name: (torch.bfloat16, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    with ShardWriter(folder, shapes, job={}, largest=largest) as writer:
        for number, name in enumerate(shapes):
            writer.write(name, _drawn(shapes[name][1], number))
        writer.finish()
    (folder / MANIFEST).unlink()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return sum(2 * int(torch.Size(shape).numel()) for _, shape in shapes.values())


def _drawn(shape: Sequence[int], number: int) -> Tensor:
    """Norms around one; matrices that hand on about as much as they are given."""
    generator = torch.Generator().manual_seed(number)
    if len(shape) == 1:
        return (1 + 0.1 * torch.randn(shape, generator=generator)).bfloat16()
    return torch.randn(shape, generator=generator, dtype=torch.float32).mul_(shape[1] ** -0.5).bfloat16()


def measured(place: Path, settings: Mapping[str, Any], text: Path, asked: Asked, limit: int) -> dict[str, Any]:
    """The command on a folder within a limit, beside an ordinary forward + backward, and whether the result loads."""
    folder, out = place / "model", place / "pruned"
    weights = make_folder(folder, settings)
    run = watched(["bench._limited", str(limit), *asked.arguments(folder, text, out, "blocks")], asked.threads)
    if run.code:
        raise RuntimeError(f"the command failed ({run.code}): {run.said}")
    report = json.loads((out / "report.json").read_text())
    ordinary: dict[str, Any] = {"left_out": f"it takes {_FREE} times the weights"}
    if _free() > _FREE * weights:
        ordinary = _ordinary(folder, text, asked)
    return {
        "weight_bytes": weights,
        "params": report["before"]["params"],
        "params_after": report["after"]["params"],
        "perplexity": [report["before"]["perplexity"], report["after"]["perplexity"]],
        "tokens": asked.sequence * asked.samples,
        "limit_bytes": limit,
        "imports_bytes": run.began["VmSize"],
        "seconds": run.ended - run.began["clock"],
        "peak_bytes": max(look["VmSize"] for look in run.looks) - run.began["VmSize"],
        "peak_resident_bytes": max(look["RssAnon"] for look in run.looks),
        "stages": run.stages(report["stages"]),
        "ordinary": ordinary,
        "opened": opened(out),
        "choices": {name: report["choices"][name] for name in ("walk", "compensation", "proven")},
    }


@dataclass
class Watched:
    """A process that has ended, and what it held from `began` on: the clock and sizes, look by look."""

    code: int
    said: str
    began: dict[str, Any]
    ended: float
    looks: list[dict[str, Any]] = field(default_factory=list)

    def stages(self, seconds: Mapping[str, float]) -> list[dict[str, Any]]:
        """Stages that followed each other, the last of them at the end: what each took and held at most."""
        rows, at = [], self.ended - sum(seconds.values())
        for stage, took in seconds.items():
            within = [look for look in self.looks if at <= look["clock"] <= at + took]
            peaks = {
                "peak_bytes": max((look["VmSize"] for look in within), default=0) - self.began["VmSize"],
                "peak_resident_bytes": max((look["RssAnon"] for look in within), default=0),
            }
            rows.append({"stage": stage, "seconds": took, **(peaks if within else {})})
            at += took
        return rows


def watched(module: Sequence[str], threads: int) -> Watched:
    """Runs a module of ours and looks at its sizes from the line on that it prints at the beginning."""
    own = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **_MALLOC}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *module], cwd=ROOT, env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=said
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        began = json.loads(first) if first else {}
        looks = []
        while process.poll() is None:
            try:
                looks.append({"clock": time.monotonic(), **status(process.pid)})
            except (FileNotFoundError, ProcessLookupError):
                break
            time.sleep(_EVERY)
        process.wait()
        ended = time.monotonic()
        process.stdout.close()
        said.seek(0)
        return Watched(
            process.returncode, said.read()[-2000:], began, ended, [look for look in looks if "VmSize" in look]
        )


def _ordinary(folder: Path, text: Path, asked: Asked) -> dict[str, Any]:
    words = [sys.executable, "-m", "bench._ordinary", folder, text, str(asked.sequence), str(asked.samples)]
    env = {**os.environ, "OMP_NUM_THREADS": str(asked.threads)}
    done = subprocess.run(list(map(str, words)), cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def opened(out: Path) -> dict[str, Any]:
    """What transformers finds in the folder, and whether it computes."""
    transformers = importlib.import_module("transformers")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto", output_loading_info=True)
    with torch.no_grad():
        logits = model.eval()(torch.arange(3, 35)[None]).logits
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return {"finite": bool(logits.isfinite().all()), **{kind: len(info[kind]) for kind in kinds}}


def compared(place: Path, settings: Mapping[str, Any], text: Path, asked: Asked) -> dict[str, Any]:
    """A folder that fits, pruned as a whole and by blocks: whether plans are equal, and how many tensors."""
    folder, outs = place / "model", {walk: place / walk for walk in ("whole", "blocks")}
    make_folder(folder, settings, largest=10**6)
    for walk, out in outs.items():
        run = watched(["bench._limited", "0", *asked.arguments(folder, text, out, walk)], asked.threads)
        if run.code:
            raise RuntimeError(f"the command failed ({run.code}): {run.said}")
    plans = [json.loads((out / "plan.json").read_text()) for out in outs.values()]
    with open_shards(outs["whole"]) as one, open_shards(outs["blocks"]) as other:
        same = [name for name in one.shapes if torch.equal(one.read(name), other.read(name))]
        far = max(_far(one.read(name), other.read(name)) for name in one.shapes)
        return {
            "plans_equal": plans[0]["axes"] == plans[1]["axes"],
            "tensors": len(one.shapes),
            "equal": len(same),
            "largest_difference": far,
            "names_equal": one.shapes == other.shapes,
        }


def _far(one: Tensor, other: Tensor) -> float:
    """Relative to the largest."""
    return float((one.double() - other.double()).abs().max() / one.double().abs().max().clamp_min(1e-30))


def _free() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


if __name__ == "__main__":
    sys.exit(main())
