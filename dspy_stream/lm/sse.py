"""Server-sent events from bytes, however they are cut: a state machine without any I/O.

The rules are those of the WHATWG HTML standard, section "Server-sent events": lines end in LF, CR
or CRLF; a blank line ends an event; ``data`` lines of one event are joined by LF; a line that
begins with a colon is a comment; an event that the stream leaves unfinished does not count. What
follows from the format's framing is all that is done here: the data stays as bytes.
"""

from __future__ import annotations

from typing import Final

from dspy_stream.errors import LMProviderError

__all__ = ["MAX_EVENT", "EventParser"]

MAX_EVENT: Final = 4 * 1024 * 1024  # bytes of one event, its comments included

_BOM: Final = b"\xef\xbb\xbf"


class EventParser:
    """One stream: bytes in, ``(event, data)`` pairs out, in their order.

    The event's name is ``message`` where the stream gives none. Time is proportional to the
    bytes, whatever their slices.

    Attributes:
        last_event_id: the ``id`` that was given last; empty at first.
        retry: milliseconds to wait before connecting again, where the stream says so.

    >>> parser = EventParser()
    >>> parser.feed(b"data: 1\\n\\nevent: end\\ndata:")
    [('message', b'1')]
    >>> parser.feed(b"2\\r\\n\\r")
    [('end', b'2')]
    """

    __slots__ = ("_after_cr", "_idle", "_lead", "_limit", "_parts", "_size", "last_event_id", "retry")

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self.last_event_id = ""
        self.retry: int | None = None
        self._limit = max_event
        self._parts: list[bytes] = []  # of the event that is not whole yet
        self._size = 0
        self._after_cr = False  # an LF now would belong to the line that ended already
        self._idle = False  # between two events, with nothing left over
        self._lead: bytes | None = b""  # the first bytes, while they may be a byte order mark

    def feed(self, piece: bytes) -> list[tuple[str, bytes]]:
        """Take the next bytes; the events that they complete.

        Raises:
            LMProviderError: an event is longer than the limit.
        """
        if self._idle and _is_plain(piece) and len(piece) <= self._limit:
            return [("message", piece[6:-2])]
        self._idle = False
        if self._lead is not None:
            piece = self._begin(piece)
        if self._after_cr and piece:
            self._after_cr = False
            if piece[0] == 10:
                piece = piece[1:]
        if not piece:
            return []
        if b"\r" in piece:
            self._after_cr = piece[-1] == 13
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._parts:
            # A blank line may be cut in two. Joined only when an event ends: a long one that comes
            # in many pieces would otherwise be copied with each of them.
            if b"\n\n" not in piece and not (piece[0] == 10 and self._parts[-1][-1] == 10):
                self._keep(piece)
                return []
            self._parts.append(piece)
            piece = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
        *blocks, rest = piece.split(b"\n\n")
        if rest:
            self._keep(rest)
        else:
            self._idle = not self._after_cr
        events: list[tuple[str, bytes]] = []
        for block in blocks:
            if len(block) > self._limit:
                raise self._too_long()
            if block.startswith(b"data: ") and b"\n" not in block:  # nearly all of them
                events.append(("message", block[6:]))
            else:
                self._block(block, events)
        return events

    def _begin(self, piece: bytes) -> bytes:
        """Pass over a byte order mark, which may come in pieces."""
        assert self._lead is not None
        lead = self._lead + piece
        if len(lead) < len(_BOM) and _BOM.startswith(lead):
            self._lead = lead
            return b""
        self._lead = None
        return lead[len(_BOM) :] if lead.startswith(_BOM) else lead

    def _keep(self, piece: bytes) -> None:
        self._parts.append(piece)
        self._size += len(piece)
        if self._size > self._limit:
            raise self._too_long()

    def _too_long(self) -> LMProviderError:
        return LMProviderError(
            f"an event of the stream is longer than {self._limit:,} bytes and was not read on"
        )

    def _block(self, block: bytes, events: list[tuple[str, bytes]]) -> None:
        """The lines of one event."""
        name = b""
        data: list[bytes] = []
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            if value[:1] == b" ":
                value = value[1:]
            if field == b"data":
                data.append(value)
            elif field == b"event":
                name = value
            elif field == b"id":
                if b"\0" not in value:
                    self.last_event_id = value.decode("utf-8", "replace")
            elif field == b"retry" and value.isdigit() and len(value) < 10:
                self.retry = int(value)
        if data:
            events.append((name.decode("utf-8", "replace") or "message", b"\n".join(data)))


def _is_plain(piece: bytes) -> bool:
    """Whether this is one whole event with nothing but one line of data, as servers mostly send them."""
    end = len(piece) - 2
    return piece.find(b"\n") == end and piece[:6] == b"data: " and piece[-1] == 10 and b"\r" not in piece
