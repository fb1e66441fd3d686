"""A parser whose errors are one line, and name what was meant."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any

_KEYWORD = re.compile(
    r"""\w+\([^()]*\)  # a call is Python, and stays so
    |(?<![\w./'"-])(?P<name>[a-z]\w*)(?:\[\d+\])?=(?P<value>'[^']*'|\w*)
    (?P<said>[ ]\(--[\w -]+\)|,[ ]--[\w-]+)?  # the option, where the message knows it
    (?P<more>[^\s,;:)]?)""",
    re.VERBOSE,
)
_FIRST = re.compile(r"([a-z]\w*)(?= is | pattern | names )")
_PLAIN = re.compile(r"'([^\s']+)'")


class Misused(Exception):
    """Words that are no command, or no options of it. `prog`: the command that they were given to."""

    def __init__(self, message: str, prog: str) -> None:
        super().__init__(message)
        self.prog = prog


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `Misused`, with a line that says what is missing, or what a word was meant to be.

    `also`: what a command needs that is said by arguments of which each by itself may be left out.
    """

    also = ""

    def error(self, message: str) -> Any:
        raise Misused(self._in_a_line(message), self._said_to())

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        self._words = [*(args or ())]
        options = self._words[: self._words.index("--") if "--" in self._words else None]
        if self._subparsers is None:
            for name in (word.partition("=")[0] for word in options):
                if name.startswith("--") and name not in self._option_string_actions:
                    known = [option for option in self._option_string_actions if option.startswith("--")]
                    self.error(f"there is no option {name}{meant(name, known, 0.7)}")
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            if isinstance(action, argparse._SubParsersAction):
                self.error(f"there is no command {value!r}{meant(value, known) or '; commands are ' + _listed(known)}")
            self.error(f"{_name(action)} is {value!r}; expected {_listed(known, 'or')}{meant(value, known)}")

    def _in_a_line(self, message: str) -> str:
        """argparse's own message, without its "argument" and with all that is missing."""
        found = re.fullmatch(r"the following arguments are required: (.*)", message)
        if found or re.match("one of the arguments .* is required", message):
            return f"{self.prog} needs {_listed([*self._missing(found[1].split(', ') if found else [])])}"
        found = re.fullmatch(r"unrecognized arguments: (.*)", message)
        if found:
            behind = "" if self._said_to() == f"{self.prog} {self._words[0]}" else "; options come behind the command"
            own = [option for option in self._option_string_actions if option.startswith("--")]
            behind = meant(found[1], own, 0.7) or behind
            return f"{self._said_to()} has no use for {found[1]!r}{behind}"
        message = re.sub("^argument (.*?): ", lambda m: f"{m[1].split('/')[-1]}: ", message)
        return re.sub("(?<=not allowed with )argument ", "", message)

    def _said_to(self) -> str:
        """The command that the words are of: a command's own parser, or the one that they begin with."""
        commands = next((a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)), {})
        return f"{self.prog} {self._words[0]}" if self._words and self._words[0] in commands else self.prog

    def _missing(self, required: Sequence[str]) -> list[str]:
        named = {word.partition("=")[0] for word in self._words}
        found = [self.also] if self.also and not self._words else []
        found += [option.split("/")[-1] for option in required]
        for group in self._mutually_exclusive_groups:
            options = [action.option_strings[-1] for action in group._group_actions if action.option_strings]
            if group.required and named.isdisjoint(options):
                found.append(f"one of {', '.join(options)}")
        return found

    def in_options(self, message: str) -> str:
        """What the API says of its keywords, said of the options that they come from: `seed=-1` is `--seed -1`."""
        first = _FIRST.match(message)
        if first and (options := self._options(first[1])):
            message = f"{options[0].option_strings[-1]}{message[first.end() :]}"
        return _KEYWORD.sub(self._in_options, message)

    def _options(self, name: str) -> list[argparse.Action]:
        return [action for action in self._actions if action.dest == name and action.option_strings]

    def _in_options(self, found: re.Match[str]) -> str:
        options, value, more = self._options(found["name"] or ""), found["value"], found["more"]
        if not options or value == "lambda":
            return found[0]
        if found["said"]:
            return f"{found['said'].strip(' (),')}{more}"
        for option in options:
            if option.nargs == 0 and value == repr(option.const):
                return f"{option.option_strings[-1]}{more}"
        named = next((option for option in options if option.nargs != 0 or not value + more), None)
        if named is None:
            return found[0]
        truth = {"True": "yes", "False": "no"}.get(value)
        value = truth if truth in (named.choices or ()) and truth else _PLAIN.sub(r"\1", value)
        return " ".join(part for part in (named.option_strings[-1], f"{value}{more}") if part)


def meant(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """The end of an error that says which of the `known` words a misspelt one is likely to be."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def _listed(words: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def _name(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
