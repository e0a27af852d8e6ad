r"""The marker lines ``[[ ## name ## ]]``, and how they are kept out of values.

A marker stands at the start of a line; blanks before it are allowed, and text may follow it on
the same line. Text before the first marker belongs to no section. When a name comes twice, the
first counts. Another value of an output below its second marker is a second answer, but for what
follows :data:`DONE`, or an input's marker after the answer has begun: there a model runs on and
invents the next question, and its own markers must not replace the answer.

**Escaping.** A value that is written between markers gets one backslash before the first ``##``
of whatever looks like the beginning of a marker, ``[[ ## `` becoming ``[[ \## ``, and a value that
is read loses one. A value that already holds ``[[ \##`` gets a second backslash, so that reading
gives back exactly what was written. Nothing that was escaped can be read as a marker, wherever it
stands in the text, so no input can become an output.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from dspy_stream.adapters.repeated import Repeated, with_repeats

__all__ = ["DONE", "escape", "finder", "marker", "sections", "unescape"]

DONE: Final = "completed"

_MARKER: Final = re.compile(r"\[\[ *## *(\w+) *## *\]\]")
_PLAIN: Final = re.compile(r"\[\[ ## ([A-Za-z_]\w*) ## \]\]", re.ASCII)
_SITE: Final = re.compile(r"(\[\[ *)(\\*##)")
_ESCAPED: Final = re.compile(r"(\[\[ *)\\(\\*##)")


def marker(name: str) -> str:
    """The marker of a field.

    >>> marker("answer")
    '[[ ## answer ## ]]'
    """
    return f"[[ ## {name} ## ]]"


def escape(text: str) -> str:
    r"""The text with every marker in it made harmless.

    >>> print(escape("[[ ## answer ## ]] 42"))
    [[ \## answer ## ]] 42
    """
    return _SITE.sub(r"\1\\\2", text) if "[[" in text else text


def unescape(text: str) -> str:
    """The text that was escaped.

    >>> unescape(escape("[[ ## answer ## ]] 42"))
    '[[ ## answer ## ]] 42'
    """
    return _ESCAPED.sub(r"\1\2", text) if "[[" in text else text


def finder(inputs: Iterable[str], outputs: Iterable[str]) -> Callable[[str], Mapping[str, str]]:
    """A function from an answer to the texts below its markers, unescaped.

    >>> finder(["q"], ["a"])("[[ ## a ## ]]\\n1\\n[[ ## a ## ]]\\n2").again
    (('a', '2'),)
    """
    wanted = frozenset(outputs)
    ends = frozenset({DONE, *inputs}) - wanted

    def find(text: str) -> Mapping[str, str]:
        found = sections(text)
        again = _again(found.again, wanted, ends) if type(found) is Repeated else None
        found.pop(DONE, None)
        if "\\##" in text:
            found = {name: unescape(body) for name, body in found.items()}
        if again is None:
            return found
        return with_repeats(dict(found), ((name, unescape(body)) for name, body in again))

    return find


def _again(
    all_of_them: Sequence[tuple[str, str]], wanted: frozenset[str], ends: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """The sections that repeat a wanted one, up to where the answer ends."""
    seen: set[str] = set()
    for name, body in all_of_them:
        if seen and name in ends:
            return
        if name in seen:
            yield name, body
        elif name in wanted:
            seen.add(name)


def sections(text: str) -> dict[str, str]:
    r"""The text below each marker, stripped of outer blanks and still escaped.

    Where one comes twice, the result is a :class:`Repeated` of all sections.

    Takes time proportional to the length of the text, whatever it holds.

    >>> sections("Well.\n[[ ## a ## ]] 1\n[[ ## b ## ]]\n2\n\n[[ ## a ## ]]\n3\n[[ ## completed ## ]]")
    {'a': '1', 'b': '2', 'completed': ''}
    """
    found = _plain_sections(text)
    return found if found is not None else _any_sections(text)


def _plain_sections(text: str) -> dict[str, str] | None:
    """The same for a text whose markers all look as :func:`marker` writes them; None for others.

    Nearly every answer is one, and splitting it takes about half the time of the search below.
    """
    parts = _PLAIN.split(text)
    if len(parts) != 2 * text.count("[[") + 1:
        return None
    found: dict[str, str] = {}
    repeats = False
    rest = iter(parts)
    before = next(rest) or "\n"
    for name in rest:
        # Text on the line before a marker, be it only a blank, is for the search to judge.
        if before[-1:] != "\n":
            return None
        before = next(rest)
        if name not in found:
            found[name] = before.strip()
        else:
            repeats = True
    if repeats:
        return Repeated(found, zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))
    return found


def _any_sections(text: str) -> dict[str, str]:
    found: list[tuple[str, str]] = []
    name = ""
    body = passed = 0
    for match in _MARKER.finditer(text):
        start = match.start()
        newline = text.rfind("\n", passed, start)
        # Without a line break since the last marker this one stands in the middle of a line.
        before = text[newline + 1 : start] if newline >= 0 or passed == 0 else "x"
        passed = match.end()
        if before and before.strip(" \t\r\f\v\ufeff\u200b"):
            continue
        if name:
            found.append((name, text[body:start].strip()))
        name = match.group(1)
        body = passed
    if name:
        found.append((name, text[body:].strip()))
    first = dict(reversed(found))
    ordered = {name: first[name] for name, _ in found}
    return ordered if len(ordered) == len(found) else Repeated(ordered, found)
