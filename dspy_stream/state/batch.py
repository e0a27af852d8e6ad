"""Changes to the store as plain data, and the names of its families."""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["FAMILIES", "Batch", "Family", "after"]

Family = Literal["meta", "journal", "dead", "runs", "ids", "suspects"]
FAMILIES: Final[tuple[Family, ...]] = ("meta", "journal", "dead", "runs", "ids", "suspects")


class Batch:
    """Changes that reach the store together or not at all; plain data until it is written.

    >>> batch = Batch()
    >>> batch.put("meta", b"k", b"v"); batch.delete("meta", b"old"); len(batch)
    2
    """

    __slots__ = ("changes",)

    def __init__(self) -> None:
        self.changes: list[tuple[Family, bytes, bytes | None, bool]] = []

    def __len__(self) -> int:
        return len(self.changes)

    def put(self, family: Family, key: bytes, value: bytes) -> None:
        """Set a key."""
        self.changes.append((family, key, value, False))

    def delete(self, family: Family, key: bytes) -> None:
        """Remove a key; one that is not there is no error."""
        self.changes.append((family, key, None, False))

    def delete_range(self, family: Family, start: bytes, end: bytes) -> None:
        """Remove all keys from ``start`` up to, not including, ``end``."""
        self.changes.append((family, start, end, True))


def after(prefix: bytes) -> bytes:
    r"""The smallest key above all keys with a prefix.

    >>> after(b"run/"), after(b"a\xff")
    (b'run0', b'b')
    """
    bare = prefix.rstrip(b"\xff")
    return bare[:-1] + bytes([bare[-1] + 1]) if bare else b"\xff" * 256
