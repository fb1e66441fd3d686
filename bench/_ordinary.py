"""`python -m bench._ordinary FOLDER TEXT SEQUENCE SAMPLES`: an ordinary forward + backward of a folder's model over the
sequences that `fairkern prune --hf` calibrates on, one at a time; seconds and peak memory as a line of JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from bench._status import status
from fairkern.hf.folder import open_folder
from fairkern.hf.sequences import Layout, batches
from fairkern.hf.text import read_documents


def main(folder: str, text: str, sequence: int, samples: int) -> int:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    tokenizer = open_folder(folder).tokenizer()
    layout = Layout(sequence, samples, 0.1, 1, True, "right")
    data = batches(read_documents(Path(text), tokenizer), tokenizer, layout, model.config.vocab_size)
    started = time.monotonic()
    for batch in data.calibration:
        model(**batch).loss.backward()
        model.zero_grad(set_to_none=True)
    found = {
        "seconds": time.monotonic() - started,
        "peak_resident_bytes": status()["VmHWM"],
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
