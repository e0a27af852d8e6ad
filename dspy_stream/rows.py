"""Rows on their way through a flow, where they came from, and the envelope of one that failed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

import orjson

__all__ = ["DeadLetter", "Origin", "Row", "Stage", "written"]


class Origin(NamedTuple):
    """Where a row was read: the source's name, its partition, and the offset within it.

    ``offset`` is the zero-based number of the record in its partition; ``line`` is the one-based
    line of the file where the record begins, where the format has lines.
    """

    name: str
    partition: str
    offset: int
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}" if self.line is not None else f"row {self.offset}"
        return f"{self.partition or self.name}, {where}"


class Row:
    """One record on its way through a flow.

    Fields are read by attribute or by item. ``raw`` is the record as it was read, kept so that a
    dead letter can be replayed: its bytes, or its fields where it had none of its own; None where the
    fields are still the record. ``written`` names
    the fields that the parts of a fork have added to it so far, in order, whether their values are new
    or not: where the row's halves meet, that says what each of them has made.

    >>> row = Row("r1", {"text": "Where is my card?"}, Origin("memory", "0", 0))
    >>> row.text, row["text"], row.with_fields(intent="card_arrival").intent
    ('Where is my card?', 'Where is my card?', 'card_arrival')
    """

    __slots__ = ("fields", "id", "origin", "raw", "written")

    id: str
    fields: Mapping[str, Any]
    origin: Origin
    raw: bytes | Mapping[str, Any] | None
    written: tuple[str, ...]

    def __init__(
        self,
        id: str,
        fields: Mapping[str, Any],
        origin: Origin,
        raw: bytes | Mapping[str, Any] | None = None,
        written: tuple[str, ...] = (),
    ) -> None:
        # Straight into the slots, past the refusal below: a row is made at every step.
        _set_id(self, id)
        _set_fields(self, fields)
        _set_origin(self, origin)
        _set_raw(self, raw)
        _set_written(self, written)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"a row is immutable; use row.with_fields({name}=...) for another one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a row is immutable")

    def __reduce__(self) -> tuple[Any, ...]:
        return (Row, (self.id, self.fields, self.origin, self.raw, self.written))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row):
            return NotImplemented
        return (self.id, self.fields, self.origin, self.raw) == (
            other.id,
            other.fields,
            other.origin,
            other.raw,
        )

    def __hash__(self) -> int:
        return hash((self.id, self.origin))

    def __repr__(self) -> str:
        return f"Row({self.id!r}, {dict(self.fields)!r}, {self.origin!r})"

    def __getattr__(self, name: str) -> Any:
        # Only called when the slot lookup failed, so a field never hides id, fields, origin, raw.
        if name.startswith("__") or name == "fields":  # a half-built row, as while unpickling
            raise AttributeError(name)
        try:
            return self.fields[name]
        except KeyError:
            known = ", ".join(self.fields)
            raise AttributeError(f"row {self.id} has no field {name!r}; it has: {known}") from None

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def __contains__(self, name: object) -> bool:
        return name in self.fields

    def keys(self) -> Iterable[str]:
        """Names of the fields, so that ``dict(row)`` and ``{**row}`` are the fields."""
        return self.fields.keys()

    def get(self, name: str, default: Any = None) -> Any:
        """The field, or ``default``."""
        return self.fields.get(name, default)

    def with_fields(self, **changes: Any) -> Row:
        """A new row with these fields added or replaced."""
        return self.adding(changes)

    def adding(self, outputs: Mapping[str, Any]) -> Row:
        """A new row with these fields added or replaced, and noted as written."""
        return Row(self.id, {**self.fields, **outputs}, self.origin, self.record, (*self.written, *outputs))

    def replace(self, fields: Mapping[str, Any]) -> Row:
        """The same row with other fields altogether."""
        return Row(self.id, fields, self.origin, self.record)

    @property
    def record(self) -> bytes | Mapping[str, Any]:
        """What was read: ``raw``, or the fields where nothing has changed them yet."""
        return self.raw if self.raw is not None else self.fields

    def raw_bytes(self) -> bytes:
        """The original bytes; the original fields as JSON where the source had none."""
        record = self.record
        if isinstance(record, bytes):
            return record
        try:
            return orjson.dumps(dict(record), default=_form, option=orjson.OPT_NON_STR_KEYS)
        except TypeError:  # such as a whole number beyond 64 bits
            pass
        told = [f"{json.dumps(str(name))}: {_told(value)}" for name, value in record.items()]
        return f"{{{', '.join(told)}}}".encode()


def _told(value: Any) -> str:
    """The JSON of a value, or of what it looks like, so that a letter still says what it was."""
    try:
        return json.dumps(value, default=_form)
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return json.dumps(repr(value))
    except Exception as error:  # noqa: BLE001 - whatever a value of the user's own raises
        return json.dumps(f"({type(value).__name__} that cannot be shown: {error})")


def _form(value: Any) -> Any:
    """The JSON of a model, so that a picture in a row is more than its name; else the text."""
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) and not isinstance(value, type) else str(value)


_set_id: Callable[[Row, str], None] = Row.__dict__["id"].__set__
_set_fields: Callable[[Row, Mapping[str, Any]], None] = Row.__dict__["fields"].__set__
_set_origin: Callable[[Row, Origin], None] = Row.__dict__["origin"].__set__
_set_raw: Callable[[Row, bytes | Mapping[str, Any] | None], None] = Row.__dict__["raw"].__set__
_set_written: Callable[[Row, tuple[str, ...]], None] = Row.__dict__["written"].__set__


def written(value: Any) -> Any:
    r"""Text that UTF-8 has room for, also within lists and mappings: what it has none for, escaped.

    >>> written({"a\ud800": ["é", 1]})
    {'a\\ud800': ['é', 1]}
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {written(key): written(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [written(item) for item in value]
    return value


Stage = Literal["read", "check", "map", "render", "call", "parse", "module", "write", "process"]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A row that could not be processed, with the reason, whole enough to be tried again.

    ``error`` has ``code``, ``type`` and ``message``, ``answer`` where the model's answer could not
    be read, ``predictor`` where a step of several predictors failed in one of them, ``where`` for an
    exception out of the user's code, and ``fallback_of``, why a part had failed whose fallback failed
    too; ``model`` has ``name``, ``request_id`` and ``status`` where a model was involved. ``first_seen``
    and ``last_seen`` are UTC stamps in ISO 8601. No prompt and no stack trace is kept. ``fields`` is the
    record as far as it had come where a part of a program failed: what was read, and what the parts before
    had made, as JSON.
    """

    row_id: str
    origin: Origin
    raw: bytes
    stage: Stage
    error: Mapping[str, str]
    attempts: int = 1
    step: str = ""
    program_digest: str = ""
    flow: str = ""
    first_seen: str = ""
    last_seen: str = ""
    model: Mapping[str, Any] | None = None
    fields: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The envelope, as documented: one JSON object, whatever the row was."""
        origin = self.origin
        source = {"name": origin.name, "partition": origin.partition, "offset": origin.offset}
        if origin.line is not None:
            source["line"] = origin.line
        made = {
            "row_id": self.row_id,
            "source": source,
            "raw": base64.b64encode(self.raw).decode("ascii"),
            "stage": self.stage,
            "step": self.step,
            "error": dict(self.error),
            "attempts": self.attempts,
            "program_digest": self.program_digest,
            "flow": self.flow,
            "first_seen": self.first_seen,
            "last_seen": self.last_seen,
            "model": dict(self.model) if self.model is not None else None,
        }
        if self.fields is not None:
            made["fields"] = dict(self.fields)
        return {name: written(value) for name, value in made.items()}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> DeadLetter:
        """Read an envelope back.

        Raises:
            ValueError: a key is missing or of the wrong kind.
        """
        try:
            source = value["source"]
            origin = Origin(source["name"], source["partition"], source["offset"], source.get("line"))
            return DeadLetter(
                row_id=value["row_id"],
                origin=origin,
                raw=base64.b64decode(value["raw"], validate=True),
                stage=value["stage"],
                error=value["error"],
                attempts=value["attempts"],
                step=value.get("step", ""),
                program_digest=value["program_digest"],
                flow=value["flow"],
                first_seen=value["first_seen"],
                last_seen=value["last_seen"],
                model=value["model"],
                fields=value.get("fields"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a dead-letter envelope: {error!r}") from error
