"""Every benchmark: by which command it is made anew, what it measures and which files it leaves.

`python -m bench` lists them and runs one by its name; CONTRIBUTING.md's table is written from them. The rows of a GPU
(`bench/gpu/table.py`) are one entry: they share a command, a device and a file.
"""

from __future__ import annotations

from dataclasses import dataclass

NOT_KNOWN = "not yet known"  # how long one takes that has not been run as it stands, and so has no results file


@dataclass(frozen=True)
class Entry:
    """One benchmark. `command` writes every file of `writes`, paths from the repository's root."""

    name: str
    command: str  # `python …` or `pytest …`, without quotes
    what: str
    takes: str  # roughly, on two quiet cores
    writes: tuple[str, ...]
    extra: str = ""  # optional dependencies, of pyproject.toml
    gpu: bool = False  # it is skipped where torch sees no CUDA device

    @property
    def needs(self) -> str:
        return "a GPU" if self.gpu else f"[{self.extra}]" if self.extra else ""


def _tests(name: str, what: str, takes: str) -> Entry:
    """A module of pytest, whose rows `conftest.py` writes."""
    command = f"pytest bench/test_{name}.py --write-results"
    return Entry(name, command, what, takes, (f"bench/results/{name}.json",), "bench")


ENTRIES = {
    entry.name: entry
    for entry in (
        _tests("scoring", "scoring against forward + backward over the same batches", "minutes"),
        _tests("memory", "what stages add to a model's weights, each in a process of its own", "minutes"),
        _tests("network_pruner", "scoring against the package of the method's paper", "minutes"),
        _tests("tracing", "tracing and proving against a forward pass; 70 billion parameters on meta", "minutes"),
        _tests("allocation", "a new budget from stored scores", "seconds"),
        _tests("reporting", "`prune` with its report against its stages, on a language model", "minutes"),
        _tests("sweep", "`sweep` over 6 budgets and 3 methods against one scoring pass and the evaluations", "minutes"),
        _tests("latency", "predicted against measured latency of cut models", "minutes"),
        _tests("operators", "operators against what one would write without them", "minutes"),
        _tests(
            "compaction",
            "a checkpoint cut by a plan against its files copied; models against deepcopy and torch-pruning",
            "minutes",
        ),
        _tests("elimination", "ordering units by second-order saliency against a matrix product", "minutes"),
        Entry(
            "gpu",
            "pytest -m gpu",
            "a GPU's tests, then operators and scoring against what the device could do",
            NOT_KNOWN,
            ("bench/results/gpu.json",),
            gpu=True,
        ),
        Entry(
            "gpu_rehearsal",
            "python -m bench.gpu_rehearsal",
            "what `bench/gpu/run.sh` does on a GPU in seven minutes, on the CPU, small, under the same clock",
            "minutes",
            ("bench/results/gpu_rehearsal.json",),
            "test",
        ),
        Entry(
            "triton_compiled",
            "python -m bench.triton_compiled",
            "registers and spills of every Triton kernel on every architecture; no GPU is needed",
            "minutes",
            ("bench/results/triton_compiled.json",),
        ),
        Entry(
            "thresholds",
            "python -m bench.thresholds",
            "how to sort how many samples; `ops/wasserstein/config.py` must say the same",
            "minutes",
            ("bench/results/thresholds.json",),
        ),
        Entry(
            "demo",
            "python -m bench.demo",
            "the demo: accuracy, size, latency and times of its stages",
            "a minute",
            ("bench/results/demo.json",),
            "demo",
        ),
        Entry(
            "zoo",
            "python -m bench.zoo",
            "whole model families: traced, cut three ways, loaded again",
            "an hour",
            ("bench/results/zoo.json", "docs/zoo.md"),
            "zoo",
        ),
        Entry(
            "quality",
            "python -m bench.quality",
            "what small nets keep after every way of cutting, at every budget",
            "an hour or two",
            (
                "bench/results/quality.csv",
                "bench/results/quality.json",
                "bench/results/quality_agreement.json",
                "docs/quality.md",
                "docs/pictures/quality.png",
            ),
            "quality",
        ),
        Entry(
            "intercepts",
            "python -m bench.intercepts",
            "what it costs a language model that compensation may add no bias",
            "minutes",
            ("bench/results/intercepts.json",),
            "quality",
        ),
        Entry(
            "depth",
            "python -m bench.depth",
            "what nets keep at three quarters of their time for one sample, with branches as units and without",
            "minutes",
            ("bench/results/depth.json", "docs/pictures/depth.png"),
            "quality",
        ),
        Entry(
            "shipping",
            "python -m bench.shipping",
            "a dozen families of language models: folder in, pruned folder out, opened by transformers alone",
            "a quarter of an hour",
            ("bench/results/shipping.json",),
            "hf",
        ),
        Entry(
            "large_walk",
            "python -m bench.large_walk",
            "a Llama of 1.1 billion parameters through the command line in 1.5 GB of addresses, a block at a time",
            "half an hour",
            ("bench/results/large_walk.json",),
            "hf",
        ),
        Entry(
            "scaling",
            "python -m bench.scaling",
            "scoring as parameters, widths, classes, tokens and processes grow; on paper, models that are not at hand",
            "minutes",
            ("bench/results/scaling.json", "docs/scaling.md"),
            "quality",
        ),
        Entry(
            "growth",
            "python -m bench.growth",
            "how the operators' time grows with classes, samples and channels, against laws written down before",
            "a minute",
            ("bench/results/growth.json", "docs/pictures/growth.png"),
            "quality",
        ),
        Entry(
            "comparison",
            "python -m bench.comparison",
            "what fairkern and others can do, tried feature by feature, each in an environment of its own",
            "a quarter of an hour",
            ("bench/results/comparison.json",),
            "hf",
        ),
        Entry(
            "first_run",
            "python -m bench.first_run",
            "from a clone to the demo's result as README says, without the time of downloads",
            "minutes",
            ("bench/results/first_run.json",),
        ),
        Entry(
            "matrix",
            "python -m bench.matrix",
            "README's tests and every Triton kernel, under every torch that is supported with the Triton of each",
            "a quarter of an hour for each torch",
            ("bench/results/matrix.json",),
        ),
        Entry(
            "graphs",
            "python -m bench.graphs",
            "random models, by their seeds: what fails is printed, or reduced; `reliability` keeps the figures",
            "half an hour",
            (),
        ),
        Entry(
            "reliability",
            "python -m bench.reliability",
            "damaged files, kills, interrupts, threads, fuzzing, random models, a soak, coverage: what came of them",
            "hours",
            ("bench/results/reliability.json", "docs/reliability.md"),
            "reliability",
        ),
        Entry(
            "mutation",
            "python -m bench.mutation",
            "small changes to the code that decides, and how many of them a test notices",
            "half an hour",
            ("bench/results/mutation.json",),
            "test",
        ),
        Entry(
            "documents",
            "python -m bench.documents",
            "measures nothing: fills the documents from the results files and from this registry",
            "seconds",
            ("README.md", "CONTRIBUTING.md", "docs/performance.md", "docs/guide/comparison.md"),
        ),
    )
}
