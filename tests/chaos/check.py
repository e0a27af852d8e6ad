"""The independent checker: what went in, what came out, what was asked. Knows nothing of the package.

Every row must end in exactly one of: the output, the dead letters, dropped on purpose. It is told
apart by its ``key``; a row whose bytes are no record is told apart by its bytes.
"""

from __future__ import annotations

import base64
import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Fate", "Verdict", "calls_of", "check", "dead_of", "read_rows"]

Fate = Callable[[Mapping[str, Any]], "Mapping[str, str] | str"]
"""For an input row: the fields it must come out with, the stage it must die in, or ``dropped``."""


@dataclass
class Verdict:
    """What is wrong, by kind; all empty where nothing is."""

    lost: list[str] = field(default_factory=list)
    duplicate: list[str] = field(default_factory=list)
    invented: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    both: list[str] = field(default_factory=list)

    @property
    def problems(self) -> dict[str, list[str]]:
        """The kinds that are not empty, at most ten of each."""
        return {name: found[:10] for name, found in vars(self).items() if found}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON Lines or CSV file, compressed or not; raises where the file is torn."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    text = data.decode()
    if text and not text.endswith("\n"):
        raise ValueError(f"{path} ends inside a line: {text[-80:]!r}")
    if ".csv" in path.suffixes:
        return list(csv.DictReader(text.splitlines()))
    return [json.loads(line) for line in text.splitlines()]


def dead_of(envelopes: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Name and stage of every dead letter; the name is the row's key, or its very bytes."""
    return [(name_of(base64.b64decode(letter["raw"])), str(letter["stage"])) for letter in envelopes]


def name_of(raw: bytes) -> str:
    """The key of a record; its bytes where it is none."""
    try:
        return str(json.loads(raw)["key"])
    except (ValueError, KeyError, TypeError):
        return repr(raw.strip())


def check(
    lines: list[bytes], out: list[dict[str, Any]], dead: list[tuple[str, str]], fate: Fate, *, ordered: bool
) -> Verdict:
    """Compare. ``lines`` are the input's, ``fate`` says what must become of a row that is a record."""
    verdict = Verdict()
    wanted: dict[str, Mapping[str, str] | str] = {}
    for line in lines:
        name = name_of(line)
        wanted[name] = "read" if name == repr(line.strip()) else fate(json.loads(line))
    place = {name: number for number, name in enumerate(wanted)}
    came = Counter(str(row["key"]) for row in out)
    died = Counter(name for name, _ in dead)
    verdict.invented = sorted((came | died).keys() - wanted.keys())
    verdict.duplicate = sorted(name for name in wanted if came[name] > 1 or died[name] > 1)
    verdict.both = sorted(came.keys() & died.keys())
    for name, due in wanted.items():
        if not came[name] and not died[name] and due != "dropped":
            verdict.lost.append(name)
    for row in out:
        right = wanted.get(row["key"])
        if right is not None and (
            isinstance(right, str) or any(row.get(key) != value for key, value in right.items())
        ):
            verdict.wrong.append(f"{row['key']}: {row} instead of {right}")
    for name, stage in dead:
        if name in wanted and wanted[name] != stage:
            verdict.wrong.append(f"{name}: dead in {stage} instead of {wanted[name]}")
    ids = Counter(str(row["row_id"]) for row in out)
    verdict.duplicate += [f"row id {name}" for name, count in ids.items() if count > 1]
    if ordered:
        places = [place[row["key"]] for row in out if row["key"] in place]
        verdict.reordered = [out[n]["key"] for n in range(1, len(places)) if places[n] < places[n - 1]]
    return verdict


def calls_of(log: Path, op: str = "sent") -> Counter[str]:
    """How often each prompt was answered (``sent``) or arrived (``recv``), by its digest."""
    entries = (json.loads(line) for line in log.read_bytes().splitlines())
    return Counter(entry["ask"] for entry in entries if entry["op"] == op)
