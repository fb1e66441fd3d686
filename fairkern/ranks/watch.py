"""Whether the other processes live, and what stopped one of them: told over the store of the process group."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from fairkern import errors
from fairkern.errors import FairkernError, RankError

BEAT = 1.0  # seconds between two signs of life
PATIENCE = 60.0  # seconds without one, after which a process is taken for dead
COMING = 600.0  # seconds that are waited for one that has never given any
LEAVING = 10.0  # seconds that one that stops waits for the others to hear why
_SHORTEST, _LONGEST = 0.0005, 0.02  # seconds between two looks at the store


class Watch:
    """What a process says of itself, and hears of the others, in a thread beside the work.

    Every process writes a sign of life into the store each second and looks at those of the others: so it does not
    depend on the backend of the group, on what the work is doing, nor on connections that break visibly, when one is
    found dead. One that stops with an error writes that down, and the others find it within a second.

    `failed`: why no more can come of it, once that is so.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank = store, rank
        self._others = [r for r in range(size) if r != rank]
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._dead: set[int] = set()
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fairkern-ranks", daemon=True)
        self.failed: FairkernError | None = None

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """Raises what has stopped another process, or RankError where one is gone. Costs nothing."""
        if self.failed is not None:
            raise self.failed

    def get(self, keys: Sequence[str]) -> list[bytes]:
        """The values of these keys, once all are there."""
        pause, keys = _SHORTEST, list(keys)
        with self._reaching():
            while not self._store.check(keys):
                self._hear(self._store)
                self.check()
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST)
            return [self._store.get(key) for key in keys]

    def set(self, key: str, value: bytes) -> None:
        with self._reaching():
            self._store.set(key, value)

    def forget(self, key: str) -> None:
        with self._reaching():
            self._store.delete_key(key)

    def tell(self, error: BaseException) -> None:
        """Say to the others what stops us, and give them time to hear it: this process may hold the store.

        An error that another one has said first, in the same words, is that one's from then on (`rank`).
        """
        try:
            own = _described(self._rank, error)
            said = json.loads(self._store.compare_set("error", "", json.dumps(own)))
            if isinstance(error, FairkernError) and own == {**said, "rank": own["rank"]} and said["rank"] != self._rank:
                error.rank = said["rank"]
            self._store.set(f"heard/{self._rank}", "")
            until = time.monotonic() + LEAVING
            while self._unheard() and time.monotonic() < until:
                time.sleep(_LONGEST)
        except RuntimeError:  # the store is gone, and with it whoever would hear
            pass

    def _unheard(self) -> bool:
        return any(not self._store.check([f"heard/{r}"]) for r in self._others if r not in self._dead)

    def gone(self, error: RuntimeError) -> FairkernError:
        """What to raise for an error of the transport: the reason, if it comes by."""
        until = time.monotonic() + 2 * BEAT
        while self.failed is None and time.monotonic() < until:
            time.sleep(_LONGEST)
        first = (str(error).splitlines() or [""])[0]
        return self.failed or RankError(f"the connection to another process of the run is lost: {first}")

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except FairkernError:
            raise
        except RuntimeError as error:
            raise self.gone(error) from error

    def _run(self) -> None:
        count = 0
        try:
            store = self._store.clone()  # the other one may be waited for
            while True:
                store.set(f"beat/{self._rank}", str(count))
                self._look(store)
                count += 1
                if self._ended.wait(BEAT):
                    return
        except RuntimeError as error:
            if not self._ended.is_set():
                first = (str(error).splitlines() or [""])[0]
                self.failed = self.failed or RankError(
                    f"the store of the process group cannot be reached any more: the process that holds it (rank 0, or "
                    f"torchrun) has ended ({first})"
                )

    def _hear(self, store: Any) -> None:
        """Of what has stopped another process."""
        if self.failed is None and store.check(["error"]):
            self.failed = _raised(json.loads(store.get("error")), self._rank)
            store.set(f"heard/{self._rank}", "")

    def _look(self, store: Any) -> None:
        self._hear(store)
        now = time.monotonic()
        for rank in self._others:
            value = store.get(f"beat/{rank}") if store.check([f"beat/{rank}"]) else None
            known, since = self._seen.get(rank, (None, self._started))
            if value != known and value is not None:
                self._seen[rank] = value, now
            elif now - since > (COMING if known is None else PATIENCE):
                self._dead.add(rank)
                self.failed = self.failed or _dead(rank, known is None)


def _dead(rank: int, never: bool) -> RankError:
    what = (
        f"has not come within {COMING:g} s: every rank of the group has to make the same calls"
        if never
        else f"has given no sign of life for {PATIENCE:g} s: it was killed, or its machine is gone"
    )
    error = RankError(f"rank {rank} {what}")
    error.rank = rank
    return error


def _described(rank: int, error: BaseException) -> dict[str, Any]:
    if isinstance(error, FairkernError):
        told = rank if error.rank is None else error.rank
        return {"rank": told, "kind": type(error).__name__, "message": str(error), "told": error.rank is not None}
    said = (str(error).splitlines() or [""])[0][:500]
    message = f"stopped with {type(error).__name__}{f': {said}' if said else ''}"
    return {"rank": rank, "kind": RankError.__name__, "message": message, "told": False}


def _raised(described: dict[str, Any], own: int) -> FairkernError | None:
    """The error of another process, as one of ours; None for our own."""
    if described["rank"] == own and not described["told"]:
        return None
    kind = getattr(errors, described["kind"], RankError)
    error: FairkernError = kind(
        described["message"] if described["told"] else f"rank {described['rank']}: {described['message']}"
    )
    error.rank = described["rank"]
    return error
