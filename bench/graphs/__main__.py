"""`python -m bench.graphs [FROM:TO]`: prints the row of every seed that fails, and the figures of all.

`--reduce SEED`: takes pieces away from the model of a seed as long as it fails in the same way.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path

from bench.graphs import figures, run
from bench.graphs.check import examine, one_thread
from bench.graphs.grow import Recipe, drawn


def reduced(recipe: Recipe, scored: bool) -> Recipe:
    """The shortest recipe found that fails as this one does: with the same beginning of what is said."""
    said = examine(recipe, scored=scored).problem[:24]
    for simpler in (replace(recipe, tied=False), replace(recipe, by_name=False), replace(recipe, answer="tensor")):
        if said and examine(simpler, scored=scored).problem[:24] == said:
            recipe = simpler
    i = len(recipe.steps) - 1
    while said and i >= 0:
        if examine(shorter := recipe.without(i), scored=scored).problem[:24] == said:
            recipe, i = shorter, len(shorter.steps)
        i -= 1
    return recipe


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.graphs", description=__doc__)
    parser.add_argument("seeds", nargs="?", default="0:2000", help="FROM:TO")
    parser.add_argument("--most", type=int, default=9)
    parser.add_argument("--scored-every", type=int, default=3)
    parser.add_argument("--reduce", type=int)
    parser.add_argument("--rows", type=Path, help="a file for the rows, a line each")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.reduce is not None:
        with one_thread():
            recipe = reduced(drawn(options.reduce, options.most), options.reduce % options.scored_every == 0)
            print(recipe)
            examine(recipe, scored=options.reduce % options.scored_every == 0, raising=True)
        return
    first, last = map(int, options.seeds.split(":"))
    rows = []
    for row in run(range(first, last), most=options.most, scored_every=options.scored_every):
        rows.append(row)
        if options.rows is not None:
            with options.rows.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        if row.problem:
            print(row.seed, row.problem, row.pieces, flush=True)
    print(json.dumps(figures(rows), indent=1))


if __name__ == "__main__":
    main()
