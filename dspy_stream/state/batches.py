"""The ledger of batches: which requests are at a provider, durable before they are sent.

It lives in the ``runs`` family, two keys a batch: what is known of it, which changes a few times,
and the journal keys of its requests, which do not. A batch whose results are all in the journal has
no entry any more, so what is found here after a crash is what still has to be fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import orjson

from dspy_stream.errors import StateCorrupt
from dspy_stream.state.batch import Batch
from dspy_stream.state.stamp import RESTORE
from dspy_stream.types import BatchRecord

if TYPE_CHECKING:
    from dspy_stream.state.store import Store

__all__ = ["KEYS", "RECORDS", "Ledger", "check_batch"]

RECORDS: Final = b"batch/"
KEYS: Final = b"batchkeys/"
_PHASES: Final = ("intended", "creating", "created")


class Ledger:
    """The open batches of one state folder. Every write is durable, against a power loss too.

    >>> import tempfile
    >>> from dspy_stream.state.store import Store
    >>> with tempfile.TemporaryDirectory() as parent, Store.open(parent + "/state") as store:
    ...     ledger = Ledger(store)
    ...     ledger.intend(BatchRecord("b1", "openai", 0.0, 1), [b"key"])
    ...     ledger.update(BatchRecord("b1", "openai", 0.0, 1, "created", batch_id="batch_7"))
    ...     found = ledger.open("openai")
    ...     ledger.close("b1")
    ...     [(record.batch_id, keys) for record, keys in found], ledger.list()
    ([('batch_7', (b'key',))], ())
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def intend(self, record: BatchRecord, keys: Sequence[bytes]) -> None:
        """Note a batch before anything of it is sent."""
        batch = Batch()
        batch.put("runs", KEYS + record.id.encode(), orjson.dumps([key.hex() for key in keys]))
        batch.put("runs", RECORDS + record.id.encode(), orjson.dumps(record._asdict()))
        self._store.write(batch)
        self._store.sync()

    def update(self, record: BatchRecord) -> None:
        """Note how far a batch has come."""
        self._store.put("runs", RECORDS + record.id.encode(), orjson.dumps(record._asdict()))
        self._store.sync()

    def close(self, record_id: str) -> None:
        """Forget a batch whose results are in the journal, or which was never sent."""
        batch = Batch()
        batch.delete("runs", RECORDS + record_id.encode())
        batch.delete("runs", KEYS + record_id.encode())
        self._store.write(batch)

    def open(self, lane: str) -> list[tuple[BatchRecord, tuple[bytes, ...]]]:
        """The batches of a lane with the journal keys of their requests, oldest first.

        Raises:
            StateCorrupt: an entry is damaged.
        """
        found = []
        for record in self.list():
            if record.lane != lane:
                continue
            stored = self._store.get("runs", KEYS + record.id.encode())
            try:
                found.append((record, _keys(stored)))
            except ValueError as error:
                raise self._damaged(error) from error
        return found

    def list(self) -> tuple[BatchRecord, ...]:
        """All open batches, oldest first.

        Raises:
            StateCorrupt: an entry is damaged.
        """
        try:
            records = [_record(key, value) for key, value in self._store.scan("runs", RECORDS)]
        except ValueError as error:
            raise self._damaged(error) from error
        return tuple(sorted(records, key=lambda record: (record.created, record.id)))

    def forget_before(self, created: float) -> int:
        """Forget batches so old that no provider has their results any more; how many they were."""
        old = [record.id for record in self.list() if record.created < created]
        for record_id in old:
            self.close(record_id)
        return len(old)

    def _damaged(self, error: ValueError) -> StateCorrupt:
        return StateCorrupt(f"the record of a batch in {self._store.path} is damaged ({error}): {RESTORE}")


def check_batch(key: bytes, value: bytes) -> None:
    """Raise ValueError unless an entry of either kind is whole."""
    if key.startswith(KEYS):
        _keys(value)
    else:
        _record(key, value)


def _record(key: bytes, value: bytes) -> BatchRecord:
    try:
        record = BatchRecord(**orjson.loads(value))
    except TypeError as error:
        raise ValueError(f"not a batch record: {error}") from error
    texts = (record.id, record.lane, record.phase, record.file_id or "", record.batch_id or "")
    numbers = (record.created, record.tried, record.requests)
    if not all(isinstance(text, str) for text in texts) or record.phase not in _PHASES:
        raise ValueError("not a batch record: a field has the wrong kind of value")
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError("not a batch record: a field has the wrong kind of value")
    if key != RECORDS + record.id.encode():
        raise ValueError(f"the record is that of batch {record.id}")
    return record


def _keys(value: bytes | None) -> tuple[bytes, ...]:
    found = orjson.loads(value or b"")
    if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
        raise ValueError("not a list of journal keys")
    return tuple(bytes.fromhex(key) for key in found)
