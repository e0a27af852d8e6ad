r"""The marker lines ``[[ ## name ## ]]``, and how they are kept out of values.

A marker stands at the start of a line; blanks before it are allowed, and text may follow it on
the same line. Text before the first marker belongs to no section. When a name comes twice, the
first counts: a model that runs on after its answer invents the next question, and its own markers
must not replace the answer.

**Escaping.** A value that is written between markers gets one backslash before the first ``##``
of whatever looks like the beginning of a marker, ``[[ ## `` becoming ``[[ \## ``, and a value that
is read loses one. A value that already holds ``[[ \##`` gets a second backslash, so that reading
gives back exactly what was written. Nothing that was escaped can be read as a marker, wherever it
stands in the text, so no input can become an output.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["DONE", "escape", "marker", "sections", "unescape"]

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


def sections(text: str) -> dict[str, str]:
    r"""The text below each marker, stripped of outer blanks and still escaped.

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
    rest = iter(parts)
    before = next(rest) or "\n"
    for name in rest:
        # Text on the line before a marker, be it only a blank, is for the search to judge.
        if before[-1:] != "\n":
            return None
        before = next(rest)
        if name not in found:
            found[name] = before.strip()
    return found


def _any_sections(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
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
        if name and name not in found:
            found[name] = text[body:start].strip()
        name = match.group(1)
        body = passed
    if name and name not in found:
        found[name] = text[body:].strip()
    return found
