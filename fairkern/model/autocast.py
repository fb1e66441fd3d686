"""Autocast, which whoever calls us may have entered: it keeps casts of weights, and rounds what is computed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch


def forget_casts() -> None:
    """Call after weights have been written to: until it is left, autocast goes on with the casts that it has."""
    torch.clear_autocast_cache()


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Within, nothing is computed in another type than asked for, but by a model that enters autocast itself."""
    with torch._C._DisableAutocast():
        forget_casts()
        yield


@dataclass(frozen=True)
class Ambient:
    """What autocast was entered when this was made, to be entered again: (device type, dtype) each."""

    entered: tuple[tuple[str, torch.dtype], ...]

    @classmethod
    def now(cls, device: torch.device) -> Ambient:
        """As far as it concerns the CPU and this device."""
        kinds = [kind for kind in dict.fromkeys(("cpu", device.type)) if torch.amp.is_autocast_available(kind)]
        return cls(tuple((k, torch.get_autocast_dtype(k)) for k in kinds if torch.is_autocast_enabled(k)))

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Within, as it was then."""
        with contextlib.ExitStack() as stack:
            for kind, dtype in self.entered:
                stack.enter_context(torch.autocast(kind, dtype))
            yield


NO_AUTOCAST = Ambient(())
