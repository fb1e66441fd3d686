"""HTML as text: what is given as text is escaped, and every number says which entry of the report's file it is."""

from __future__ import annotations

import html
from collections.abc import Iterable

_EMPTY = frozenset({"meta", "br"})


class Html(str):
    """Markup, which is put in as it is; any other text is escaped."""

    __slots__ = ()


def el(name: str, /, *children: str | Iterable[str] | None, **attributes: str | float | bool | None) -> Html:
    """An element. Of attributes `data_from` is written `data-from`, `class_` is `class`; None and False are left out.

    Example:
        >>> el("p", "a < b", el("br"), class_="said")
        '<p class="said">a &lt; b<br></p>'
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _EMPTY:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str | Iterable[str] | None) -> Html:
    """Markup and escaped text one behind the other; lists are taken apart, None is nothing."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(html.escape(child, quote=False))
        elif child is not None:
            parts.append(join(*child))
    return Html("".join(parts))


def dotted(name: str) -> Html:
    """A module's path, which may be broken after its dots."""
    return el("code", between(name.split("."), Html(".<wbr>")))


def between(parts: Iterable[str], what: str) -> Html:
    """The parts with `what` between them, each escaped unless it is markup."""
    found = list(parts)
    return join(*(piece for i, part in enumerate(found) for piece in ([what, part] if i else [part])))


def fact(text: str, *path: str | int, shows: str = "") -> Html:
    """A number as text, with the entry of the report's file that it is (a JSON pointer).

    `shows`: what is made of it, where it is not the number itself: "left" (units less removed), "change" (of `after`
    since `before`), "span" (20th to 80th percentile).
    """
    pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return el("data", text, data_from=pointer, data_shows=shows or None)


def section(title: str, *children: str | Iterable[str] | None, says: str | None = None) -> Html:
    """A part of the page; an empty one is left out."""
    within = join(*children)
    return el("section", el("h2", title), el("p", says, class_="says") if says else None, within) if within else Html()


def listed(pairs: Iterable[tuple[str, str]], class_: str = "listed") -> Html:
    """Names and what belongs to them."""
    rows = [el("div", el("dt", name), el("dd", value)) for name, value in pairs]
    return el("dl", rows, class_=class_) if rows else Html()


def table(head: Iterable[str], rows: Iterable[Iterable[str]], numbers: Iterable[int] = ()) -> Html:
    """A table that scrolls within itself where a screen is narrow. `numbers`: columns that are set to the right."""
    right = frozenset(numbers)

    def cells(kind: str, row: Iterable[str]) -> list[Html]:
        return [el(kind, cell, class_="n" if i in right else None) for i, cell in enumerate(row)]

    body = el("tbody", [el("tr", cells("td", row)) for row in rows])
    return el("div", el("table", el("thead", el("tr", cells("th", head))), body), class_="wide", tabindex=0)
