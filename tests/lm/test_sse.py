"""Server-sent events: whatever the slices, the same events."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_stream.errors import LMProviderError
from dspy_stream.lm.sse import EventParser
from tests.pace import linear

Events = list[tuple[str, bytes]]

GOOD = (
    "\ufeff: a comment\r\n"
    'data: {"text": "caf\u00e9 \U0001d11e"}\r\n\r\n'
    "event: delta\rdata:no space\rdata:  two spaces\r\r"
    "id: 7\nretry: 1500\ndata\n\n"
    ": only a comment\n\n"
    "event: nothing\n\n"
    "unknown: field\ndata: last\nevent:end\n\n"
    "data: never finished"
).encode()
EVENTS: Events = [
    ("message", '{"text": "caf\u00e9 \U0001d11e"}'.encode()),
    ("delta", b"no space\n two spaces"),
    ("message", b""),
    ("end", b"last"),
]


def parse(pieces: Sequence[bytes], max_event: int = 1 << 20) -> Events:
    parser = EventParser(max_event)
    return [event for piece in pieces for event in parser.feed(piece)]


def reference(stream: bytes) -> Events:
    """The standard's rules, line by line over the whole."""
    if stream.startswith(b"\xef\xbb\xbf"):
        stream = stream[3:]
    lines = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    events: Events = []
    name, data = "", None
    for line in lines[:-1]:  # the last has no end
        if not line:
            if data is not None:
                events.append((name or "message", data))
            name, data = "", None
            continue
        field, colon, value = line.partition(b":")
        if colon and value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            data = value if data is None else data + b"\n" + value
        elif field == b"event":
            name = value.decode("utf-8", "replace")
    return events


def test_every_cut_in_two_and_every_byte_alone() -> None:
    assert reference(GOOD) == EVENTS
    assert parse([GOOD]) == EVENTS
    assert parse([GOOD[at : at + 1] for at in range(len(GOOD))]) == EVENTS
    for at in range(len(GOOD) + 1):
        assert parse([GOOD[:at], GOOD[at:]]) == EVENTS, at


def test_every_cut_in_three_of_a_short_stream() -> None:
    stream = b"data: a\r\n\r\ndata:b\n\revent: x\ndata: c\r\r\n"
    wanted = reference(stream)
    for one, two in itertools.combinations(range(len(stream) + 1), 2):
        assert parse([stream[:one], stream[one:two], stream[two:]]) == wanted, (one, two)


LINES = st.sampled_from(
    [b"data: x", b"data:", b"data", b"event: e", b"id: 1", b"retry: 5", b": c", b"", b"\n", b"\r", b"\r\n",
     b"\n\n", b"data: {}\n\n", b"\xef\xbb\xbf", b"data: \xc3\xa9", b"datax: y", b" data: z", b":", b"\x00"]
)  # fmt: skip


@settings(max_examples=200)
@given(st.lists(LINES, max_size=12).map(b"".join), st.lists(st.integers(0, 80), max_size=8))
def test_any_stream_in_any_slices(stream: bytes, cuts: list[int]) -> None:
    points = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    assert parse([stream[a:b] for a, b in itertools.pairwise(points)]) == reference(stream)
    assert parse([stream[at : at + 1] for at in range(len(stream))]) == reference(stream)


def test_a_stream_of_single_events() -> None:
    parser = EventParser()
    for number in range(5):
        assert parser.feed(b"data: %d\n\n" % number) == [("message", b"%d" % number)]
    assert parser.feed(b"\n") == []
    assert parser.feed(b"data: a\ndata: b\n\n") == [("message", b"a\nb")]


def test_ids_and_retries_are_kept() -> None:
    parser = EventParser()
    parser.feed(b"id: 7\nretry: 1500\n\nid: a\0b\nretry: soon\nretry: 99999999999\n\n")
    assert (parser.last_event_id, parser.retry) == ("7", 1500)
    parser.feed(b"id\n\n")
    assert parser.last_event_id == ""


@pytest.mark.parametrize("size", [7, 65_536, 3_000_000])
def test_a_line_of_two_megabytes(size: int) -> None:
    stream = b"data: " + b"x" * 2_000_000 + b"\r\n\r\n"
    with linear():
        read = parse([stream[at : at + size] for at in range(0, len(stream), size)], 4 << 20)
    assert read == [("message", b"x" * 2_000_000)]


@pytest.mark.parametrize("size", [1, 100, 10_000])
@pytest.mark.parametrize("line", [b"data: " + b"x" * 5000 + b"\n\n", b": " + b"x" * 5000, b"x\n" * 2500])
def test_an_event_beyond_the_limit_is_refused(line: bytes, size: int) -> None:
    with pytest.raises(LMProviderError, match="longer than 1,000 bytes"):
        parse([line[at : at + size] for at in range(0, len(line), size)], max_event=1000)
