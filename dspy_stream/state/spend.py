"""What a run has paid for, kept exactly: whole tokens and whole trillionths of a dollar."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from operator import add
from typing import Any, Final, NamedTuple

import orjson

from dspy_stream.types import Usage

__all__ = ["OTHERS", "Account", "Part", "Spend"]

# A token can cost less than a millionth of a dollar, and floats do not add up exactly.
_PICO: Final = 10**12
_LARGEST: Final = 2**62
_DEAREST: Final = _LARGEST / _PICO
# Steps times models that are told apart. The record is written with every group of answers.
_PARTS: Final = 64

Part = tuple[str, str]
"""Step and model."""

OTHERS: Final[Part] = ("", "")
"""What is counted beyond the parts that are told apart."""


class Spend(NamedTuple):
    """Totals over finished calls. ``cost_pico`` is in 1e-12 US dollars.

    ``priced`` calls are those whose cost is known; only they are in ``cost``. ``cached_tokens`` and
    ``written_tokens`` are parts of the prompts, ``reasoning_tokens`` of the completions. ``hits``
    were answered by the journal and cost nothing. ``lost`` are attempts that were sent and got no
    answer: what they used is not known, and the provider may have charged for them.

    >>> Spend().plus(Usage(10, 2, 0.0000031)).plus(None).to_bytes()
    b'{"calls":2,"prompt_tokens":10,"completion_tokens":2,"cost_pico":3100000,"priced":1}'
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_pico: int = 0
    priced: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    written_tokens: int = 0
    hits: int = 0
    lost: int = 0

    @property
    def cost(self) -> float:
        """US dollars of the calls whose cost is known."""
        return self.cost_pico / _PICO

    @property
    def total_tokens(self) -> int:
        """Prompts and completions together."""
        return self.prompt_tokens + self.completion_tokens

    def plus(self, usage: Usage | None) -> Spend:
        """These totals and one more call; None where nothing is known of its tokens."""
        return self + _call(usage)

    def __add__(self, other: Spend) -> Spend:  # type: ignore[override]
        return Spend._make(_within(tuple(map(add, self, other))))

    def __sub__(self, other: Spend) -> Spend:
        return Spend._make([max(0, mine - theirs) for mine, theirs in zip(self, other, strict=True)])

    def to_json(self) -> dict[str, int]:
        """By name; all but the first four only where they are not zero."""
        return {
            name: value
            for place, (name, value) in enumerate(zip(self._fields, self, strict=True))
            if value or place < _ALWAYS
        }

    def to_bytes(self) -> bytes:
        """The stored form, JSON."""
        return orjson.dumps(self.to_json())

    @staticmethod
    def from_json(value: Any) -> Spend:
        """Read it back; what is missing is zero.

        Raises:
            ValueError: not totals.
        """
        if not isinstance(value, dict):
            raise ValueError("not a spend record")
        try:
            spend = Spend(**value)
        except TypeError as error:
            raise ValueError(f"not a spend record: {error}") from error
        if not all(type(n) is int and n >= 0 for n in value.values()):
            raise ValueError("not a spend record: totals are whole numbers, zero or more")
        return spend

    @staticmethod
    def from_bytes(data: bytes) -> Spend:
        """Read the stored form back, with or without its parts.

        Raises:
            ValueError: the bytes are not totals.
        """
        return Account.from_bytes(data).total


_ALWAYS: Final = 4


class Account:
    """A run's totals, and the same by step and model: at most 64 parts, the rest counts as one.

    >>> account = Account()
    >>> account.paid(("ask", "openai/gpt-4o-mini"), Usage(10, 2, 0.25))
    >>> Account.from_bytes(account.to_bytes()).parts[("ask", "openai/gpt-4o-mini")].cost
    0.25
    """

    __slots__ = ("_parts", "total")

    def __init__(self, total: Spend | None = None, parts: Mapping[Part, Spend] | None = None) -> None:
        self.total = total if total is not None else Spend()
        self._parts: dict[Part, Spend] = dict(parts) if parts is not None else {}

    @property
    def parts(self) -> Mapping[Part, Spend]:
        """Totals by step and model, in the order in which they first came."""
        return self._parts

    def paid(self, part: Part, usage: Usage | None) -> None:
        """Count one finished call."""
        self.add(part, _call(usage))

    def paid_all(self, part: Part, usages: Sequence[Usage | None]) -> None:
        """Count finished calls of one step and model, in one addition."""
        self.add(part, Spend._make(_within(list(map(sum, zip(*map(_counts, usages), strict=True))))))

    def add(self, part: Part, spend: Spend) -> None:
        """Count what came together elsewhere, such as answers from the journal."""
        self.total = self.total + spend
        part = self._known(part)
        self._parts[part] = self._parts.get(part, _NOTHING) + spend

    def _known(self, part: Part) -> Part:
        return part if part in self._parts or len(self._parts) < _PARTS else OTHERS

    def copy(self) -> Account:
        """Another account with the same numbers."""
        return Account(self.total, self._parts)

    def rest(self) -> Spend:
        """What belongs to no part: totals from before parts were told apart."""
        told = Spend()
        for spend in self._parts.values():
            told = told + spend
        return self.total - told

    def __iter__(self) -> Iterator[tuple[Part, Spend]]:
        return iter(self._parts.items())

    def to_bytes(self) -> bytes:
        """The stored form, JSON."""
        value: dict[str, Any] = self.total.to_json()
        if self._parts:
            value["parts"] = [[*part, spend.to_json()] for part, spend in self._parts.items()]
        return orjson.dumps(value)

    @staticmethod
    def from_bytes(data: bytes) -> Account:
        """Read the stored form back; totals alone, as they were stored before, are read too.

        Raises:
            ValueError: the bytes are no totals.
        """
        value = orjson.loads(data)
        if not isinstance(value, dict):
            raise ValueError("not a spend record")
        parts = value.pop("parts", [])
        try:
            read = {(step, model): Spend.from_json(spend) for step, model, spend in parts}
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a spend record: {error}") from error
        if not all(isinstance(name, str) for part in read for name in part):
            raise ValueError("not a spend record: a part has a step and a model")
        return Account(Spend.from_json(value), read)


_NOTHING: Final = Spend()
_UNKNOWN: Final = Spend(calls=1)


def _call(usage: Usage | None) -> Spend:
    return Spend._make(_counts(usage))


def _counts(usage: Usage | None) -> Sequence[int]:
    """The totals of one call; what a provider claims is clamped to what can be true."""
    if usage is None:
        return _UNKNOWN
    prompt, completion, cost, cached, reasoning, written = usage
    priced, pico = (0, 0) if cost is None else (1, _pico(cost))
    counts = (1, prompt, completion, pico, priced, cached, reasoning, written, 0, 0)
    return _within(counts if min(counts) >= 0 else [max(0, n) for n in counts])


def _pico(cost: float) -> int:
    return round(min(cost, _DEAREST) * _PICO) if 0.0 < cost < math.inf else 0


def _within(totals: Sequence[int]) -> Sequence[int]:
    # What a provider claims must not overflow the record; a total this large is a lie anyway.
    return totals if max(totals) <= _LARGEST else [min(total, _LARGEST) for total in totals]
