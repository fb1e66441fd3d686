"""How processes come together for a stage, and what is asked of those that nothing was said to."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import torch.distributed as dist

from fairkern import env
from fairkern.errors import InputError
from fairkern.interrupts import unbroken
from fairkern.ranks import watch
from fairkern.ranks.team import ALONE, Ranks

T = TypeVar("T")
_Given = ParamSpec("_Given")
if TYPE_CHECKING:
    RanksLike: TypeAlias = bool | Ranks | dist.ProcessGroup | None
    """What `ranks=` may be: see `together`."""
else:  # torch may be built without
    RanksLike = bool | Ranks | getattr(dist, "ProcessGroup", Ranks) | None

_made: dict[Hashable, int] = {}  # how often these processes have come together


def together(given: Any, what: str) -> contextlib.AbstractContextManager[Ranks]:
    """The processes that `what` ("score()") is done by.

    `given`: None, where there is no process group: this one alone. True: those of the default group. A `ProcessGroup`:
    its own. False: this one alone, whatever there is. `Ranks`: those, which somebody has entered.

    An error within reaches the others, and nobody leaves before all have come to the end.
    Raises InputError where there is a group and nothing is given (or no group and True), for something else, and for a
    group that this process is not in.
    """
    if isinstance(given, Ranks):
        return contextlib.nullcontext(given)
    if given is not None and not isinstance(given, (bool, dist.ProcessGroup if dist.is_available() else bool)):
        raise InputError(
            f"ranks is a {type(given).__name__}; expected True, False or a process group of torch.distributed"
        )
    there, started = dist.is_available() and dist.is_initialized(), _started()
    if given is False or (given is None and started == 1):
        return contextlib.nullcontext(ALONE)
    if given is None:
        whole = what.replace("()", "(…, ranks=True)")
        first = "" if there else "torch.distributed.init_process_group(), then "
        raise InputError(
            f"{what} is called by one of {started} processes, and nothing says what the others do: {first}{whole} on "
            "all of them shares the work out; ranks=False is for one that works by itself"
        )
    if not there:
        raise InputError(
            "ranks=True, and there is no process group: start the processes with torchrun, and call "
            "torch.distributed.init_process_group() in each; or leave out ranks="
        )
    group = dist.group.WORLD if given is True else given
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise InputError(f"this process is not in the group that {what} is given as ranks=")
    if size == 1:
        return contextlib.nullcontext(ALONE)
    members = ",".join(map(str, dist.get_process_group_ranks(group)))
    number = _made[members] = _made.get(members, -1) + 1
    store = dist.PrefixStore(f"fairkern/{members}/{number}/", dist.distributed_c10d._get_default_store())
    return Ranks(rank, size, store).watched(what)


@contextlib.contextmanager
@unbroken
def launched(what: str) -> Iterator[Ranks]:
    """Around all that processes do that `torchrun` has started: a group of them, made with gloo where there is none.

    Within, calls are given this as `ranks=`. Of a process that was started by itself: it alone.
    """
    if env.processes() == 1:
        yield ALONE
        return
    if not dist.is_available():
        raise InputError(f"{env.processes()} processes were started, and this torch has no torch.distributed")
    made = not dist.is_initialized()
    if made:
        dist.init_process_group("gloo", timeout=timedelta(seconds=watch.COMING))
    try:
        with together(True, what) as ranks:
            yield ranks
    finally:
        if made:
            dist.destroy_process_group()


def speaks(without: int | None = None) -> bool:
    """Whether this process speaks for all that a launcher has started: the first does, and one that is by itself.
    `without`: one that cannot."""
    return env.processes() == 1 or env.rank() == (1 if without == 0 else 0)


def alone(given: Any, what: str) -> None:
    """Raises InputError where `what`, which only a single process does, is asked of several, or where one of several
    does not say with False that it works by itself."""
    if given is not None and given is not False:
        raise InputError(f"{what} is done by one process, and not shared out: pass ranks=False, or leave out ranks=")
    if given is None and _started() > 1:
        raise InputError(
            f"{what} is done by one process, and this is one of {_started()}: call it on rank 0 with ranks=False, and "
            "hand on what comes of it"
        )


def _started() -> int:
    """How many processes there are, of the process group, or as a launcher says."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else env.processes()


def shared(function: Callable[_Given, T]) -> Callable[_Given, T]:
    """A function whose `ranks=` says by which processes it is done: within, it is the `Ranks` that were entered."""

    @functools.wraps(function)
    def run(*args: _Given.args, **kwargs: _Given.kwargs) -> T:
        with together(kwargs.get("ranks"), f"{function.__name__}()") as ranks:
            kwargs["ranks"] = ranks
            return function(*args, **kwargs)

    return run


def measured(function: Callable[_Given, T]) -> Callable[_Given, T]:
    """A function that the first of the processes in `ranks=` carries out, and tells the others of."""

    @functools.wraps(function)
    def run(*args: _Given.args, **kwargs: _Given.kwargs) -> T:
        with together(kwargs.pop("ranks", None), f"{function.__name__}()") as ranks:
            return ranks.told(function.__name__, functools.partial(function, *args, **kwargs))

    return run


def entered(given: RanksLike) -> Ranks:
    """What `shared` has put in place of what was given."""
    return given if isinstance(given, Ranks) else ALONE
