"""Sums of files (SHA-256) that go on in another thread while their bytes are read, cut and written."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor


class Sum:
    """One file's. `update` returns at once; what it was given must not change before the next `update` or `wait`."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool, self._state = pool, hashlib.sha256()
        self._last: Future[None] | None = None

    def update(self, data: memoryview) -> None:
        self.wait()
        self._last = self._pool.submit(self._state.update, data)

    def wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def hexdigest(self) -> str:
        self.wait()
        return self._state.hexdigest()
