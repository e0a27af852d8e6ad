"""Where rows come from."""

from dspy_stream.stream.sources.base import MAX_LINE, Partition, Position, Source
from dspy_stream.stream.sources.choose import from_iterable, read
from dspy_stream.stream.sources.ids import check_ids, payload_digest

__all__ = [
    "MAX_LINE",
    "Partition",
    "Position",
    "Source",
    "check_ids",
    "from_iterable",
    "payload_digest",
    "read",
]
