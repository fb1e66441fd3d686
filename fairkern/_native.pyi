INTERFACE: int
GATHER_DIMS: int

def class_wasserstein(
    element: int,
    x: int,
    stride_n: int,
    stride_c: int,
    stride_p: int,
    units: int,
    projections: int,
    rows: int,
    offsets: int,
    classes: int,
    reduce: int,
    out: int,
    threads: int,
    isa: int = 0,
    directions: int = 0,
    positions: int = 0,
) -> None: ...
def taylor(
    element: int,
    act: int,
    grad: int,
    samples: int,
    before: int,
    channels: int,
    after: int,
    signed_sum: int,
    per_sample: int,
    activation: int,
    threads: int,
    isa: int = 0,
) -> None: ...
def gather(table: int, jobs: int, threads: int) -> None: ...
def build() -> dict[str, str | int | None]: ...

TASK_COLUMNS: int
TASK_BYTES: int
TASK_DIMS: int
BLOCK_ITEMS: int

def gather_plan(table: int, jobs: int, tasks: int) -> int: ...
def gather_emulate(tasks: int, jobs: int, blocks: int) -> None: ...
def gather_offsets(tasks: int, jobs: int, block: int, thread: int, i: int) -> tuple[int, int, int, int]: ...
