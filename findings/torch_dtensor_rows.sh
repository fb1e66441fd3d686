#!/usr/bin/env bash
# torch: writing to rows of a DTensor that lies in several processes changes nothing, and there is no error.
#
# Guessed: `w[4:]` of a parameter in shards (`fully_shard`) is a view, as of any tensor, so `w[4:].zero_()` zeroes these
#   rows wherever they lie; at worst it raises.
# Seen with torch 2.14.1, two processes on gloo: a slice along the dimension that is shared is gathered first, so that it
#   is a copy: zero_, fill_ and mul_ on a slice, `narrow`, `select`, `chunk` or `split` change none of the parameter's
#   values. Along another dimension the same call writes, as it does for one process, and for `w[:]`; `w[4:] = 0` and
#   index_fill_ raise.
# Why it matters: it is how code masks units: `layer.weight.data[unit].zero_()` under FSDP2 leaves the model as it was, and
#   what is measured then is the unpruned model. Tests with one process pass.
# fairkern: masks and cuts go by what lies in each process (tests/ranks/test_sharded.py).
#
# Installs torch in a temporary folder, runs it, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1
cat > "$place/rows.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

WRITES = {
    "w[4:].zero_()": lambda w: w[4:].zero_(),
    "w[4:].mul_(0)": lambda w: w[4:].mul_(0),
    "w[0].fill_(0)": lambda w: w[0].fill_(0),
    "w.narrow(0, 4, 2).zero_()": lambda w: w.narrow(0, 4, 2).zero_(),
    "w.select(0, 5).zero_()": lambda w: w.select(0, 5).zero_(),
    "w.chunk(2)[1].zero_()": lambda w: w.chunk(2)[1].zero_(),
    "w.split(3)[1].zero_()": lambda w: w.split(3)[1].zero_(),
    "w[:, 2:].zero_()": lambda w: w[:, 2:].zero_(),
    "w[:].zero_()": lambda w: w[:].zero_(),
    "w[4:] = 0": lambda w: w.__setitem__(slice(4, None), 0),
    "w.index_fill_(0, [4, 5], 0)": lambda w: w.index_fill_(0, torch.tensor([4, 5]), 0),
}
ORDINARY = [8, 8, 4, 8, 4, 12, 12, 12, 24]  # zeros in a tensor [6, 4] of ones
ACROSS = [0, 0, 0, 0, 0, 0, 0, 12, 24]


def zeros(write, tensor) -> object:
    try:
        write(tensor)
    except (RuntimeError, NotImplementedError):
        return "raises"
    return int(((tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor) == 0).sum())


def run(rank: int, size: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}{size}", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))
    found = {name: zeros(write, distribute_tensor(torch.ones(6, 4), mesh, [Shard(0)])) for name, write in WRITES.items()}
    if rank == 0:
        print("processes:", size, found)
    expected = [*(ORDINARY if size == 1 else ACROSS), "raises", "raises"]
    assert list(found.values()) == expected, found
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    plain = [zeros(write, torch.ones(6, 4)) for write in WRITES.values()]
    assert plain == [*ORDINARY, 8, 8], plain
    for size in (1, 2):
        mp.spawn(run, (size, sys.argv[1]), size)
PYTHON
"$place/venv/bin/python" "$place/rows.py" "$place/store"
