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
    isa: int,
    directions: int,
    positions: int,
    network_limit: int,
    begins: int,
    places: int,
    per_set: int,
) -> None: ...
def wasserstein_1d(
    element: int,
    x: int,
    x_stride_n: int,
    x_stride_c: int,
    n: int,
    y: int,
    y_stride_n: int,
    y_stride_c: int,
    m: int,
    columns: int,
    power: int,
    network_limit: int,
    out: int,
    threads: int,
    isa: int,
) -> None: ...
def project(
    element: int,
    x: int,
    stride_n: int,
    stride_c: int,
    stride_d: int,
    rows: int,
    samples: int,
    channels: int,
    positions: int,
    directions: int,
    projections: int,
    out: int,
    threads: int,
    isa: int,
) -> None: ...
def gram(
    element: int,
    x: int,
    stride_c: int,
    stride_outer: int,
    stride_inner: int,
    channels: int,
    outer: int,
    inner: int,
    rows: int,
    out: int,
    threads: int,
    isa: int,
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
    wide: bool,
    accumulate: bool,
    scale: float,
    threads: int,
    isa: int,
) -> None: ...
def tod_curves(u: int, r: int, sizes: int, groups: int, out: int, threads: int) -> None: ...
def eliminate_steps(
    element: int,
    table: int,
    count: int,
    units: int,
    steps: int,
    chosen: int,
    added: int,
    threads: int,
    isa: int,
) -> None: ...
def eliminate_small(
    table: int,
    count: int,
    units: int,
    most: int,
    rounding: float,
    chosen: int,
    added: int,
    off: int,
    isa: int,
) -> int: ...
def gather(table: int, jobs: int, threads: int) -> None: ...
def build() -> dict[str, str | int | None]: ...

TASK_COLUMNS: int
TASK_BYTES: int
TASK_DIMS: int
BLOCK_ITEMS: int

def gather_plan(table: int, jobs: int, tasks: int) -> int: ...
def gather_emulate(tasks: int, jobs: int, blocks: int) -> None: ...
def gather_offsets(tasks: int, jobs: int, block: int, thread: int, i: int) -> tuple[int, int, int, int]: ...
