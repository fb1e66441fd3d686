"""One process of several: `python -m tests.sharded.rank MODULE RANK SIZE FOLDER` runs a module's cases, in order.

Writes into FOLDER, by name, what each of them failed with, as JSON; nothing where it did not.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

LIMIT = timedelta(seconds=60)  # for which one that waits for another waits
HANGS = 150  # seconds after which it says where it waits, and ends


def main(module: str, rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(HANGS, exit=True)  # where it waits for others
    warnings.simplefilter("ignore")
    cases = importlib.import_module(module)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=LIMIT)
    names = cases.CASES if size == 2 else cases.THREE
    said = dict.fromkeys(names, "an earlier case failed, here or in another process")
    for name in names:
        try:
            getattr(cases, name)()
            said[name] = ""
        except Exception:
            said[name] = traceback.format_exc()
            break  # the others may be waiting, and hear that we have gone
    (folder / f"said{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
