"""Rows gathered into rows of lists."""

from __future__ import annotations

import hashlib
import sys
import threading
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from bytewax.operators import StatefulBatchLogic

from dspy_stream.rows import Row
from dspy_stream.stream.codec import Frozen, freeze, thaw

__all__ = ["Gather", "Gathering"]

_LINGER: Final = timedelta(seconds=1)


class Gathering:
    """How many rows one step has gathered, as the gate asks.

    The end of the flow waits for them: what came out of a step at the end of its input only would be
    worked on when no stop can come any more. A stop leaves them, for they are in the snapshot.
    """

    high = sys.maxsize
    fatal: BaseException | None = None

    def __init__(self) -> None:
        self.backlog = 0
        self._lock = threading.Lock()

    @property
    def queued(self) -> int:
        """All of them."""
        return self.backlog

    def hold(self, change: int) -> None:
        """Count rows taken (or, negative, emitted)."""
        with self._lock:
            self.backlog += change


class Gather(StatefulBatchLogic[Any, Any, "list[Frozen]"]):
    """Gathers rows of one partition into rows of lists; a short rest comes out after a moment."""

    def __init__(self, size: int, gathering: Gathering, resumed: list[Frozen] | None) -> None:
        self._size = size
        self._gathering = gathering
        self._rows: list[Row] = [thaw(frozen, {}) for frozen in resumed or ()]
        self._since: datetime | None = datetime.now(timezone.utc) if self._rows else None
        gathering.hold(len(self._rows))

    def on_batch(self, values: list[Any]) -> tuple[list[Any], bool]:
        """Take rows; emit the lists that are full."""
        out: list[Any] = []
        held = len(self._rows)
        for value in values:
            if type(value) is not Row:
                out.append(value)
                continue
            self._rows.append(value)
            if len(self._rows) == self._size:
                out.append(self._list())
        self._since = datetime.now(timezone.utc) if self._rows else None
        self._gathering.hold(len(self._rows) - held)
        return out, False

    def _list(self) -> Row:
        rows, self._rows, self._since = self._rows, [], None
        names = dict.fromkeys(name for row in rows for name in row.fields)
        ids = "\0".join(row.id for row in rows).encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(ids, digest_size=8)
        fields = {name: [row.fields.get(name) for row in rows] for name in names}
        return Row(digest.hexdigest(), fields, rows[0].origin)

    def on_notify(self) -> tuple[list[Any], bool]:
        """Emit the rest, where nothing has come for a while."""
        if self._since is None or datetime.now(timezone.utc) < self._since + _LINGER:
            return [], False
        return self._rest(), False

    def _rest(self) -> list[Any]:
        if not self._rows:
            return []
        self._gathering.hold(-len(self._rows))
        return [self._list()]

    def on_eof(self) -> tuple[list[Any], bool]:
        """Emit the rest."""
        return self._rest(), True

    def notify_at(self) -> datetime | None:
        """When it has waited long enough for more."""
        return self._since + _LINGER if self._since is not None else None

    def snapshot(self) -> list[Frozen]:
        """The rows gathered."""
        return [freeze(row) for row in self._rows]
