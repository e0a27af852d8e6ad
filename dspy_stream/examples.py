"""Labelled examples from the user's JSON Lines and CSV files, and a balanced choice among them."""

from __future__ import annotations

import csv
import difflib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

import orjson

from dspy_stream.errors import ConfigurationError, InputError, RecordError

if TYPE_CHECKING:
    from dspy_stream.program.example import Example

__all__ = ["load_examples", "per_label"]

Record = tuple[int, dict[str, Any]]  # the one-based line where it begins, and its fields


def load_examples(
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[str],
    limit: int | None = None,
    rename: Mapping[str, str] | None = None,
) -> list[Example]:
    """Read a labelled file into examples, all of it or none.

    The ending says what the file is: ``.jsonl`` or ``.ndjson`` holds one JSON object a line,
    ``.csv`` or ``.tsv`` has its column names in the first line and gives text for every value.
    Both are UTF-8, with or without a byte order mark; blank lines are skipped.

    Args:
        path: the file.
        inputs: the fields that a program is given; the others are labels.
        limit: read this many examples at most, from the beginning.
        rename: column of the file to field of the example, as in ``{"category": "intent"}``.

    Raises:
        InputError: there is no such file, it cannot be read, or it has no rows.
        RecordError: a row is broken, or lacks a field that the first row has been asked for;
            the message gives its line.
        ConfigurationError: the file has no such column, or its ending is not known.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "mine.csv"
    >>> _ = file.write_text("text,category\\nWhere is my card?,card_arrival\\n", encoding="utf-8")
    >>> [example] = load_examples(file, inputs=["text"], rename={"category": "intent"})
    >>> example.text, example.intent
    ('Where is my card?', 'card_arrival')
    """
    from dspy_stream.program.example import Example

    if isinstance(inputs, str):
        raise ConfigurationError(f"inputs is a list of field names: write inputs=[{inputs!r}]")
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit is {limit}; it has to be 1 or more, or None for all rows")
    path, names = Path(path), dict(rename or {})
    examples: list[Example] = []
    for line, fields in islice(_records(path), limit):
        for column in names:
            _require(column, fields, path, line=line if examples else None)
        renamed = _renamed(fields, names, f"{path}, line {line}")
        for name in inputs:
            _require(name, renamed, path, line=line if examples else None)
        examples.append(Example(renamed).with_inputs(*inputs))
    if not examples:
        raise InputError(f"{path} has no rows")
    return examples


class _HasFields(Protocol):
    def __getitem__(self, name: str, /) -> Any: ...
    def keys(self) -> Iterable[str]: ...


E_co = TypeVar("E_co", bound=_HasFields)


def per_label(examples: Iterable[E_co], label: str, *, k: int, seed: int = 0) -> list[E_co]:
    """Choose ``k`` examples of every value of the field ``label``; all of them where there are fewer.

    Labels take turns in the order in which they first appear, so that any beginning of the list
    is balanced too. The choice within a label depends on ``seed`` and on that label's own
    examples alone: another label in the file does not change it.

    Raises:
        ConfigurationError: ``k`` is less than 1, or an example has no such field.

    >>> rows = [{"n": n, "intent": "ab"[n % 2]} for n in range(10)]
    >>> [row["intent"] for row in per_label(rows, "intent", k=2)]
    ['a', 'b', 'a', 'b']
    """
    if k < 1:
        raise ConfigurationError(f"k is {k}; at least one example of each label has to be chosen")
    groups: dict[str, list[E_co]] = {}
    for number, example in enumerate(examples, 1):
        names = list(example.keys())
        if label not in names:
            raise ConfigurationError(f"example {number} has no field {label!r}; {_instead(label, names)}")
        groups.setdefault(repr(example[label]), []).append(example)
    chosen = [_shuffled(group, random.Random(f"{seed}:{name}"))[:k] for name, group in groups.items()]  # noqa: S311
    return [group[turn] for turn in range(k) for group in chosen if turn < len(group)]


def _shuffled(group: list[E_co], rng: random.Random) -> list[E_co]:
    # By random() alone: the other methods may draw differently in another version of Python.
    return sorted(group, key=lambda _: rng.random())


def _records(path: Path) -> Iterator[Record]:
    read = _FORMATS.get(path.suffix.lower())
    if read is None:
        raise ConfigurationError(f"{path}: the ending has to be one of {', '.join(_FORMATS)}")
    try:
        with path.open("rb") as file:
            yield from read(path, file)
    except FileNotFoundError:
        raise InputError(f"there is no file {path} (looked from {Path.cwd()})") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    for line, data in enumerate(file, 1):
        yield _decoded(data, path, line)


def _decoded(data: bytes, path: Path, line: int) -> str:
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{path}, line {line}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
        ) from error


def _read_jsonl(path: Path, file: IO[bytes]) -> Iterator[Record]:
    for line, text in enumerate(_lines(path, file), 1):
        if not text.strip():
            continue
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise RecordError(f"{path}, line {line}: not JSON: {error}") from error
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise RecordError(f"{path}, line {line}: a row is a JSON object, this is a {kind}")
        yield line, value


def _read_csv(path: Path, file: IO[bytes], *, delimiter: str = ",") -> Iterator[Record]:
    reader = csv.reader(_lines(path, file), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise RecordError(f"{path}, line {line}: not CSV: {error}") from error
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = _header(path, cells)
        elif len(cells) != len(header):
            raise RecordError(
                f"{path}, line {line}: {len(cells)} values for {len(header)} columns; "
                "a value with a comma or a line break in it has to be in double quotes"
            )
        else:
            yield line, dict(zip(header, cells, strict=True))


def _read_tsv(path: Path, file: IO[bytes]) -> Iterator[Record]:
    return _read_csv(path, file, delimiter="\t")


_FORMATS: Mapping[str, Callable[[Path, IO[bytes]], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}


def _header(path: Path, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(f"{path}: the first line names a column twice: {', '.join(map(repr, twice))}")
    return header


def _renamed(fields: dict[str, Any], names: Mapping[str, str], where: str) -> dict[str, Any]:
    renamed = {names.get(column, column): value for column, value in fields.items()}
    if len(renamed) < len(fields):
        raise ConfigurationError(f"{where}: renaming {dict(names)} would give two columns one name")
    return renamed


def _require(name: str, fields: Mapping[str, Any], path: Path, *, line: int | None) -> None:
    """Raise unless the row has the field: about the file at its first row, about the row at ``line``."""
    if name in fields:
        return
    what = f"column {name!r}; {_instead(name, list(fields))}"
    if line is None:
        raise ConfigurationError(f"{path} has no {what}")
    raise RecordError(f"{path}, line {line}: the row has no {what}")


def _instead(name: str, known: Sequence[str]) -> str:
    text = f"it has: {', '.join(known) or 'none'}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"{text} (did you mean {near[0]!r}?)" if near else text
