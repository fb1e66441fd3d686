"""What the system says of a process's memory."""

from __future__ import annotations

from pathlib import Path


def status(process: str | int = "self") -> dict[str, int]:
    """Bytes by the names of /proc/…/status: VmSize, address space; VmRSS, what is resident; RssAnon, of that what is no
    file's; VmHWM, the most that was resident of this program (`getrusage` counts what the process held before)."""
    lines = (line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}
