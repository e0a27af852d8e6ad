r"""The tags ``<name>...</name>`` of a signature's fields, and how they are kept out of values.

An opening tag counts at the start of a line or right after another tag; a field that has none
there is looked for within the lines, where its closing tag must follow. A value ends at the closing
tag that belongs to its opening one, where the tags of its name within it come in pairs, otherwise at
the first closing tag; whatever tags it holds belong to it. Of a repeated field the first counts, and
another value is a second answer, if no input's tag comes between: there a model runs on. A further
closing tag, with text before it, leaves open where the value ends, and is refused.

**Escaping.** A value is written as it is, but for ``<`` before the name of a field, which becomes
``&lt;``, and for ``&`` where it would be read as the beginning of a character reference, which
becomes ``&amp;``. That is XML as far as it goes, so a model that writes ``&lt;`` for every ``<``
is read as well. Nothing that was escaped can be read as a tag.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from dspy_stream.adapters.problem import ValueProblem
from dspy_stream.adapters.repeated import with_repeats

__all__ = ["Tags", "unescape"]

_REFERENCE: Final = re.compile(r"&(?:(amp|lt|gt|quot|apos)|#([0-9]{1,7})|#[xX]([0-9a-fA-F]{1,6}));")
_NAMED: Final = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_BLANKS: Final = " \t\r\f\v\ufeff\u200b"
_CDATA: Final = ("<![CDATA[", "]]>")


def unescape(text: str) -> str:
    """The text with its character references replaced, and without CDATA around the whole of it.

    >>> unescape("1 &lt; 2 &amp;&amp; 3 &#62; 2"), unescape("<![CDATA[a &amp; b]]>")
    ('1 < 2 && 3 > 2', 'a &amp; b')
    """
    if text.startswith(_CDATA[0]) and text.endswith(_CDATA[1]):
        return text[len(_CDATA[0]) : -len(_CDATA[1])]
    return _REFERENCE.sub(_character, text) if "&" in text else text


def _character(match: re.Match[str]) -> str:
    name, decimal, hexadecimal = match.groups()
    if name:
        return _NAMED[name]
    code = int(decimal) if decimal else int(hexadecimal, 16)
    if code == 0 or 0xD800 <= code < 0xE000 or code > 0x10FFFF:
        return match.group()
    return chr(code)


class _Tag(NamedTuple):
    start: int
    end: int
    name: str
    kind: str  # "open", "close" or "empty"
    leads: bool  # it stands where a field may begin


class Tags:
    """The tags of one signature.

    >>> tags = Tags(["question"], ["answer"])
    >>> tags.escape("</question><answer>4 < 5</answer>")
    '&lt;/question>&lt;answer>4 < 5&lt;/answer>'
    >>> tags.elements("Here you are: <answer>4 &lt; 5</answer>")
    {'answer': '4 &lt; 5'}
    """

    __slots__ = ("_next", "_outputs", "_site", "_tag")

    def __init__(self, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        self._outputs = tuple(outputs)
        given = tuple(inputs)
        every = "|".join(map(re.escape, (*given, *self._outputs)))
        self._next = re.compile(
            rf"^[{_BLANKS}]*<(?:{'|'.join(map(re.escape, given)) or '(?!)'})>", re.MULTILINE
        )
        self._tag = re.compile(rf"<(/?)({'|'.join(map(re.escape, self._outputs))})(?:\s[^<>]*|/)?>")
        self._site = re.compile(
            rf"<(?=/?(?:{every})\b)|<(?=!\[CDATA\[)|&(?={_REFERENCE.pattern[1:]})", re.IGNORECASE
        )

    def escape(self, text: str) -> str:
        """The text with every tag in it made harmless."""
        if "<" not in text and "&" not in text:
            return text
        return self._site.sub(lambda site: "&lt;" if site.group() == "<" else "&amp;", text)

    def elements(self, text: str) -> Mapping[str, str]:
        """The text between the tags of each field, stripped of outer blanks and still escaped.

        Raises:
            ValueProblem: a field begins and does not end, or it is not certain where it does.
        """
        tags = list(self._all(text))
        placed, spans, unclosed = _in_place(text, tags)
        names = {element.name for element in placed}
        if unclosed and unclosed not in names:
            raise ValueProblem(f"`<{unclosed}>` is not closed by `</{unclosed}>`")
        outside = _outside(tags, spans)
        if not outside and len(names) == len(placed):  # nearly all
            return {element.name: element.body.strip() for element in placed}
        within = _within_lines(text, outside, placed)
        _refuse_loose(text, sorted([*placed, *within], key=_end), outside)
        first: dict[str, _Element] = {}
        for element in (*placed, *within):
            first.setdefault(element.name, element)
        # Within the lines before it, an answer is only spoken of.
        again = [one for one in (*placed, *within) if first[one.name].start < one.start]
        if again:
            end = self._next.search(text, min(one.start for one in first.values()))
            limit = len(text) if end is None else end.start()
            again = [one for one in again if one.start < limit]
        found = {name: element.body.strip() for name, element in first.items()}
        return with_repeats(found, [(one.name, one.body.strip()) for one in again])

    def closed(self, text: str) -> str:
        """The text, with the tag that its end lacks, where only the last field is not closed."""
        tags = list(self._all(text))
        found, spans, unclosed = _in_place(text, tags)
        if not unclosed or any(element.name == unclosed for element in found):
            return text
        begin = spans[-1][0]
        if any(tag.leads and tag.name != unclosed for tag in tags if tag.start > begin):
            return text
        return f"{text}</{unclosed}>"

    def _all(self, text: str) -> Iterator[_Tag]:
        passed = 0
        for match in self._tag.finditer(text):
            start, end = match.span()
            newline = text.rfind("\n", passed, start)
            before = text[max(newline + 1, passed) : start].rstrip(_BLANKS)
            leads = before.endswith(">") if before else True
            kind = "close" if match.group(1) else "empty" if text[end - 2] == "/" else "open"
            yield _Tag(start, end, match.group(2), kind, leads)
            passed = end


class _Element(NamedTuple):
    name: str
    start: int
    end: int
    body: str


def _in_place(text: str, tags: list[_Tag]) -> tuple[list[_Element], list[tuple[int, int]], str]:
    """Fields that begin where fields begin, the place of each, and the name of one that never ends."""
    found: list[_Element] = []
    spans: list[tuple[int, int]] = []
    inside: _Tag | None = None
    partners: dict[int, int] | None = None
    for tag in tags:
        if inside is None:
            if tag.leads and tag.kind == "open":
                inside = tag
            elif tag.leads and tag.kind == "empty":
                found.append(_Element(tag.name, tag.start, tag.end, ""))
                spans.append((tag.start, tag.end))
        elif tag.name == inside.name and tag.kind == "open" and partners is None:
            partners = _partners(tags)
        elif tag.kind == "close" and tag.name == inside.name:
            if partners is not None and partners.get(inside.start, tag.start) != tag.start:
                continue
            found.append(_Element(tag.name, inside.start, tag.end, text[inside.end : tag.start]))
            spans.append((inside.start, tag.end))
            inside = None
    if inside is None:
        return found, spans, ""
    return found, [*spans, (inside.start, len(text))], inside.name


def _partners(tags: list[_Tag]) -> dict[int, int]:
    """Where the closing tag of each opening one is; those without one are left out."""
    partners: dict[int, int] = {}
    waiting: dict[str, list[int]] = {}
    for tag in tags:
        if tag.kind == "open":
            waiting.setdefault(tag.name, []).append(tag.start)
        elif tag.kind == "close" and waiting.get(tag.name):
            partners[waiting[tag.name].pop()] = tag.start
    return partners


def _refuse_loose(text: str, elements: list[_Element], outside: list[_Tag]) -> None:
    """Refuse a closing tag without an opening one, where text of the last value may come before it."""
    ends = [element.end for element in elements]
    used = set(ends)
    for tag in outside:
        number = bisect(ends, tag.start)
        if tag.kind != "close" or tag.end in used or number == 0:
            continue
        before = elements[number - 1]
        if before.name == tag.name and text[before.end : tag.start].strip():
            raise ValueProblem(
                f"`</{tag.name}>` is there twice for one `<{tag.name}>`, so that its end is not certain"
            )


def _end(element: _Element) -> int:
    return element.end


def _outside(tags: list[_Tag], spans: list[tuple[int, int]]) -> list[_Tag]:
    """The tags that lie in none of the spans, which are in order and apart."""
    kept: list[_Tag] = []
    left = iter(spans)
    span = next(left, None)
    for tag in tags:
        while span is not None and span[1] <= tag.start:
            span = next(left, None)
        if span is None or tag.start < span[0]:
            kept.append(tag)
    return kept


def _within_lines(text: str, tags: list[_Tag], placed: list[_Element]) -> list[_Element]:
    """Fields of the rest: the text between a closing tag and the nearest opening one before it.

    One that is in its place as well holds no other in its place.
    """
    found: list[_Element] = []
    known = {element.name for element in placed}
    starts = [element.start for element in placed]
    inside: _Tag | None = None
    for tag in tags:
        if inside is not None and inside.name in known:
            inside = inside if bisect(starts, inside.start) == bisect(starts, tag.start) else None
        if tag.kind == "open":
            # A tag that is only spoken of comes before the one that is meant.
            if inside is None or inside.name == tag.name:
                inside = tag
        elif tag.kind == "close" and inside is not None and inside.name == tag.name:
            found.append(_Element(tag.name, inside.start, tag.end, text[inside.end : tag.start]))
            inside = None
    return found
