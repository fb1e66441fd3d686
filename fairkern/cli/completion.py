"""What makes a shell complete commands, options and files: written by shtab from the parser, once, for no start of
Python is worth waiting for at every key."""

from __future__ import annotations

import argparse

import fairkern as fk
from fairkern.cli.arguments import path

SHELLS = ("bash", "zsh", "fish")


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """Raises `InputError` where shtab is not installed."""
    try:
        import shtab
    except ImportError:
        raise fk.InputError("completion is written by shtab, which is not installed: pip install shtab") from None
    for sub in _all(parser):
        for action in sub._actions:
            if action.type is path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell=shell))


def _all(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [inner for sub in action.choices.values() for inner in _all(sub)]
    return found
